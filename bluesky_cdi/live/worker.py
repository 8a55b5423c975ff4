"""The thread that owns the reconstruction: frames and questions in, estimates and decisions out.

The RunEngine's thread and the document callbacks only put messages into this thread's inbox; all
computing happens here. The policy of the inbox: messages keep their order; frames that came
while a step was running are taken together by the next step, which keeps all and reads as many as it
has time for (`Tempo`); when more frames wait than memory is for, the newest is left out, counted, and
logged: the scan never waits for the reconstruction to catch up. Only its number is kept. After the
run's last frame those that were left out are read again from their files.

A newer run comes first: as soon as another scan is announced or another run starts, an old run that
has ended keeps the estimate that it has, and its last refinements are left undone.

If a run's reconstruction fails, the open questions of its scan are answered with `WorkerError`, and
frames of it that arrive after that are ignored; what becomes of the scan is for its plan to say. A
failure is told as that of the run whose it is: no other scan hears of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.activity import Activity
from bluesky_cdi.live.inbox import Inbox, QueueLimits
from bluesky_cdi.live.loop import NOT_RUNNING, WorkerLoop
from bluesky_cdi.live.messages import (
    Begin,
    Close,
    End,
    Fail,
    LeftOut,
    PointsAfter,
    Request,
    Start,
    Wait,
    refuse,
    stopped,
)
from bluesky_cdi.live.newest_run import NewestRun
from bluesky_cdi.live.parts import Pace, WorkerParts
from bluesky_cdi.protocols import Estimate, Frame, Proposal, RunInfo, ScanArea, ScanTicket

logger = logging.getLogger(__name__)

# How long frames that documents have announced are waited for before a question about them, seconds.
DRAIN_S = 600.0


class LiveWorker:
    """Reconstructs runs as they are measured and decides where to measure next.

    It is the `FrameSink` of a `FrameAssembler` and the `ScanSource` of a plan.

    Parameters
    ----------
    parts : WorkerParts
    pace : Pace
    queue : QueueLimits, optional
        Of the frames that may wait.

    Attributes
    ----------
    activity : Activity
        Tells whether the thread gives signs of life.
    drain : callable, optional
        Waits, at most for some seconds, until the frames of all documents that have come were put here; whether they
        were. For who puts them here in another thread than that in which questions are asked.
    look : callable, optional
        Gives a `Future` of the next `live_view.sight.Sight` after one of a number, where somebody looks at the frames.
    error : Exception or None
        Why the reconstruction of the newest run failed.
    latest : Estimate or None
        The newest estimate.
    n_dropped : int
        Frames of the latest run that were left out because the queue was full.
    """

    def __init__(self, parts: WorkerParts, pace: Pace | None = None, *, queue: QueueLimits | None = None) -> None:
        self._pace = pace or Pace()
        self._inbox = Inbox(queue or QueueLimits())
        self._newest = NewestRun()
        self.activity = Activity(self._pace.step_s, self._pace.tune_s)
        self._loop = WorkerLoop(parts, self._pace, self._inbox, self._newest, self.activity)
        self.drain: Callable[[float], bool] | None = None
        self.look: Callable[[int], Future[Any]] | None = None
        self.n_dropped = 0
        self._thread = threading.Thread(target=self._loop.run, name="bluesky_cdi-worker", daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """Why the reconstruction of the newest run failed, if it did; a scan that was announced counts as a run."""
        return self._newest.error

    @property
    def latest(self) -> Estimate | None:
        """The newest estimate of the run that started last."""
        return self._loop.latest

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done, and no run is open."""
        return self._inbox.is_waited_for and not self._loop.has_open_run

    # What a plan calls.

    def begin(self, area: ScanArea, uid: str | None = None) -> Future[ScanTicket]:
        """Prepare for a scan; forget the one before, and its error.

        Parameters
        ----------
        area : ScanArea
            What will be scanned.
        uid : str, optional
            Of the derived run that its reconstruction will be; a new one by default.
        """
        message = Begin(area, self._newest.announce(uid), Future())
        self._inbox.put(message)
        return message.answer

    def request(self, n: int, after: int) -> Future[Proposal]:
        """Ask for positions.

        Parameters
        ----------
        n : int
            How many.
        after : int
            Number of the frame that must be in the reconstruction before they are decided.
        """
        message = Request(n, after, Future())
        self._inbox.put(message)
        return message.answer

    def points_after(self, after: int) -> Future[Sequence[Mapping[str, Any]]]:
        """Ask what the image of the run that is being measured says of its frames, once they are in it or left out.

        Parameters
        ----------
        after : int
            Number of the last of these frames.

        Returns
        -------
        Future
            Points of the frames that are in the image, as `WorkerParts.points_of` gives them; none without an image.
        """
        message = PointsAfter(after, Future())
        if self.drain is None:
            self._inbox.put(message)
        else:
            threading.Thread(target=_put_in_turn, args=(self.drain, self._inbox, message), daemon=True).start()
        return message.answer

    def check(self) -> None:
        """Raise `WorkerError` if the newest run's reconstruction failed or the thread is gone."""
        if self.error is not None:
            raise stopped(self.error) from self.error
        if self._inbox.is_closed:
            raise WorkerError(NOT_RUNNING)

    # What a frame assembler calls.

    def start_run(self, info: RunInfo) -> None:
        """Make ready for a run's frames."""
        self.n_dropped = 0
        self._inbox.put(Start(info, self._newest.start({**info.metadata, "uid": info.uid})))

    def put(self, frame: Frame) -> None:
        """Take a frame, or leave it out when too many wait."""
        if self._inbox.put(frame):
            return
        self.n_dropped += 1
        if self.n_dropped == 1:
            logger.warning(
                "the reconstruction is %d frames behind: "
                "frames are left out of the live image, and read again from their files after the run",
                self._inbox.frames,
            )

    def leave_out(self, seq_num: int, error: Exception) -> None:
        """Learn that a frame can't be used; the run goes on without it.

        Parameters
        ----------
        seq_num : int
            The event's number.
        error : Exception
            Why.
        """
        self._inbox.put(LeftOut(seq_num, error))

    def end_run(self, exit_status: str, reason: str, notes: Mapping[str, Any] | None = None) -> None:
        """Finish the run's reconstruction.

        Parameters
        ----------
        exit_status : str
            The stop document's: ``success``, ``abort`` or ``fail``.
        reason : str
            The stop document's.
        notes : Mapping, optional
            What the documents tell of the run as a whole, as `bluesky_cdi.protocols.RunInfo.notes`.
        """
        self._inbox.put(End(exit_status, reason, notes or {}))

    def fail(self, error: Exception, start: Mapping[str, Any]) -> None:
        """Give up on a run: its frames can't be used.

        Parameters
        ----------
        error : Exception
            Why.
        start : Mapping
            The run's start document.
        """
        self._inbox.put(Fail(self._newest.find(start), start, error))

    # What a session calls.

    def wait(self, timeout_s: float) -> None:
        """Wait until the latest run's reconstruction has ended.

        Raises
        ------
        WorkerError
            If it failed, or has not ended in time.
        """
        message = Wait(Future())
        self._inbox.put(message)
        try:
            message.answer.result(timeout_s)
        except TimeoutError as err:
            raise WorkerError(
                f"the reconstruction has not finished within {timeout_s:g} s; wait again, or close the session"
            ) from err
        self.check()

    def close(self, timeout_s: float = 30.0) -> None:
        """End the thread after what it is doing, the steps after a run's last frame included.

        Raises
        ------
        WorkerError
            If it has not ended `timeout_s` seconds after the time for the last refinements and what comes before them.
        """
        self._inbox.put(Close())
        limit_s = 2 * self._pace.final_s + timeout_s
        self._thread.join(limit_s)
        if self._thread.is_alive():
            raise WorkerError(f"the reconstruction has not ended within {limit_s:g} s; close again to wait longer")


def _put_in_turn(drain: Callable[[float], bool], inbox: Inbox, question: PointsAfter) -> None:
    """Ask after the documents that came before: the newest run may be one that they begin."""
    if drain(DRAIN_S):
        inbox.put(question)
    else:
        refuse(question.answer, WorkerError(f"the frames of the run could not all be read within {DRAIN_S:g} s"))
