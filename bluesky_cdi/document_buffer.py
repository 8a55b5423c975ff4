"""Documents on their way to a slow callback, which takes them in a thread of its own."""

from __future__ import annotations

import atexit
import logging
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any

import numpy as np

from bluesky_cdi.errors import DocumentError
from bluesky_cdi.packing import pack, unpack

logger = logging.getLogger(__name__)

# Documents that wait in memory, unless stated otherwise, bytes.
MEMORY_BYTES = 2**28
# What waits beyond that lies in files of about this size, bytes: what is read is given back so much at a time. Of much
# each has this share at least: a process may have few files open.
FILE_BYTES, LEAST_SHARE = 2**26, 1 / 16

Document = tuple[str, Any]


class DocumentBuffer:
    """Hands documents to a callback in a thread of its own, in their order; whoever sends them never waits.

    What waits beyond some memory, as frames in events may, waits in files without a name in the system's folder for
    temporary files (``TMPDIR``), as bytes that `bluesky_cdi.packing` knows; each is gone once it is read, or with the
    process. What still waits when the interpreter exits is handed on first.

    Parameters
    ----------
    target : callable
        Takes (name, document). What it raises is logged; the next document follows.
    memory_bytes : int
        About as much of the documents' data waits in memory.
    """

    def __init__(self, target: Callable[[str, Any], Any], memory_bytes: int = MEMORY_BYTES) -> None:
        self._target = target
        self._changed = threading.Condition()
        self._taken = self._handed_on = 0
        self._waiting = _Waiting(memory_bytes)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="bluesky_cdi-documents", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __call__(self, name: str, doc: Any) -> None:
        """Take a document; returns at once.

        Parameters
        ----------
        name : str
            Its kind: ``start``, ``descriptor``, ...
        doc : Mapping
            The document.

        Raises
        ------
        RuntimeError
            If the buffer is closed.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError(f"a {name} document must come before the buffer is closed; it came after that")
            self._waiting.put((name, doc))
            self._taken += 1
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything taken so far is handed on; False where that takes longer than `timeout_s` seconds."""
        with self._changed:
            wanted = self._taken
            return self._changed.wait_for(lambda: self._handed_on >= wanted, timeout_s)

    def close(self) -> None:
        """Hand on what waits, then end the thread and refuse further documents."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        while self._is_there():
            name = "waiting"
            try:
                with self._changed:
                    name, doc = self._waiting.get()
                self._target(name, doc)
            except Exception as err:
                logger.exception("a %s document was not taken: %s", name, err)
            with self._changed:
                self._handed_on += 1
                self._changed.notify_all()

    def _is_there(self) -> bool:
        """Wait for a document; False once the buffer is closed and all are handed on."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) or self._is_closed)
            return len(self._waiting) > 0


class _Waiting:
    """Documents in their order, in memory and beyond that in files; for one thread at a time.

    Parameters
    ----------
    memory_bytes : int
        About as much waits in memory; a document alone does whatever it takes.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes, self._held, self._on_disk = memory_bytes, 0, 0
        # Each with the bytes that it takes; or where it lies, with its first byte there, and their number.
        self._documents: deque[tuple[Document, int] | tuple[_File, int, int]] = deque()
        # What is written to.
        self._file: _File | None = None
        self._has_told = False

    def __len__(self) -> int:
        return len(self._documents)

    def put(self, document: Document) -> None:
        """Add a document as the last one."""
        size = _size_of(document[1])
        if self._held and self._held + size > self._memory_bytes and self._written(document):
            return
        self._held += size
        self._documents.append((document, size))

    def get(self) -> Document:
        """Take the first one."""
        first = self._documents.popleft()
        if len(first) == 2:
            document, size = first
            self._held -= size
            return document
        return self._read(*first)

    def _written(self, document: Document) -> bool:
        """Write a document to a file; False where it can't be packed or there is no room: it waits in memory."""
        try:
            data = pack(list(document))
            if self._file is None or self._file.end >= max(FILE_BYTES, LEAST_SHARE * self._on_disk):
                self._file = _File()
            first = self._file.append(data)
        except (OSError, DocumentError) as err:
            if not self._has_told:
                self._has_told = True
                where = tempfile.gettempdir()
                logger.warning(
                    "documents come faster than they are taken; some wait in memory and not in %s: %s", where, err
                )
            return False
        self._documents.append((self._file, first, len(data)))
        self._on_disk += len(data)
        return True

    def _read(self, file: _File, first: int, size: int) -> Document:
        self._on_disk -= size
        try:
            name, doc = unpack(file.read(first, size))
        finally:
            if not file.unread:
                # All are read: what they took is given back.
                file.close()
                self._file = None if file is self._file else self._file
        return name, doc


class _File:
    """Some bytes after others in a file without a name: it is gone when it is closed, or the process is.

    Attributes
    ----------
    end : int
        Bytes that it has.
    unread : int
        How many that were appended have not been read.
    """

    def __init__(self) -> None:
        self.end = self.unread = 0
        # Unbuffered: bytes that a full disk has refused must not be tried again later.
        self._file: FileIO = tempfile.TemporaryFile(prefix="bluesky_cdi-", buffering=0)  # noqa: SIM115

    def append(self, data: bytes) -> int:
        """Append bytes, or nothing of them where that raises OSError; give where they begin."""
        first = self.end
        try:
            self._file.seek(first)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(first)
            raise
        self.end, self.unread = first + len(data), self.unread + 1
        return first

    def read(self, first: int, size: int) -> bytes:
        """Read bytes that were appended; once, whether that fails or not."""
        self.unread -= 1
        self._file.seek(first)
        return self._file.read(size)

    def close(self) -> None:
        """Give back the room."""
        self._file.close()


def _size_of(value: Any) -> int:
    """Estimate the bytes of the data in a document: of a list by its first item."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_size_of(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return len(value) * (8 + _size_of(value[0])) if value else 0
    return len(value) if isinstance(value, (str, bytes)) else 8
