"""What the worker's thread does: one message after the other, and the last refinements while nothing waits.

Each run has a job of its own. A run that has ended owes its last refinements; they are done while
nothing newer comes. As soon as another scan is announced or another run starts, the old run keeps
the estimate that it has, and the newer one has the thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bluesky_cdi.errors import BlueskyCDIError, WorkerError
from bluesky_cdi.live.activity import Activity
from bluesky_cdi.live.decisions import Scan
from bluesky_cdi.live.inbox import Inbox
from bluesky_cdi.live.messages import (
    Begin,
    Close,
    End,
    Fail,
    LeftOut,
    Message,
    PointsAfter,
    Request,
    Start,
    Wait,
    refuse,
    stopped,
)
from bluesky_cdi.live.newest_run import NewestRun
from bluesky_cdi.live.parts import Pace, WorkerParts
from bluesky_cdi.live.run_job import RunJob
from bluesky_cdi.live.waiting import Waiting
from bluesky_cdi.protocols import Estimate, Frame, ScanTicket

logger = logging.getLogger(__name__)

NOT_RUNNING = "the reconstruction worker is not running; start a new session. The raw run is intact."


class WorkerLoop:
    """Handles the messages of an inbox until one says to close.

    Parameters
    ----------
    parts : WorkerParts
    pace : Pace
    inbox : Inbox
    newest : NewestRun
        Learns what fails.
    activity : Activity
        Learns what the thread is at.
    """

    def __init__(self, parts: WorkerParts, pace: Pace, inbox: Inbox, newest: NewestRun, activity: Activity) -> None:
        self._parts, self._pace, self._inbox, self._newest, self._activity = parts, pace, inbox, newest, activity
        self._scan: Scan | None = None
        # The newest, open or not. Documents lag behind the plan: it may not be the run of the newest scan.
        self._job: RunJob | None = None
        self._waiting = Waiting()

    @property
    def latest(self) -> Estimate | None:
        """The newest estimate of the run that started last."""
        return None if self._job is None else self._job.estimate

    @property
    def has_open_run(self) -> bool:
        """Whether there is a run that is not finished."""
        return self._job is not None and self._job.is_open

    def run(self) -> None:
        """Handle messages until the worker is closed; then refuse what is left."""
        try:
            while self._turn():
                pass
        finally:
            # However the thread ends, no run stays open, and nobody may wait for it for ever.
            if self._job is not None and self._job.is_open:
                reason = "the reconstruction worker has ended"
                self._attempt("the end of a run", self._job.uid, self._job.abandon, reason)
            error = WorkerError(NOT_RUNNING)
            self._inbox.close(error)
            if self._scan is not None:
                self._scan.fail(error)
            self._waiting.refuse(error)

    def _turn(self) -> bool:
        """Handle everything in the inbox, then answer, then refine; False: close."""
        self._activity.begin(None)
        came = False
        for item in self._inbox.batch(None if self._job is None else self._job.rest_s):
            came = True
            if isinstance(item, Close):
                while self._finishing is not None:
                    self._refine(self._finishing, lambda: False)
                return False
            self._handle(item)
        if not came and self._finishing is None:
            self._handle([])
        if self._scan is not None and self._scan.can_decide:
            self._attempt("a decision", self._scan.uid, self._scan.serve, self._parts.points_of)
        if self._finishing is not None and not self._inbox.newer_run_waits():
            self._refine(self._finishing, self._inbox.newer_run_waits)
        self._waiting.answer(self._job, self._newest.error, self._parts.points_of)
        return True

    @property
    def _finishing(self) -> RunJob | None:
        """The job that owes its last refinements, if any."""
        return self._job if self._job is not None and self._job.is_finishing else None

    def _refine(self, job: RunJob, interrupted: Callable[[], bool]) -> None:
        self._attempt("a last refinement", job.uid, job.refine, self._activity.watched(interrupted))

    def _handle(self, item: list[Frame | LeftOut] | Message) -> None:
        match item:
            case list() if self._job is not None and self._job.is_open:
                interrupted = self._activity.watched(self._inbox.newer_run_waits)
                self._attempt("a step", self._job.uid, self._job.take, item, interrupted)
            case Begin():
                self._begin(item)
            case Request():
                self._ask(item)
            case Start():
                self._start(item)
            case End():
                self._end(item)
            case Fail():
                self._failed(item.uid, item.error)
            case Wait() | PointsAfter():
                self._waiting.take(item)

    def _ask(self, request: Request) -> None:
        if self._scan is None:
            refuse(request.answer, WorkerError("no adaptive scan has begun: call `begin` with an adaptive area first"))
        else:
            self._scan.ask(request)

    def _begin(self, message: Begin) -> None:
        if not message.answer.set_running_or_notify_cancel():
            return
        self._hand_back()
        if self._scan is not None:
            self._scan.refuse(WorkerError("a new scan has begun"))
        self._scan = None
        self._activity.begin("the start of a scan")
        try:
            scan = Scan(message.uid, self._parts.make_agent(message.area) if message.area.adaptive else None)
            ticket = ScanTicket(message.uid, scan.coverage_path_m)
        except Exception as err:  # noqa: BLE001 (whatever it is, the plan must hear of it)
            # Before the answer: whoever gets it may begin again, and that clears the error.
            self._failed(message.uid, err)
            message.answer.set_exception(stopped(err))
            return
        self._scan = scan
        message.answer.set_result(ticket)

    def _start(self, message: Start) -> None:
        self._hand_back()
        if self._job is not None and self._job.is_open:
            self._attempt("the end of a run", self._job.uid, self._job.abandon, "a new run has begun")
        scan = self._scan if self._scan is not None and self._scan.uid == message.uid else None
        is_decided_on = scan is not None and scan.is_adaptive
        self._job = RunJob(message.info, message.uid, self._parts, self._pace, is_decided_on=is_decided_on)
        if scan is not None:
            scan.job = self._job
        self._attempt("the start of a run", message.uid, self._job.open)

    def _end(self, message: End) -> None:
        if self._job is None:
            return
        if self._scan is not None and self._scan.job is self._job:
            self._scan.refuse(WorkerError("the run has ended"))
        self._job.end(message)

    def _hand_back(self) -> None:
        """Leave the last refinements of an old run undone: a newer one comes."""
        if self._finishing is not None:
            self._attempt("the end of a run", self._finishing.uid, self._finishing.hand_back)

    def _attempt(self, what: str, uid: str, step: Callable[..., None], *args: Any) -> None:
        """Do a step for a run; if it fails, give up on that run and go on with the next message."""
        self._activity.begin(what)
        try:
            step(*args)
        except Exception as err:  # noqa: BLE001 (whatever it is, the plan must hear of it)
            self._failed(uid, err)

    def _failed(self, uid: str, error: Exception) -> None:
        """Tell that a run's reconstruction failed to those whom it concerns."""
        job = self._job if self._job is not None and self._job.uid == uid else None
        logger.error(
            "the reconstruction of %s stopped: %s (the raw run is not affected)",
            "a scan" if job is None else f"run {job.info.scan_id}",
            error,
            # This package's own say all in their message.
            exc_info=None if isinstance(error, BlueskyCDIError) else error,
        )
        self._newest.fail(uid, error)
        if self._scan is not None and self._scan.uid == uid:
            self._scan.fail(stopped(error))
        if job is not None:
            job.fail(error)
