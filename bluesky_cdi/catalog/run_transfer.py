"""One run on its way from the journal into a catalog."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.catalog.connect import is_server_fault
from bluesky_cdi.catalog.masks import Masks
from bluesky_cdi.catalog.refusals import Refusals, first_line
from bluesky_cdi.catalog.run_entry import RunEntry
from bluesky_cdi.catalog.waiting_documents import Patience
from bluesky_cdi.errors import BlueskyCDIError, CatalogError, JournalError
from bluesky_cdi.journal import Document, JournalReader, is_written

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

logger = logging.getLogger(__name__)

# A server that fails on one document so often, and answers otherwise, will not take it.
FAILURES_MAX = 4
# A run of which the catalog refuses more than this many documents is kept apart as a whole.
REFUSED_MAX = 20
DIED = "the process that wrote this run ended before the run did"


@dataclass(frozen=True)
class Fed:
    """What became of a run's file.

    Attributes
    ----------
    uid : str
        The run's.
    container : str
        ``raw`` or ``processed``.
    events : int
        Events in the catalog.
    refused : int
        Documents that the catalog would not take.
    note : str
        What is to be said of it beside: that its process died, that its file was cut or damaged.
    """

    uid: str
    container: str
    events: int
    refused: int = 0
    note: str = ""


class RunTransfer:
    """Reads a run's file and writes it to the catalog, anew from the first record whenever something breaks.

    Parameters
    ----------
    path : path
        The file; its folder is named like the catalog's container.
    catalog : Catalog
        Where the run goes.
    refused : path
        Folder of what the catalog does not take.
    patience : Patience
        How long documents wait for others that are written with them.
    """

    def __init__(self, path: Path, catalog: Catalog, refused: Path, patience: Patience) -> None:
        self._uid, self._kind = path.stem, path.parent.name
        self._reader, self._catalog, self._patience = JournalReader(path), catalog, patience
        self._refusals = Refusals(refused)
        self._failures: Counter[int] = Counter()
        self._masks = Masks()
        self._careful = False
        self._verified = 0
        self._note = ""
        self._entry: RunEntry | None = None
        self._begin()

    def advance(self) -> Fed | None:
        """Write what has come; what became of the run when it is finished."""
        try:
            entry = self._entry = self._entry or self._new_entry()
            if entry is None:
                return None
            for name, doc in self._documents(entry):
                self._write(entry, name, doc)
            self._attempt("event", entry.keep_pace)
            if not entry.has_ended:
                return None
            self._verify(entry)
        except _Anew:
            self._begin()
            return None
        except _Unusable as err:
            return self._reject(err)
        except (LookupError, TypeError, ValueError) as err:  # documents that are none
            return self._reject(_Unusable(first_line(err)))
        return self._finish(entry)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _begin(self) -> None:
        """Start from the first record, on a clean slate."""
        self._reader.rewind()
        self._refusals.begin()
        self._entry, self._record = None, -1

    def _new_entry(self) -> RunEntry | None:
        """Make an entry when the first record is there.

        Raises
        ------
        JournalError
            If the file can't be read now.
        """
        try:
            first = next(self._reader.documents(), None)
        except JournalError as err:
            if isinstance(err.__cause__, OSError):
                raise
            # Damaged. Nobody may take the file away while more is written behind the damage.
            if is_written(self._reader.path):
                return None
            raise _Unusable(first_line(err)) from err
        except (BlueskyCDIError, TypeError, ValueError) as err:
            raise _Unusable(first_line(err)) from err
        self._reader.rewind()
        if first is None:
            return None
        patience = None if self._careful else self._patience
        return RunEntry(self._catalog, self._kind, self._uid, self._masks, patience)

    def _documents(self, entry: RunEntry) -> Iterator[Document]:
        """Yield what has come; the end of a run whose writer is gone is made up.

        Raises
        ------
        JournalError
            If the file can't be read now. Nothing is known of it then: it may go on, and stays.
        """
        # Asked before the reading: what a writer that is gone has written is then there to be read.
        alive = is_written(self._reader.path)
        try:
            yield from self._reader.documents()
        except JournalError as err:
            if isinstance(err.__cause__, OSError):
                raise
            # Damaged. Nobody may take the file away while more is written behind the damage.
            self._note = "" if alive else str(err)
        if not alive and not entry.has_ended:
            self._note = self._note or DIED
            yield "stop", entry.made_up_stop(self._note)

    def _write(self, entry: RunEntry, name: str, doc: dict[str, Any]) -> None:
        self._record += 1
        doc = entry.meet(name, doc)
        if self._refusals.cover(self._record, doc):
            return
        if entry.shows_new_mask(name, doc):
            raise _Anew
        self._attempt(name, lambda: entry.write(name, doc))

    def _attempt(self, name: str, write: Callable[[], None]) -> None:
        """Write to the catalog; begin anew, refuse, or give up for now where it fails."""
        try:
            write()
        except CatalogError as err:
            if err.__cause__ is None:
                self._refuse(name, err)
            self._failed(err)
        except Exception as err:  # noqa: BLE001 - whatever it is, the run must not block the others
            self._suspect(name, err)

    def _failed(self, err: CatalogError) -> None:
        """Give up for now; a document that the server fails on again and again, while it answers, is refused."""
        record = self._record
        # A server that can't be reached says nothing of the document.
        self._failures[record] += is_server_fault(err)
        self._begin()
        if self._failures[record] < FAILURES_MAX:
            raise err
        self._failures[record] = 0
        if self._careful:
            self._refusals.add(record, err)
        self._careful = True
        raise _Anew

    def _suspect(self, name: str, err: Exception) -> None:
        """Refuse a document, if it is that which the catalog does not take and not one before it, written only now."""
        if self._careful:
            self._refuse(name, err)
        self._careful = True
        raise _Anew

    def _refuse(self, name: str, err: Exception) -> None:
        self._refusals.add(self._record, err)
        if name in ("start", "stop") or len(self._refusals) > REFUSED_MAX:
            raise _Unusable(first_line(err)) from err
        raise _Anew

    def _verify(self, entry: RunEntry) -> None:
        """Look whether the catalog holds as many events as were written, and the run's end."""
        found, has_end = entry.arrived()
        if not has_end or found != dict(entry.events):
            self._verified += 1
            if self._verified >= FAILURES_MAX:
                raise _Unusable(f"it came with {found} events in place of {dict(entry.events)}")
            logger.warning("run %s came to the catalog with %s events in place of %s: it is written anew",
                           self._uid, found, dict(entry.events))  # fmt: skip
            raise _Anew

    def _finish(self, entry: RunEntry) -> Fed:
        if self._note and self._note != DIED:
            # With what was refused in it.
            kept = self._refusals.keep_copy(self._reader.path)
            logger.error("%s All that can be read is in the catalog; the file is kept as %s.", self._note, kept)
            self._refusals.tell(self._uid, kept)
        elif self._refusals:
            self._refusals.tell(self._uid, self._refusals.keep(self._reader))
        self._reader.close()
        self._reader.path.unlink(missing_ok=True)
        return Fed(self._uid, self._kind, sum(entry.events.values()), len(self._refusals), self._note)

    def _reject(self, why: _Unusable) -> Fed:
        """Keep the whole file apart."""
        kept = self._refusals.take(self._reader.path)
        self._reader.close()
        logger.error("run %s can't be written to the catalog (%s); all its documents are kept in %s",
                     self._uid, why, kept)  # fmt: skip
        return Fed(self._uid, self._kind, 0, self._record + 1, str(why))


class _Anew(Exception):
    """The run is to be written from its first record."""


class _Unusable(Exception):
    """The catalog can't hold the run."""
