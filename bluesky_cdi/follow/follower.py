"""Follows the runs of a source: journal, catalog and workers, as a session has them, without a RunEngine."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.catalog import find_results
from bluesky_cdi.catalog.feeder import RAW, ended_files
from bluesky_cdi.config import Config
from bluesky_cdi.errors import CatalogError, JournalError, RefusedError
from bluesky_cdi.follow.finished import Finished, Reports
from bluesky_cdi.follow.intake import MADE_UP, Intake
from bluesky_cdi.follow.lanes import LaneRun, Lanes, Worker
from bluesky_cdi.follow.pictures import Pictures
from bluesky_cdi.follow.selection import Selection
from bluesky_cdi.follow.source import Cut, Message, Source
from bluesky_cdi.follow.worker import FOLLOWING, WorkerHere
from bluesky_cdi.journal import SUFFIX, Journal, start_of
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.remote import WorkerProcess
from bluesky_cdi.remote.setup import live_arguments
from bluesky_cdi.session import begin_catalog, fed_catalog

logger = logging.getLogger(__name__)

# Subfolder of the journal: the files that workers read, for as long as they need them.
FOLLOWED = "followed"
# How long a source is waited for at a time, and how often offsets are told to it, seconds.
LOOK_S, TELL_S = 0.2, 2.0
# How long the catalog may take for what a killed follower has left, before documents are taken, seconds.
LEFT_S = 60.0


class Follower:
    """Everything between a source of documents and the results; use it as a context manager.

    Parameters
    ----------
    config : Config
        All settings. Its geometry is that of runs that state none.
    source : Source
        Where documents come from; closed in the end.
    directory : path, optional
        Folder of the embedded catalog and of the journal; by default that of the configuration.
    selection : Selection, optional
        Which runs are taken.
    paths : SharedFolders, optional
        Where files of frames are here; without it, none is opened.
    at_once : int
        So many runs are reconstructed at a time.
    silent_s : float
        A run of which nothing has come for so long, and after which another one has begun, is ended, seconds.
    images : path, optional
        Folder for pictures.
    publish : Mapping, optional
        Where results are published: arguments of `bluesky_cdi.follow.publishing.publisher_of`.
    tell : callable, optional
        Takes a `Finished` for each run, in any thread.

    Raises
    ------
    CatalogError
        If the catalog can't be opened.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        directory: Path | str | None = None,
        *,
        selection: Selection | None = None,
        paths: SharedFolders | None = None,
        at_once: int = 2,
        silent_s: float = 600.0,
        images: Path | None = None,
        publish: Mapping[str, Any] | None = None,
        tell: Callable[[Finished], None] = lambda _: None,
    ) -> None:
        self.directory = Path(directory or config.catalog.directory).expanduser().resolve()
        self._config, self._source, self._silent_s = config, source, silent_s
        self._arguments = {**live_arguments(config, self.directory), "publish": publish}
        self._pictures = None if images is None else Pictures(images)
        self._scan_ids: dict[str, int | None] = {}
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        # Runs that were cut short by this follower's end: whoever comes next may have them whole.
        self._come_again: set[str] = set()
        self._is_closing, self._begun = False, 0
        self._told_at = time.monotonic()
        paths = paths or SharedFolders()
        with contextlib.ExitStack() as stack:
            stack.callback(source.close)
            _, address = begin_catalog(stack, self.directory, config.catalog, paths.here)
            self.catalog = fed_catalog(stack, self.directory, config.catalog, address())
            self._remove_left()
            self._journal = Journal(self.directory / "journal" / RAW)
            stack.callback(self._journal.close)
            self._reports = Reports(self.catalog, self.directory / "journal", tell, self._pictures)
            self._lanes = Lanes(self._worker, at_once, self._finish)
            self._intake = Intake(
                self, config.documents, selection or Selection(), paths, _metadata(config), self._is_known
            )
            self._stack = stack.pop_all()

    def run(self, is_told_to_end: Callable[[], bool] = lambda: False) -> None:
        """Follow until told to end; then take no further runs, and return when those under way have ended.

        Parameters
        ----------
        is_told_to_end : callable
            Asked again and again.
        """
        while True:
            if self._intake.takes_new and is_told_to_end():
                self._intake.takes_new = False
                logger.info("no further runs are taken; %d go on", len(self._intake.followed))
            if not self._intake.takes_new and not self._intake.followed:
                return
            item = self._source.next(LOOK_S)
            if isinstance(item, Message):
                self._intake.take(item)
            elif isinstance(item, Cut):
                self._intake.cut(item)
            self._look_after()

    def close(self, *, now: bool = False) -> None:
        """Finish what is under way.

        Parameters
        ----------
        now : bool
            Leave out runs that wait for a worker.
        """
        # In this order: results are in the catalog, and told, before the source learns that their runs are done.
        self._is_closing = True
        with self._stack:
            self._come_again.update(self._intake.followed)
            for uid in self._intake.followed:
                self._intake.let_go(uid, "the follower was ended in the middle of the run")
            self._lanes.close(now=now)
            self._reports.close()
            self._tell_source()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(now=err is not None)

    # What an intake calls.

    def begin(self, start: Mapping[str, Any]) -> None:
        """Take the first document of a run that is followed."""
        uid = str(start["uid"])
        kept = self.directory / "journal" / RAW / f"{uid}{SUFFIX}"
        # Another name each time: a run may come again, and a worker may know the file of before.
        self._begun += 1
        followed = self.directory / "journal" / FOLLOWED / f"{self._begun}-{uid}{SUFFIX}"
        if not _wait_until(lambda: not kept.exists(), LEFT_S):
            raise JournalError(f"what came of it before still waits for the catalog: {kept}")
        self._keep("start", start)
        self._scan_ids[uid] = start.get("scan_id")
        try:
            followed.parent.mkdir(exist_ok=True, mode=0o700)
            # The same file by another name: it stays when the catalog has all of it.
            os.link(kept, followed)
        except OSError as err:
            raise JournalError(
                f"the journal in {self.directory} needs files with two names (hard links), which that disk refuses: "
                f"{err}. Name a folder on another one (catalog.directory)."
            ) from err
        self._lanes.begin(LaneRun(uid, followed))

    def add(self, uid: str, name: str, doc: Mapping[str, Any]) -> None:
        """Take a further document."""
        if self._keep(name, doc):
            self._lanes.appended(uid, has_ended=name == "stop")

    def _keep(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Append a document to the journal, and wait where there is no room; False: it can never be kept."""
        told = False
        while True:
            try:
                self._journal(name, doc)
                return True
            except RefusedError as err:
                logger.error("left out: %s", err)
                return False
            except JournalError as err:
                if self._is_closing:
                    logger.error("left out: %s", err)
                    return False
                if not told:
                    logger.error("%s Documents wait meanwhile, and may be lost.", err)
                told = True
                time.sleep(LOOK_S)

    def _finish(self, uid: str, error: Exception | None) -> None:
        """Learn from a lane that a run is done."""
        self._reports.report(uid, self._scan_ids.pop(uid, None), error)
        self._done.put(uid)

    def _look_after(self) -> None:
        """Do what is due now and then."""
        if time.monotonic() - self._told_at >= TELL_S:
            self._intake.let_go_silent(self._silent_s)
            self._tell_source()
            self._told_at = time.monotonic()

    def _tell_source(self) -> None:
        while not self._done.empty():
            uid = self._done.get()
            # It may have been cut short, and be there once more.
            if uid not in self._come_again and not self._intake.is_open(uid):
                self._intake.offsets.release(uid)
        self._source.done_before(self._intake.offsets.done_before)

    def _worker(self, lane: int) -> Worker:
        listeners = [] if self._pictures is None else [self._pictures.live(lane)]
        if self._config.reconstructor.in_process:
            return WorkerHere(self._arguments, listeners)
        return WorkerProcess(FOLLOWING, self._arguments, listeners)

    def _is_known(self, uid: str) -> bool:
        """Tell whether the catalog has a run, with its own stop document and an image."""
        try:
            with self.catalog.reaching():
                stop = self.catalog.raw[uid].metadata.get("stop") if uid in self.catalog.raw else None
            if stop is None or str(stop["uid"]).startswith(MADE_UP):
                return False
            return any(each.complete for each in find_results(self.catalog, uid))
        except CatalogError as err:
            logger.warning("whether the catalog has the run %.8s is not known: %s", uid, err)
            return False

    def _remove_left(self) -> None:
        """Tell of runs that a killed follower has left, and wait until the catalog has them."""
        for path in (self.directory / "journal" / FOLLOWED).glob(f"*{SUFFIX}"):
            start = start_of(path)
            logger.warning(
                "the reconstruction of run %s was interrupted: `bluesky-cdi resume %.8s` goes on with it, unless the "
                "run comes again",
                start.get("scan_id", "?"),
                str(start.get("uid")),
            )
            path.unlink()
        if not _wait_until(lambda: not ended_files(self.directory / "journal"), LEFT_S):
            logger.warning("runs of before wait for the catalog")


def _wait_until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not (so := is_so()) and time.monotonic() < until:
        time.sleep(LOOK_S)
    return so


def _metadata(config: Config) -> dict[str, Any]:
    """Give what start documents get that they lack, as a session states it."""
    stated: dict[str, Any] = {"geometry": Geometry(**config.geometry.model_dump()).as_metadata()}
    if config.documents.monitor_key is not None:
        stated["monitor"] = config.documents.monitor_key
    return stated
