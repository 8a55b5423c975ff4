"""Runs on disk, document by document, before anything else is done with them.

A journal is a folder with one file for each run, ``<uid>.journal``, which only grows: a first line that names the form,
then records of 8 bytes (length and CRC-32 of what follows, big-endian) and a document packed as ``[name, document]``.
A document is in the hands of the operating system when the call that brought it returns, so a process that is killed
loses none; what the machine had not yet put on the disk when its power failed, at most about a second, may be cut off
the end of a file. Whoever reads such a file gets every whole record.

The writer of a file holds a lock on it, which the operating system lifts when the process ends, however it ends:
`is_written` tells whether a run may still grow.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bluesky_cdi.errors import BlueskyCDIError, DocumentError, JournalError, RefusedError
from bluesky_cdi.packing import pack, unpack

logger = logging.getLogger(__name__)

SUFFIX = ".journal"
FORM = b"bluesky_cdi journal 1\n"
SYNC_S = 1.0
_HEAD = struct.Struct(">II")
# A record has fewer bytes: with its head it is written in one call, and Linux writes no more than that in one. A longer
# one that is read can't come from this package: the length itself is damaged.
RECORD_MAX = 0x7FFFF000 - _HEAD.size

Document = tuple[str, dict[str, Any]]


class Journal:
    """Appends the documents of runs to files, before the call returns; a callback for ``RE.subscribe``.

    Documents may come from any thread; runs may be interleaved.

    Parameters
    ----------
    folder : path
        Where the files lie; made when absent, for its owner alone.
    appended : callable, optional
        Called with the file after each document: somebody may read it there.

    Raises
    ------
    JournalError
        If the folder can't be made.
    """

    def __init__(self, folder: Path | str, appended: Callable[[Path], None] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self._appended = appended
        self._lock = threading.Lock()
        self._runs: dict[str, _RunFile] = {}
        self._run_of: dict[str, str] = {}
        self._ended = threading.Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            raise JournalError(
                f"the journal needs a folder that can be written; {self.folder} can't be: {err}"
            ) from err
        self._syncing = threading.Thread(target=self._sync, name="bluesky_cdi-journal", daemon=True)
        self._syncing.start()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append a document to the file of its run.

        Parameters
        ----------
        name : str
            Its kind: ``start``, ``descriptor``, ...
        doc : Mapping
            The document; of a run whose start came before.

        Raises
        ------
        JournalError
            If it can't be written; the file is then as it was before, and the same document may be given again.
            There may be no room on the disk, or, where the cause is a MemoryError, in memory.
        RefusedError
            If it never can be: it is too large, or belongs to no run that goes on.
        """
        record = self._packed(name, doc)
        with self._lock:
            uid = self._run(name, doc)
            run = self._runs[uid]
            run.append(record)
            if name in ("descriptor", "resource", "stream_resource"):
                self._run_of[doc["uid"]] = uid
            if name == "stop":
                self._close(uid)
        if self._appended is not None:
            self._appended(run.path)

    def close(self) -> None:
        """Close all files, those of runs that have not ended as well; further documents are refused."""
        self._ended.set()
        self._syncing.join()
        with self._lock:
            for uid in list(self._runs):
                self._close(uid)

    def _packed(self, name: str, doc: Mapping[str, Any]) -> bytes:
        """Pack a document as a record, its head included."""
        try:
            data = pack([name, doc])
            if len(data) < RECORD_MAX:
                return _HEAD.pack(len(data), zlib.crc32(data)) + data
        except DocumentError as err:
            why = str(err)
        except MemoryError as err:
            which = self._which(name, doc)
            raise JournalError(f"can't pack {which}: {str(err) or 'no memory'}. Make room in memory.") from err
        else:
            why = f"it has {len(data)} bytes; it must have fewer than {RECORD_MAX}"
        raise RefusedError(f"{self._which(name, doc)} can't be kept: {why}")

    def _which(self, name: str, doc: Mapping[str, Any]) -> str:
        """Name a document and its run."""
        with self._lock:
            parents = [doc["uid"]] if name == "start" else _parents(doc)
            run = next((self._run_of.get(str(parent), parent) for parent in parents if parent is not None), None)
        return f"the {name} document {doc.get('uid')} of run {run}"

    def _run(self, name: str, doc: Mapping[str, Any]) -> str:
        if self._ended.is_set():
            raise JournalError(f"the journal in {self.folder} is closed; a {name} document came after that")
        if name == "start":
            uid = str(doc["uid"])
            if uid not in self._runs:
                self._runs[uid] = _RunFile(self.folder / f"{uid}{SUFFIX}")
            return uid
        parents = _parents(doc)
        for parent in parents:
            uid = str(self._run_of.get(str(parent), parent))
            if uid in self._runs:
                return uid
        raise RefusedError(
            f"a {name} document must belong to a run that has begun and not ended; it names {parents}. Give the "
            "journal every document of a run, from its start on."
        )

    def _close(self, uid: str) -> None:
        self._runs.pop(uid).close()
        self._run_of = {parent: run for parent, run in self._run_of.items() if run != uid}

    def _sync(self) -> None:
        """Bring what is written onto the disk now and then, where no measurement waits for it."""
        while not self._ended.wait(SYNC_S):
            with self._lock:
                runs = list(self._runs.values())
            for run in runs:
                run.sync()


def _parents(doc: Mapping[str, Any]) -> list[Any]:
    """List the uids by which a document that is no start names the run that it belongs to."""
    return [doc.get(key) for key in ("run_start", "descriptor", "resource", "stream_resource")]


class _RunFile:
    """The file of one run, which only its writer appends to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            # Waits for no longer than `is_written` takes to look.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._size = self._written = 0
            self._append(FORM)
        except OSError as err:
            raise JournalError(f"can't begin the journal's file {path}: {err}") from err
        self._dirty = True

    def append(self, record: bytes) -> None:
        try:
            self._append(record)
        except OSError as err:
            raise JournalError(
                f"can't write a document of {len(record)} bytes to {self.path}: {err}. Make room on that disk."
            ) from err

    def sync(self) -> None:
        if self._written != self._size:
            size = self._size
            # The file may have been closed meanwhile; closing brings it onto the disk too.
            with contextlib.suppress(OSError):
                os.fdatasync(self._fd)
            self._written = size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)


class JournalReader:
    """Reads the whole records of a run's file from where it stopped before, also while the file grows.

    Parameters
    ----------
    path : path
        The file; it stays open from the first reading on.

    Attributes
    ----------
    offset : int
        Bytes read so far.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.offset = 0
        self._file: BinaryIO | None = None

    def packed(self) -> Iterator[bytes]:
        """Yield the records that are there, as they were packed.

        Raises
        ------
        JournalError
            If the file can't be read, is none of a journal, or a record in it is damaged; those before it have come.
        """
        try:
            file = self._opened()
            while (data := self._record(file)) is not None:
                self.offset += _HEAD.size + len(data)
                yield data
        except JournalError:
            raise
        except OSError as err:
            raise JournalError(f"can't read the journal's file {self.path}: {err}") from err

    def hold(self) -> None:
        """Open the file, so that it can be read though somebody takes it away.

        Raises
        ------
        JournalError
            If it can't be opened.
        """
        try:
            self._opened()
        except OSError as err:
            raise JournalError(f"can't read the journal's file {self.path}: {err}") from err

    def rewind(self) -> None:
        """Go back to the first record, also of a file that was taken away after something was read of it."""
        self.offset = 0

    def close(self) -> None:
        """Close the file; a later reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def documents(self) -> Iterator[Document]:
        """Yield the documents that are there as (name, document); raises as `packed` does."""
        for data in self.packed():
            name, doc = unpack(data)
            yield name, doc

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self.path.open("rb")
        return self._file

    def _record(self, file: BinaryIO) -> bytes | None:
        if self.offset == 0:
            file.seek(0)
            form = file.read(len(FORM))
            if form != FORM[: len(form)]:
                raise JournalError(f"{self.path} must be a file of a journal, which begins with {FORM!r}")
            if len(form) < len(FORM):
                return None
            self.offset = len(FORM)
        file.seek(self.offset)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        length, checksum = _HEAD.unpack(head)
        data = file.read(length) if length < RECORD_MAX else b""
        if len(data) == length and zlib.crc32(data) == checksum:
            return data
        if length < RECORD_MAX and len(data) < length:
            return None
        raise JournalError(
            f"{self.path} is damaged: the record at byte {self.offset} is not what its checksum says. "
            "What lies before it is whole."
        )


def is_written(path: Path | str) -> bool:
    """Tell whether a process holds a run's file open and may write more of it.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    JournalError
        If the file can't be opened.
    """
    try:
        with Path(path).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError as err:
        raise JournalError(f"can't look at the journal's file {path}: {err}") from err


def run_files(folder: Path | str) -> list[Path]:
    """Find the runs' files of a journal, the oldest run first.

    Parameters
    ----------
    folder : path
        The journal's.
    """
    found = []
    for path in Path(folder).glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # it was taken away meanwhile
            written_s = path.stat().st_mtime
            found.append((float(start_of(path).get("time") or written_s), path))
    return [path for _, path in sorted(found)]


def start_of(path: Path | str) -> dict[str, Any]:
    """Read the start document of a run's file; an empty one where none can be read.

    Parameters
    ----------
    path : path
        The file.
    """
    try:
        with contextlib.closing(JournalReader(path)) as reader:
            _, doc = next(reader.documents(), ("", {}))
        return dict(doc)
    except (BlueskyCDIError, TypeError, ValueError):
        return {}
