"""What became of a run that was followed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bluesky_cdi.catalog import Catalog, find_results, load_result
from bluesky_cdi.catalog.feeder import PROCESSED, RAW, ended_files
from bluesky_cdi.errors import BlueskyCDIError, CatalogError
from bluesky_cdi.evaluation.missing import missing_count, missing_said
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.follow.pictures import Pictures
from bluesky_cdi.journal import start_of

logger = logging.getLogger(__name__)

LOOK_S = 0.1
# How long the catalog may take for a run before it is told without, seconds.
CATALOG_S = 120.0


@dataclass(frozen=True)
class Finished:
    """A run that was followed to its end.

    Attributes
    ----------
    raw_uid : str
        The run's.
    scan_id : int or None
        Its number.
    result_uid : str or None
        The derived run; None where there is no image.
    n_frames, n_missing : int
        Frames that the image rests on, and that it lacks.
    verdict : str
        ``good``, ``doubtful``, ``failed``, or empty without an image.
    said : str
        In words.
    picture : str or None
        File of the picture, if one is drawn.
    """

    raw_uid: str
    scan_id: int | None
    result_uid: str | None = None
    n_frames: int = 0
    n_missing: int = 0
    verdict: str = ""
    said: str = ""
    picture: str | None = None


class Reports:
    """Tells of each run once the catalog has it, in threads of its own.

    Parameters
    ----------
    catalog : Catalog
        Where results come to.
    journal : path
        Folder that it is fed from.
    tell : callable
        Takes a `Finished`; one at a time.
    pictures : Pictures, optional
        Draws the results.
    """

    def __init__(
        self, catalog: Catalog, journal: Path, tell: Callable[[Finished], None], pictures: Pictures | None = None
    ) -> None:
        self._catalog, self._journal, self._tell, self._pictures = catalog, journal, tell, pictures
        # Of who tells, and of the list of threads, which several lanes add to.
        self._lock, self._changing = threading.Lock(), threading.Lock()
        self._threads: list[threading.Thread] = []

    def report(self, uid: str, scan_id: int | None, error: Exception | None) -> None:
        """Tell of a run that is done; returns at once.

        Parameters
        ----------
        uid : str
            The run's.
        scan_id : int or None
            Its number.
        error : Exception or None
            Why its reconstruction failed.
        """
        thread = threading.Thread(target=self._run, args=(uid, scan_id, error), name="bluesky_cdi-report", daemon=True)
        with self._changing:
            thread.start()
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def close(self) -> None:
        """Wait until all is told."""
        for thread in self._threads:
            thread.join()

    def _run(self, uid: str, scan_id: int | None, error: Exception | None) -> None:
        try:
            finished = self._finished(uid, scan_id, error)
        except Exception as err:
            logger.exception("what became of run %s can't be told: %s", scan_id, err)
            return
        with self._lock:
            self._tell(finished)

    def _finished(self, uid: str, scan_id: int | None, error: Exception | None) -> Finished:
        why = "" if error is None else str(error)
        until = time.monotonic() + CATALOG_S
        while self._waits(uid):
            if time.monotonic() > until:
                return Finished(uid, scan_id, said=f"it waits in {self._journal} for the catalog. {why}".strip())
            time.sleep(LOOK_S)
        try:
            results = find_results(self._catalog, uid)
            if not results:
                return Finished(uid, scan_id, said=why or "there is no image of it")
            # A run that has come again may have one that is not complete yet.
            newest = ([each for each in results if each.complete] or results)[-1]
            result_uid = str(newest.uid)
            if not newest.complete:
                return Finished(uid, scan_id, result_uid, said=why or "the run failed, and its image is not final")
            estimate = load_result(self._catalog, result_uid)
        except CatalogError as err:
            return Finished(uid, scan_id, said=f"its image can't be read: {err}")
        said = "; ".join(filter(None, [verdict_said(estimate.source), missing_said(estimate.source), why]))
        verdict, missing = str(newest.verdict or ""), missing_count(estimate.source)
        picture = self._drawn(estimate, f"{scan_id}-{uid[:8]}")
        return Finished(uid, scan_id, result_uid, estimate.n_frames, missing, verdict, said, picture)

    def _drawn(self, estimate: object, name: str) -> str | None:
        if self._pictures is None:
            return None
        try:
            return str(self._pictures.draw(estimate, name))  # type: ignore[arg-type]
        except (OSError, BlueskyCDIError) as err:
            logger.warning("there is no picture of run %s: %s", name, err)
            return None

    def _waits(self, uid: str) -> bool:
        """Tell whether something of a run, or of its result, that has ended is on its way to the catalog."""
        # Not what is written still: the same run may have come again.
        for path in ended_files(self._journal):
            if path.parent.name == RAW and path.stem == uid:
                return True
            if path.parent.name == PROCESSED and start_of(path).get("raw_uid") == uid:
                return True
        return False
