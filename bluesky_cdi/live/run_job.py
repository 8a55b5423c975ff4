"""The reconstruction of one run, from its start to its last refinement."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.evaluation.missing import with_missing
from bluesky_cdi.evaluation.motion import with_run_notes
from bluesky_cdi.evaluation.pipeline import pipeline_said
from bluesky_cdi.evaluation.verdict import fault_of, verdict_said, with_verdict
from bluesky_cdi.live.messages import End, LeftOut
from bluesky_cdi.live.parts import Checkpoint, Pace, Recorder, WorkerParts
from bluesky_cdi.live.run_frames import Interrupted, RunFrames
from bluesky_cdi.live.steps import Steps
from bluesky_cdi.protocols import RAW_UID, Estimate, Frame, LooksBeside, Reconstructor, RunInfo

logger = logging.getLogger(__name__)


class RunJob:
    """Reconstructs one run: frames in, estimates out to the recorder and the listeners.

    It is open from `open` to `finish`, `hand_back` or `fail`; between `end` and these it owes its last
    refinements. What goes wrong is raised; whoever calls decides, and calls `fail`.

    Parameters
    ----------
    info : RunInfo
        The raw run.
    uid : str
        Of the derived run.
    parts : WorkerParts
    pace : Pace
    is_decided_on : bool
        Whether a scan asks for decisions from its images.

    Attributes
    ----------
    estimate : Estimate or None
        The newest.
    frames : RunFrames
        Which frames are in, and which are not.
    ingested : int
        The highest number of a frame that was taken or left out: no decision may wait for one that was left out.
    is_open : bool
    """

    def __init__(self, info: RunInfo, uid: str, parts: WorkerParts, pace: Pace, *, is_decided_on: bool = False) -> None:
        self.info, self.uid = info, uid
        self.estimate: Estimate | None = None
        self.frames, self.ingested = RunFrames(info), 0
        self.is_open = True
        self._parts, self._pace, self._listeners = parts, pace, _Listeners(parts.listeners, info.scan_id)
        self._is_decided_on = is_decided_on
        self._reconstructor: Reconstructor | None = None
        self._look_beside: _LookBeside | None = None
        self._steps: Steps | None = None
        self._recorder: Recorder | None = None
        self._state = _SavedState(None, pace.checkpoint_s)
        self._fault = ""
        self._ended: End | None = None
        self._steps_left, self._deadline = pace.final_steps, 0.0

    @property
    def is_finishing(self) -> bool:
        """Whether the run has ended and its last refinements have not."""
        return self.is_open and self._ended is not None

    @property
    def rest_s(self) -> float | None:
        """Time after which something is due though nothing comes, seconds; None: nothing is."""
        if self.is_finishing:
            return 0.0
        return self._steps.rest_s if self.is_open and self._steps is not None else None

    def open(self) -> None:
        """Make recorder and reconstructor."""
        self._recorder = self._parts.make_recorder(self.info, self.uid)
        self._reconstructor = self._parts.make_reconstructor(self.info)
        self._steps = Steps(self._reconstructor, self._pace, self.frames.flow, always_full=self._is_decided_on)
        if self._parts.make_checkpoint is not None:
            self._state = _SavedState(self._parts.make_checkpoint(self.info, self.uid), self._pace.checkpoint_s)

    def take(self, messages: Sequence[Frame | LeftOut], interrupted: Interrupted) -> None:
        """Add frames, reconstruct, tell everybody.

        Parameters
        ----------
        messages : sequence of Frame or LeftOut
            In the order in which they came; none where nothing came for a while.
        interrupted : callable
            Whether to come back before the time for a step is over.
        """
        if self._reconstructor is None or self._steps is None:
            return
        is_taken = bool(messages) and self.frames.take(self._reconstructor, messages)
        self.ingested = self.frames.ingested
        if is_taken or not messages:
            self._show(self._steps.make(interrupted, paused=not messages))

    def end(self, message: End) -> None:
        """Learn that no more frames come; `refine` is due until it closes the job."""
        self._ended = message
        self._deadline = time.monotonic() + self._pace.final_s
        if self._reconstructor is not None and isinstance(self._reconstructor, LooksBeside):
            self._look_beside = _LookBeside(self._reconstructor, self._pace.step_s, self._deadline)

    def refine(self, interrupted: Interrupted) -> None:
        """Read frames again that were left out, and do one of the last refinements; finish where that is all.

        It ends where nothing is missing that may come and no refinement helps, or where time is over. That begins, and
        steps count, once no further frames come into the image: it is not final before it has all. Where there is but a
        quick image, a full one is due in any case. Refinements wait for what a look beside the image may change; that
        does not count as their time.

        Parameters
        ----------
        interrupted : callable
            As in `take`.
        """
        began = time.monotonic()
        has_settled = self._steps_left == 0 or self._look_beside is None or self._look_beside.wait(interrupted)
        self._deadline += time.monotonic() - began
        if not has_settled:
            return
        owes_full = self._steps is not None and self._steps.owes_full
        if (self._steps_left > 0 or owes_full) and time.monotonic() < self._deadline:
            unread = self.frames.flow.unread
            if self._reconstructor is not None and self._steps_left > 0:
                self.frames.read_again(self._reconstructor, self._pace.step_s, interrupted)
            is_new = self._steps is not None and self._show(self._steps.make(interrupted, paused=True))
            if self.frames.flow.unread < unread:
                self._deadline = time.monotonic() + self._pace.final_s
            else:
                self._steps_left -= 1
            if is_new:
                return
            if self.frames.owed and self._steps_left > 0:
                self.frames.wait(interrupted)
                return
        self.finish(interrupted)

    def finish(self, interrupted: Interrupted) -> None:
        """End the derived run with the estimate as it is; the state is kept only where frames may be taken in later.

        Parameters
        ----------
        interrupted : callable
            Whether to leave the check of predicted errors out; it is also where the time for the end is over.

        Raises
        ------
        FrameError, GeometryError, ScanFileError
            If most frames could not be used: why the first of them could not.
        WorkerError
            If no estimate was good enough to be shown.
        """
        used, errors = 0 if self.estimate is None else self.estimate.n_frames, self.frames.errors
        if len(errors) > used:
            raise errors[0]
        if self._fault and self.estimate is None:
            raise WorkerError(
                f"no image of the run was good enough to be shown: {self._fault}. "
                "Check the assumed probe, the geometry and the frames."
            )
        if self._reconstructor is not None and self.estimate is not None and not self._fault:
            self.estimate = _checked(
                self._reconstructor, self.estimate, lambda: time.monotonic() >= self._deadline or interrupted()
            )
        self._close(*self._outcome())
        if self.frames.may_come_later(self.estimate):
            self._state.save(self._reconstructor)
        else:
            self._state.remove()

    def hand_back(self) -> None:
        """End the derived run before the last refinements, with the best estimate so far; keep the state for later."""
        self._state.save(self._reconstructor)
        status, reason = self._outcome()
        self._close(status, "; ".join(filter(None, [reason, "a newer run came before the last refinements"])))
        logger.info("run %s keeps its image as it is: a newer run came before the last refinements", self.info.scan_id)

    def abandon(self, reason: str) -> None:
        """End the derived run as failed, in the middle of the run; keep the state for later."""
        self._state.save(self._reconstructor)
        self._close("fail", reason)

    def fail(self, error: Exception) -> None:
        """End the derived run as failed, with the last good estimate.

        Parameters
        ----------
        error : Exception
            Why.
        """
        try:
            self._close("fail", str(error))
        except Exception as second:
            logger.exception("the derived run of run %s could not be closed either: %s", self.info.scan_id, second)

    def _show(self, estimate: Estimate | None) -> bool:
        """Tell everybody of a new estimate, if it is good; whether there is one."""
        if estimate is None or self._recorder is None:
            return False
        before, self._fault = self._fault, fault_of(estimate)
        if self._fault:
            if not before:
                logger.warning(
                    "the image of run %s is not shown: %s. The last good one stays.", self.info.scan_id, self._fault
                )
            return True
        self.estimate = estimate = replace(estimate, source={**estimate.source, RAW_UID: self.info.uid})
        self._recorder.publish(estimate)
        self._listeners.tell(estimate)
        self._state.save_if_due(self._reconstructor)
        return True

    def _outcome(self) -> tuple[str, str]:
        """Exit status and reason of the derived run, as far as the raw run tells them."""
        status, reason = ("fail", "") if self._ended is None else (self._ended.exit_status, self._ended.reason)
        older = ""
        if self._fault and self.estimate is not None:
            older = f"the image is that of {self.estimate.n_frames} frames; the last one was not good: {self._fault}"
        return status, "; ".join(filter(None, [reason, self.frames.summary, older]))

    def _close(self, exit_status: str, reason: str) -> None:
        try:
            self._judge()
        finally:
            recorder, self._recorder = self._recorder, None
            self.is_open = False
            try:
                if recorder is not None:
                    recorder.close(self.estimate, exit_status, reason)
            finally:
                if self._reconstructor is not None:
                    self._reconstructor.close()

    def _judge(self) -> None:
        """Note in the final estimate whether it can be believed, and tell everybody."""
        if self.estimate is None:
            return
        doubt = f"the last image was not good, this is an earlier one: {self._fault}" if self._fault else ""
        missing = self.frames.missing_in(self.estimate)
        by_now = self.info.notes_by_now
        notes = self._ended.notes if self._ended is not None else {} if by_now is None else by_now()
        noted = self.frames.flow.noted(with_run_notes(self.estimate, notes))
        self.estimate = with_verdict(with_missing(noted, missing), doubt=doubt)
        logger.info("run %s: %s", self.info.scan_id, pipeline_said(self.estimate.source))
        said = verdict_said(self.estimate.source)
        level = logging.INFO if said.startswith("good") and not missing else logging.WARNING
        logger.log(level, "the image of run %s is %s", self.info.scan_id, said)
        self._listeners.tell(self.estimate)


def _checked(reconstructor: Reconstructor, estimate: Estimate, interrupted: Interrupted) -> Estimate:
    """Hold predicted errors against the frames; where that fails, it is told, and they stay as they are."""
    try:
        return reconstructor.checked(estimate, interrupted)
    except Exception as err:
        logger.exception("predicted errors can't be checked, and stay as they are: %s", err)
        return estimate


class _Listeners:
    """Those who hear of each estimate of a run.

    Parameters
    ----------
    listeners : sequence of callable
        They take an estimate.
    scan_id : int
        The run's number, for people.
    """

    def __init__(self, listeners: Sequence[Callable[[Estimate], None]], scan_id: int) -> None:
        self._listeners, self._scan_id = list(listeners), scan_id

    def tell(self, estimate: Estimate) -> None:
        """Call them; one that raises is told in the log and hears no more of this run."""
        for listener in list(self._listeners):
            try:
                listener(estimate)
            except Exception as err:
                logger.exception("a listener failed, and hears no more of run %s: %r", self._scan_id, err)
                self._listeners.remove(listener)


class _LookBeside:
    """What a reconstructor looks for beside the image, at the end of a run.

    Parameters
    ----------
    reconstructor : LooksBeside
    step_s : float
        Longest time of one wait, seconds.
    ends : float
        When it is over in any case, as `time.monotonic` tells it.
    """

    def __init__(self, reconstructor: LooksBeside, step_s: float, ends: float) -> None:
        self._reconstructor, self._step_s, self._ends = reconstructor, step_s, ends

    def wait(self, interrupted: Interrupted) -> bool:
        """Wait a little; whether it is over. What has not been found by its end is given up."""
        until = min(time.monotonic() + self._step_s, self._ends)
        is_settled = self._reconstructor.settle(lambda: time.monotonic() >= until or interrupted())
        if is_settled or time.monotonic() < self._ends:
            return is_settled
        self._reconstructor.give_up()
        return True


class _SavedState:
    """The state of a reconstruction on disk; where it can't be written, that is told once and nothing ends.

    Parameters
    ----------
    checkpoint : Checkpoint or None
        None: nothing is kept.
    every_s : float
        Time between two writings, seconds.
    """

    def __init__(self, checkpoint: Checkpoint | None, every_s: float) -> None:
        self._checkpoint, self._every_s = checkpoint, every_s
        self._saved_at = time.monotonic()

    def save_if_due(self, reconstructor: Reconstructor | None) -> None:
        if time.monotonic() >= self._saved_at + self._every_s:
            self.save(reconstructor)

    def save(self, reconstructor: Reconstructor | None) -> None:
        if self._checkpoint is None or reconstructor is None:
            return
        try:
            self._checkpoint.save(reconstructor.checkpoint())
        except Exception as err:
            logger.exception("the state of the reconstruction can't be kept: %s (the reconstruction goes on)", err)
            self._checkpoint = None
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.remove()
        except OSError as err:
            logger.exception("the state of a finished reconstruction can't be removed: %s", err)
