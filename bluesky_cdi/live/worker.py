"""The thread that owns the reconstruction: frames and questions in, estimates and decisions out.

The RunEngine's thread and the document callbacks only put messages into this thread's inbox; all
computing happens here. The policy of the inbox: messages keep their order; frames that came
while a step was running are taken together by the next step; when more than `queue_frames` frames
wait, the newest is left out of the live reconstruction, counted, and logged. It stays in the
raw run: the scan never waits for the reconstruction to catch up.

If anything here fails, every open question is answered with `WorkerError`, so the plan ends and the
RunEngine closes the raw run; frames that arrive after that are ignored.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.protocols import (
    Agent,
    Estimate,
    FloatArray,
    Frame,
    Proposal,
    Reconstructor,
    RunInfo,
    ScanArea,
    ScanTicket,
)

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Keeps the estimates of one run; `bluesky_cdi.catalog.ResultPublisher` is one."""

    def publish(self, estimate: Estimate) -> None:
        """Keep an update."""

    def close(self, estimate: Estimate | None, exit_status: Any, reason: str) -> None:
        """Keep the final estimate and end."""


@dataclass(frozen=True, eq=False)
class WorkerParts:
    """What the worker is made of.

    Attributes
    ----------
    make_reconstructor : callable
        From a run to its reconstructor.
    make_agent : callable
        From the area of a scan to its agent.
    make_recorder : callable
        From a run and the uid of its derived run to the recorder.
    listeners : sequence of callable
        Called with each estimate, in the worker's thread: a live view, a history.
    """

    make_reconstructor: Callable[[RunInfo], Reconstructor]
    make_agent: Callable[[ScanArea], Agent]
    make_recorder: Callable[[RunInfo, str], Recorder]
    listeners: Sequence[Callable[[Estimate], None]] = ()


@dataclass(frozen=True, eq=False)
class _Begin:
    area: ScanArea
    uid: str
    answer: Future[ScanTicket]


@dataclass(frozen=True, eq=False)
class _LeftOut:
    """A frame that the full queue did not take."""

    seq_num: int


@dataclass(frozen=True, eq=False)
class _Request:
    n: int
    after: int
    answer: Future[Proposal]


@dataclass(frozen=True, eq=False)
class _Start:
    info: RunInfo


@dataclass(frozen=True, eq=False)
class _End:
    exit_status: str
    reason: str


@dataclass(frozen=True, eq=False)
class _Fail:
    error: Exception


@dataclass(frozen=True, eq=False)
class _Wait:
    answer: Future[None]


@dataclass(eq=False)
class _Scan:
    """What a plan announced, and what is known of its run by now."""

    uid: str
    agent: Agent | None
    ingested: int = 0
    estimate: Estimate | None = None
    requests: list[_Request] = field(default_factory=list)


_CLOSE = object()
NOT_RUNNING = "the reconstruction worker is not running; start a new session. The raw run is intact."


class LiveWorker:
    """Reconstructs runs as they are measured and decides where to measure next.

    It is the `FrameSink` of a `FrameAssembler` and the `ScanSource` of a plan.

    Parameters
    ----------
    parts : WorkerParts
    points_of : callable
        From an estimate to the points that the agent ingests.
    step_budget_s, final_budget_s : float
        Time for a step during the run, and for all steps after its last frame.
    final_steps : int
        Most steps after the last frame.
    queue_frames : int
        Frames that may wait.

    Attributes
    ----------
    error : Exception or None
        Why the latest run's reconstruction failed.
    latest : Estimate or None
        The newest estimate.
    n_dropped : int
        Frames of the latest run that were left out because the queue was full.
    """

    def __init__(
        self,
        parts: WorkerParts,
        points_of: Callable[[Estimate], Sequence[dict[str, Any]]],
        *,
        step_budget_s: float = 5.0,
        final_budget_s: float = 60.0,
        final_steps: int = 10,
        queue_frames: int = 2048,
    ) -> None:
        self._parts = parts
        self._points_of = points_of
        self._step_budget_s, self._final_budget_s, self._final_steps = step_budget_s, final_budget_s, final_steps
        self._queue_frames = queue_frames
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_frames = 0
        self.error: Exception | None = None
        self.latest: Estimate | None = None
        self.n_dropped = 0
        self._scan: _Scan | None = None
        # Of the open run. Documents lag behind the plan: its scan may not be the one announced last.
        self._run_scan: _Scan | None = None
        self._reconstructor: Reconstructor | None = None
        self._recorder: Recorder | None = None
        self._waiters: list[_Wait] = []
        self._ended = False
        self._thread = threading.Thread(target=self._main, name="bluesky_cdi-worker", daemon=True)
        self._thread.start()

    # What a plan calls.

    def begin(self, area: ScanArea) -> Future[ScanTicket]:
        """Prepare for a scan; forget the one before, and its error."""
        message = _Begin(area, str(uuid.uuid4()), Future())
        self.error = None
        self._ask(message)
        return message.answer

    def request(self, n: int, after: int) -> Future[Proposal]:
        """Ask for `n` positions, decided once frame number `after` is in the reconstruction."""
        message = _Request(n, after, Future())
        self._ask(message)
        return message.answer

    def check(self) -> None:
        """Raise `WorkerError` if the reconstruction failed or the thread is gone."""
        if self.error is not None:
            raise _stopped(self.error) from self.error
        if self._ended:
            raise WorkerError(NOT_RUNNING)

    # What a frame assembler calls.

    def start_run(self, info: RunInfo) -> None:
        """Make ready for a run's frames."""
        self.n_dropped = 0
        self._inbox.put(_Start(info))

    def put(self, frame: Frame) -> None:
        """Take a frame, or leave it out when too many wait."""
        with self._lock:
            full = self._waiting_frames >= self._queue_frames
            self._waiting_frames += not full
            self.n_dropped += full
        self._inbox.put(_LeftOut(frame.seq_num) if full else frame)
        if full and self.n_dropped == 1:
            logger.warning(
                "the reconstruction is %d frames behind: "
                "frames are left out of the live image (the raw run has them all)",
                self._queue_frames,
            )

    def end_run(self, exit_status: str, reason: str) -> None:
        """Finish the run's reconstruction."""
        self._inbox.put(_End(exit_status, reason))

    def fail(self, error: Exception) -> None:
        """Give up on the run: its frames can't be used."""
        self._inbox.put(_Fail(error))

    # What a session calls.

    def wait(self, timeout_s: float) -> None:
        """Wait until the latest run's reconstruction has ended.

        Raises
        ------
        WorkerError
            If it failed, or has not ended in time.
        """
        message = _Wait(Future())
        self._ask(message)
        try:
            message.answer.result(timeout_s)
        except TimeoutError as err:
            raise WorkerError(
                f"the reconstruction has not finished within {timeout_s:g} s; wait again, or close the session"
            ) from err
        self.check()

    def close(self, timeout_s: float = 30.0) -> None:
        """End the thread after what it is doing, the steps after a run's last frame included."""
        self._inbox.put(_CLOSE)
        self._thread.join(self._final_budget_s + timeout_s)

    # The thread.

    def _ask(self, message: _Begin | _Request | _Wait) -> None:
        self._inbox.put(message)
        # What came before the end is refused by the thread, what came after it here.
        if self._ended:
            self._refuse_all(WorkerError(NOT_RUNNING))

    def _main(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            # However the thread ends, no run stays open, and nobody may wait for it for ever.
            self._attempt(self._close_recorder, "fail", "the reconstruction worker has ended")
            self._ended = True
            self._refuse_all(WorkerError(NOT_RUNNING))

    def _turn(self) -> bool:
        """Handle everything in the inbox, then compute; False: close."""
        messages = [self._inbox.get()]
        while not self._inbox.empty():
            messages.append(self._inbox.get())
        frames: list[Frame | _LeftOut] = []
        for message in messages:
            if isinstance(message, (Frame, _LeftOut)):
                frames.append(message)
                with self._lock:
                    self._waiting_frames -= isinstance(message, Frame)
            elif message is _CLOSE:
                return False
            else:
                self._attempt(self._take, frames)
                frames = []
                self._attempt(self._handle, message)
        self._attempt(self._take, frames)
        self._attempt(self._serve)
        return True

    def _attempt(self, step: Callable[..., None], *args: Any) -> None:
        """Do a step; if it fails, give up on the run and go on with the next message."""
        try:
            step(*args)
        except Exception as err:  # noqa: BLE001 (whatever it is, the plan must hear of it)
            self._give_up(err)

    def _handle(self, message: Any) -> None:
        if isinstance(message, _Begin):
            self._prepare(message)
        elif isinstance(message, _Request):
            self._queue(message)
        elif isinstance(message, _Wait):
            self._waiters.append(message)
        elif isinstance(message, _Start):
            self._open(message.info)
        elif isinstance(message, _End):
            self._finish(message)
        elif isinstance(message, _Fail):
            raise message.error

    def _prepare(self, message: _Begin) -> None:
        if not message.answer.set_running_or_notify_cancel():
            return
        try:
            self._refuse_requests(WorkerError("a new scan has begun"))
            agent = self._parts.make_agent(message.area) if message.area.adaptive else None
            path: FloatArray = np.empty((0, 2)) if agent is None else agent.coverage_path()
            self._scan = _Scan(message.uid, agent)
        except Exception as err:  # noqa: BLE001 (as in `_attempt`)
            # Before the answer: whoever gets it may begin again, and that clears the error.
            self._give_up(err)
            message.answer.set_exception(_stopped(err))
            return
        message.answer.set_result(ScanTicket(message.uid, path))

    def _queue(self, request: _Request) -> None:
        if self._scan is None or self._scan.agent is None:
            _refuse(request.answer, WorkerError("no adaptive scan has begun: call `begin` with an adaptive area first"))
        else:
            self._scan.requests.append(request)

    def _open(self, info: RunInfo) -> None:
        self._close_recorder("fail", "a new run has begun")
        self.error, self.latest = None, None
        # A derived run belongs to one raw run: one that was not announced gets a uid of its own.
        announced = self._scan is not None and info.metadata.get("reconstruction_uid") == self._scan.uid
        self._run_scan = self._scan if announced else None
        uid = self._run_scan.uid if self._run_scan else str(uuid.uuid4())
        self._recorder = self._parts.make_recorder(info, uid)
        self._reconstructor = self._parts.make_reconstructor(info)

    def _take(self, messages: Sequence[Frame | _LeftOut]) -> None:
        """Add frames, reconstruct, tell everybody."""
        if not messages or self._reconstructor is None:
            return
        frames = [message for message in messages if isinstance(message, Frame)]
        if frames:
            self._reconstructor.add(frames)
            self._tell(self._reconstructor.step(self._step_budget_s))
        if self._run_scan is not None:
            # No decision may wait for a frame that was left out.
            self._run_scan.ingested = max(self._run_scan.ingested, *(message.seq_num for message in messages))

    def _tell(self, estimate: Estimate | None) -> None:
        if estimate is None:
            return
        self.latest = estimate
        if self._run_scan is not None:
            self._run_scan.estimate = estimate
        if self._recorder is not None:
            self._recorder.publish(estimate)
        for listener in self._parts.listeners:
            listener(estimate)

    def _serve(self) -> None:
        """Answer the questions whose frames are in, and those who wait for the end of the run."""
        if self._recorder is None:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.answer.set_result(None)
        scan = self._scan
        if scan is None:
            return
        ready = [r for r in scan.requests if r.after <= scan.ingested]
        scan.requests = [r for r in scan.requests if r.after > scan.ingested]
        for request in ready:
            if self.error is not None:
                _refuse(request.answer, _stopped(self.error))
            elif scan.agent is not None and request.answer.set_running_or_notify_cancel():
                self._decide(request, scan.agent, scan.estimate)

    def _decide(self, request: _Request, agent: Agent, estimate: Estimate | None) -> None:
        """Answer a question with what the agent proposes from the scan's newest estimate."""
        try:
            started = time.perf_counter()
            if estimate is not None:
                agent.ingest(self._points_of(estimate))
            proposal = agent.propose(request.n)
            known = 0 if estimate is None else estimate.n_frames
            proposal = replace(proposal, n_ingested=known, decision_s=time.perf_counter() - started)
        except Exception as err:  # noqa: BLE001 (as in `_attempt`)
            self._give_up(err)
            request.answer.set_exception(_stopped(err))
            return
        request.answer.set_result(proposal)

    def _finish(self, message: _End) -> None:
        if self._run_scan is self._scan:
            self._refuse_requests(WorkerError("the run has ended"))
        deadline = time.monotonic() + self._final_budget_s
        for _ in range(self._final_steps):
            if self._reconstructor is None or time.monotonic() >= deadline:
                break
            estimate = self._reconstructor.step(self._step_budget_s)
            if estimate is None:
                break
            self._tell(estimate)
        reason = message.reason or (f"{self.n_dropped} frames were left out" if self.n_dropped else "")
        self._close_recorder(message.exit_status, reason)
        self._reconstructor = None

    def _give_up(self, err: Exception) -> None:
        logger.error("the reconstruction stopped: %s (the raw run is not affected)", err, exc_info=err)
        self.error = err
        self._reconstructor = None
        self._refuse_requests(_stopped(err))
        try:
            self._close_recorder("fail", str(err))
        except Exception as second:
            logger.exception("the derived run could not be closed either: %s", second)

    def _close_recorder(self, exit_status: str, reason: str) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close(self.latest, exit_status, reason)

    def _refuse_requests(self, err: WorkerError) -> None:
        if self._scan is not None:
            requests, self._scan.requests = self._scan.requests, []
            for request in requests:
                _refuse(request.answer, err)

    def _refuse_all(self, err: WorkerError) -> None:
        """Refuse the open questions and those still in the inbox."""
        self._refuse_requests(err)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _refuse(waiter.answer, err)
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, (_Begin, _Request, _Wait)):
                    _refuse(message.answer, err)


def _stopped(err: Exception) -> WorkerError:
    """The error that a plan sees, made from the worker's."""
    if isinstance(err, WorkerError):
        return err
    what = f"{type(err).__name__}: {err}".rstrip(".")
    return WorkerError(f"the reconstruction worker stopped: {what}. The raw run is intact.")


def _refuse(answer: Future[Any], err: Exception) -> None:
    if not answer.done() and answer.set_running_or_notify_cancel():
        answer.set_exception(err)
