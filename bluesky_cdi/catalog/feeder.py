"""From the journal to the catalog: every run exactly once, at the catalog's own pace.

Sessions and reconstructions only write files of a journal (`bluesky_cdi.journal`); this reads them, also while they
grow, and writes the runs to Tiled. Whatever breaks on the way, a run is taken out of the catalog and written anew from
its first record; a file goes when the catalog was seen to hold all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.catalog.connect import is_server_fault
from bluesky_cdi.catalog.run_transfer import DIED, Fed, RunTransfer
from bluesky_cdi.catalog.waiting_documents import Patience
from bluesky_cdi.errors import CatalogError, JournalError
from bluesky_cdi.journal import SUFFIX, is_written, run_files, start_of

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

logger = logging.getLogger(__name__)

RAW, PROCESSED, REFUSED = "raw", "processed", "refused"
# Each write takes some 0.1 s of server time: 16 events, the usual number of positions decided at a time, keep up with a
# fast scan. Single ones, as decisions, don't wait for long: they are looked at while the scan goes on. Reconstructions
# are few: what comes of one is written at once.
PATIENCE = {RAW: Patience(16, 0.5), PROCESSED: Patience(16)}
LOOK_S = 0.1
PAUSES_S = (0.2, 1.0, 5.0)


class Feeder:
    """Writes the runs of a journal's folders to a catalog, and takes their files away.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``; what the catalog refuses goes to ``refused``.
    catalog : Catalog
        Where the runs go.
    """

    def __init__(self, journal: Path | str, catalog: Catalog) -> None:
        self._folder = Path(journal)
        self._catalog = catalog
        self._runs: dict[Path, RunTransfer] = {}
        # Those of which a file could not be read or put away at the last try.
        self._unread: set[Path] = set()
        self._stop = threading.Event()

    def feed(self) -> list[Fed]:
        """Write what is there, as far as it goes now.

        Returns
        -------
        list of Fed
            The runs that are finished by it.

        Raises
        ------
        CatalogError
            If the catalog does not answer.
        """
        finished = []
        for path in self._files():
            if path not in self._runs:
                patience = PATIENCE[path.parent.name]
                self._runs[path] = RunTransfer(path, self._catalog, self._folder / REFUSED, patience)
            try:
                fed = self._runs[path].advance()
            except CatalogError as err:
                if not is_server_fault(err):
                    raise
                # It concerns this run, and is tried again; the others go on.
                logger.info("run %s: %s", path.stem, err)
                continue
            except OSError as err:
                # Of this run's file, which says nothing of it now: it stays, and the others go on.
                if path not in self._unread:
                    self._unread.add(path)
                    logger.warning("run %s is tried again: %s", path.stem, err)
                continue
            self._unread.discard(path)
            if fed is not None:
                finished.append(fed)
                del self._runs[path]
        return finished

    def run(self) -> None:
        """Feed until `stop` is called; only one feeder at a time works on a folder, others wait for their turn."""
        pauses = 0
        with self._turn() as mine:
            while mine and not self._stop.wait(LOOK_S):
                try:
                    for fed in self.feed():
                        _tell(fed)
                    pauses = self._back(pauses)
                except OSError as err:  # the catalog, the journal's disk
                    pauses = self._gone(pauses, err)
        self.close()

    def finish(self, timeout_s: float) -> list[Fed]:
        """Feed the runs that nobody writes any more; files that are left after that time stay where they are.

        Parameters
        ----------
        timeout_s : float
            How long, seconds, if the catalog does not take them or another feeder works on the folder.
        """
        deadline, finished = time.monotonic() + timeout_s, []
        while ended_files(self._folder) and time.monotonic() < deadline:
            with self._lock() as mine:
                while mine and ended_files(self._folder) and time.monotonic() < deadline:
                    try:
                        finished += self.feed()
                    except OSError as err:  # the catalog, the journal's disk
                        logger.warning("%s", err)
                        time.sleep(LOOK_S)
            time.sleep(LOOK_S)
        self.close()
        return finished

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    def close(self) -> None:
        """Close the files; they are read from their first records next time."""
        while self._runs:
            self._runs.popitem()[1].close()

    def _files(self) -> list[Path]:
        """List the files, the oldest run first; only where there is a new one are they put in order."""
        found = set(waiting_files(self._folder))
        if found <= self._runs.keys():
            return [path for path in self._runs if path in found]
        return [path for name in (RAW, PROCESSED) for path in run_files(self._folder / name)]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Wait until no other feeder works on the folder."""
        while not self._stop.is_set():
            with self._lock() as mine:
                if mine:
                    yield True
                    return
            self._stop.wait(LOOK_S)
        yield False

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Take the folder, unless another feeder has it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "feeder.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _gone(self, pauses: int, err: OSError) -> int:
        if pauses == 0:
            logger.warning("%s What is measured waits in %s until that is mended.", err, self._folder)
        self._stop.wait(PAUSES_S[min(pauses, len(PAUSES_S) - 1)])
        return pauses + 1

    def _back(self, pauses: int) -> int:
        if pauses:
            logger.warning("the catalog takes what is measured again")
        return 0


def waiting_files(journal: Path) -> list[Path]:
    """List the files of runs that are not in the catalog, in no order.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``.
    """
    return [path for name in (RAW, PROCESSED) for path in (journal / name).glob(f"*{SUFFIX}")]


def ended_files(journal: Path) -> list[Path]:
    """List those of `waiting_files` that nobody writes any more.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``.
    """
    found = []
    for path in waiting_files(journal):
        with contextlib.suppress(JournalError):  # it was taken away meanwhile
            if not is_written(path):
                found.append(path)
    return found


def refused_files(journal: Path, raw_uid: str) -> list[Path]:
    """List the files with what the catalog did not take of a raw run and of what was derived from it.

    Parameters
    ----------
    journal : path
        Folder with the folder ``refused``.
    raw_uid : str
        The raw run's.
    """
    starts = {path: start_of(path) for path in (journal / REFUSED).glob(f"*{SUFFIX}")}
    return [path for path, start in starts.items() if raw_uid in (start.get("uid"), start.get("raw_uid"))]


def _tell(fed: Fed) -> None:
    if fed.note == DIED:
        logger.warning("run %s: %s; its %d events are in the catalog", fed.uid, fed.note, fed.events)
