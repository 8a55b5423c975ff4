"""Several runs reconstructed at once, a worker each; further ones wait for their turn."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bluesky_cdi.errors import WorkerError

logger = logging.getLogger(__name__)

# A worker that is not done after this time is waited for again, seconds.
WAIT_S = 600.0
# For the end of a worker when all is done, seconds.
CLOSE_S = 120.0


class Worker(Protocol):
    """Reconstructs the runs in files of a journal; what a `WorkerProcess` is."""

    @property
    def error(self) -> Exception | None:
        """Why the reconstruction of the newest run failed, if it did."""

    def appended(self, path: Path) -> None:
        """Learn that a run's file has grown."""

    def wait(self, timeout_s: float) -> None:
        """Wait until the latest run's reconstruction has ended; raises `WorkerError` if it failed or takes longer."""

    def close(self, timeout_s: float) -> None:
        """End after what is being done."""


@dataclass(eq=False)
class LaneRun:
    """A run on its way through a lane.

    Attributes
    ----------
    uid : str
        The run's.
    path : Path
        File of its documents, which is this run's until it is done.
    has_ended : bool
        Whether its stop document is in the file.
    """

    uid: str
    path: Path
    has_ended: bool = False


class Lanes:
    """Gives each run a worker of its own, for as long as its reconstruction takes.

    Workers are made when they are needed, and kept. A run that has to wait is read from its file later.

    Parameters
    ----------
    make_worker : callable
        Makes a worker; takes its number, from 0.
    most : int
        So many workers.
    done : callable
        Called with a run's uid and, if its reconstruction failed, the error; in any thread.
    """

    def __init__(
        self, make_worker: Callable[[int], Worker], most: int, done: Callable[[str, Exception | None], None]
    ) -> None:
        self._make_worker, self._most, self._done = make_worker, most, done
        self._changed = threading.Condition()
        self._workers: list[Worker] = []
        self._runs: dict[int, LaneRun] = {}
        self._waiting: deque[LaneRun] = deque()

    def begin(self, run: LaneRun) -> None:
        """Take a run, whose file may have documents already."""
        with self._changed:
            if (lane := self._free_lane()) is None:
                logger.info("the run %.8s waits: %d others are being reconstructed", run.uid, len(self._runs))
                self._waiting.append(run)
            else:
                self._give(lane, run)

    def appended(self, uid: str, *, has_ended: bool) -> None:
        """Learn that a run's file has grown.

        Parameters
        ----------
        uid : str
            The run's.
        has_ended : bool
            Whether that was its last document.
        """
        with self._changed:
            for run in self._waiting:
                if run.uid == uid:
                    run.has_ended = has_ended
            for lane, run in self._runs.items():
                if run.uid == uid:
                    run.has_ended = has_ended
                    self._advance(lane, run)

    def close(self, *, now: bool) -> None:
        """Wait until all runs that were taken are done, then end the workers.

        Parameters
        ----------
        now : bool
            Leave out those that wait for a worker. Those whose stop document has not come are cut off in any case.
        """
        with self._changed:
            if now:
                while self._waiting:
                    run = self._waiting.popleft()
                    logger.warning(
                        "the run %.8s was not reconstructed: its turn had not come. `bluesky-cdi resume %.8s` does it.",
                        run.uid,
                        run.uid,
                    )
                    run.path.unlink(missing_ok=True)
            self._changed.wait_for(lambda: not any(run.has_ended for run in (*self._runs.values(), *self._waiting)))
        for worker in self._workers:
            try:
                worker.close(CLOSE_S)
            except WorkerError as err:
                logger.error("%s", err)

    def _free_lane(self) -> int | None:
        free = [lane for lane in range(len(self._workers)) if lane not in self._runs]
        if not free and len(self._workers) < self._most:
            self._workers.append(self._make_worker(len(self._workers)))
            free = [len(self._workers) - 1]
        return free[0] if free else None

    def _give(self, lane: int, run: LaneRun) -> None:
        self._runs[lane] = run
        self._advance(lane, run)

    def _advance(self, lane: int, run: LaneRun) -> None:
        self._workers[lane].appended(run.path)
        if run.has_ended:
            name = f"bluesky_cdi-lane-{lane}"
            threading.Thread(target=self._finish, args=(lane, run), name=name, daemon=True).start()

    def _finish(self, lane: int, run: LaneRun) -> None:
        """Wait until a run is done, and give its worker the next one."""
        error: Exception | None = None
        try:
            error = self._outcome(self._workers[lane])
        finally:
            run.path.unlink(missing_ok=True)
            # Before the lane counts as free: who closes must find it told.
            self._done(run.uid, error)
            with self._changed:
                del self._runs[lane]
                if self._waiting:
                    self._give(lane, self._waiting.popleft())
                self._changed.notify_all()

    def _outcome(self, worker: Worker) -> Exception | None:
        while True:
            try:
                worker.wait(WAIT_S)
                return None
            except WorkerError as err:
                # Without an error of the worker's own it only takes longer.
                if worker.error is not None:
                    return err
