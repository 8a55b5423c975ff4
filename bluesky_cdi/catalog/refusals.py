"""What a catalog does not take of a run, and where it is kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import CatalogError
from bluesky_cdi.journal import Journal, JournalReader

logger = logging.getLogger(__name__)


class Refusals:
    """Which of a run's documents a catalog does not take, by their numbers, and the folder that keeps them.

    Parameters
    ----------
    folder : path
        Made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._why: dict[int, Exception] = {}
        # Descriptors and resources among them: what refers to these can't be taken either.
        self._missing: set[str] = set()

    def __len__(self) -> int:
        return len(self._why)

    def begin(self) -> None:
        """Begin with the first document again; what was refused stays so."""
        self._missing.clear()

    def add(self, record: int, why: Exception) -> None:
        """Refuse a document.

        Parameters
        ----------
        record : int
            Its number.
        why : Exception
            What the catalog said of it.
        """
        self._why[record] = why

    def cover(self, record: int, doc: Mapping[str, Any]) -> bool:
        """Tell whether a document is refused, or refers to one that is and is refused with it.

        Parameters
        ----------
        record : int
            Its number; documents come in their order.
        doc : Mapping
            The document.
        """
        if record not in self._why:
            if not any(str(doc.get(key)) in self._missing for key in ("descriptor", "stream_resource", "resource")):
                return False
            self.add(record, CatalogError("it belongs to one that was refused"))
        if "uid" in doc:
            self._missing.add(doc["uid"])
        return True

    def keep(self, reader: JournalReader) -> Path:
        """Write the refused documents of a run, with all that they refer to, to a file of their own; which.

        Parameters
        ----------
        reader : JournalReader
            Of the run's file, which is whole.
        """
        target = self._folder / reader.path.name
        target.unlink(missing_ok=True)
        with contextlib.closing(Journal(self._folder)) as journal:
            reader.rewind()
            for record, (name, doc) in enumerate(reader.documents()):
                if record in self._why or name not in ("event", "event_page"):
                    journal(name, doc)
        return target

    def tell(self, uid: str, kept: Path) -> None:
        """Say which documents of a run are refused, why, and in which file they are kept."""
        for record, err in self._why.items():
            logger.error("the catalog does not take document %d of run %s (%s); it is kept in %s",
                         record, uid, first_line(err), kept)  # fmt: skip

    def keep_copy(self, file: Path) -> Path:
        """Keep a copy of a run's whole file; where."""
        kept = self._place_for(file)
        kept.write_bytes(file.read_bytes())
        return kept

    def take(self, file: Path) -> Path:
        """Take a run's whole file away; to where."""
        return file.rename(self._place_for(file))

    def _place_for(self, file: Path) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._folder / file.name


def first_line(err: Exception) -> str:
    """Say in one line what an error is."""
    return f"{type(err).__name__}: {err}".partition("\n")[0]
