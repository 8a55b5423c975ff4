"""The journal's files that a reconstruction needs to begin again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from bluesky_cdi.errors import JournalError
from bluesky_cdi.journal import JournalReader
from bluesky_cdi.packing import pack

logger = logging.getLogger(__name__)

# How the packed record of a stop document begins; records are handed on without being read.
_STOP = pack(["stop", {}])[:-1]


class RunFiles:
    """Reads what is new in the files of runs; keeps the runs that go on, and the newest."""

    def __init__(self) -> None:
        self._readers: dict[Path, JournalReader] = {}
        self._ended: set[Path] = set()
        self._left: set[Path] = set()

    def knows(self, path: Path) -> bool:
        """Tell whether something of a file was read, or is not wanted."""
        return path in self._readers or path in self._left

    def note(self, path: Path) -> None:
        """Keep a file, unless it is not wanted, also where it is taken away; nothing of it is read."""
        if path not in self._left and path not in self._readers:
            for other in self._ended & self._readers.keys():
                self._readers.pop(other).close()
            self._ended.clear()
            reader = self._readers[path] = JournalReader(path)
            with contextlib.suppress(JournalError):  # whoever reads it tells
                reader.hold()

    def new_records(self, path: Path) -> Iterator[bytes]:
        """Yield the packed records of a file that have come since the last time."""
        self.note(path)
        if path in self._left:
            return
        try:
            for record in self._readers[path].packed():
                if record.startswith(_STOP):
                    self._ended.add(path)
                yield record
        except JournalError as err:
            logger.error("the reconstruction lacks documents of a run: %s", err)

    def all_records(self) -> Iterator[bytes]:
        """Yield all records of the runs that are kept, from their first."""
        for path, reader in list(self._readers.items()):
            reader.rewind()
            yield from self.new_records(path)

    def leave(self) -> None:
        """Want no more of the runs that are kept."""
        self._left |= set(self._readers)
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self._readers:
            self._readers.popitem()[1].close()
