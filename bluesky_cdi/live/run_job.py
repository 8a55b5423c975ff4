"""The reconstruction of one run, from its start to its last refinement."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from bluesky_cdi.errors import FrameError, GeometryError, WorkerError
from bluesky_cdi.evaluation.verdict import fault_of, verdict_said, with_verdict
from bluesky_cdi.live.messages import End, LeftOut
from bluesky_cdi.live.parts import Checkpoint, Pace, Recorder, WorkerParts
from bluesky_cdi.protocols import Estimate, Frame, Reconstructor, RunInfo

logger = logging.getLogger(__name__)

Interrupted = Callable[[], bool]


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

    Attributes
    ----------
    estimate : Estimate or None
        The newest.
    ingested : int
        The highest number of a frame that was taken or left out: no decision may wait for one that was left out.
    is_open : bool
    """

    def __init__(self, info: RunInfo, uid: str, parts: WorkerParts, pace: Pace) -> None:
        self.info, self.uid = info, uid
        self.estimate: Estimate | None = None
        self.ingested = 0
        self.is_open = True
        self._parts, self._pace, self._listeners = parts, pace, list(parts.listeners)
        self._reconstructor: Reconstructor | None = None
        self._recorder: Recorder | None = None
        self._state = _SavedState(None, pace.checkpoint_s)
        self._left_out = LeftOutFrames(info.scan_id)
        self._taken: set[int] = set()
        self._fault = ""
        self._ended: End | None = None
        self._steps_left, self._deadline = pace.final_steps, 0.0

    @property
    def is_finishing(self) -> bool:
        """Whether the run has ended and its last refinements have not."""
        return self.is_open and self._ended is not None

    def open(self) -> None:
        """Make recorder and reconstructor."""
        self._recorder = self._parts.make_recorder(self.info, self.uid)
        self._reconstructor = self._parts.make_reconstructor(self.info)
        if self._parts.make_checkpoint is not None:
            self._state = _SavedState(self._parts.make_checkpoint(self.info, self.uid), self._pace.checkpoint_s)

    def take(self, messages: Sequence[Frame | LeftOut], interrupted: Interrupted) -> None:
        """Add frames, reconstruct, tell everybody.

        Parameters
        ----------
        messages : sequence of Frame or LeftOut
            In the order in which they came.
        interrupted : callable
            Whether to come back before the time for a step is over.
        """
        frames = [message for message in messages if isinstance(message, Frame)]
        refused = self._add(frames)
        left_out = refused | {m.seq_num: m.error for m in messages if isinstance(m, LeftOut)}
        for seq_num in sorted(left_out):
            self._left_out.add(seq_num, left_out[seq_num])
        self._taken.update(frame.seq_num for frame in frames if frame.seq_num not in refused)
        if len(frames) > len(refused):
            self._step(interrupted)
        self.ingested = max(self.ingested, *(message.seq_num for message in messages))

    def end(self, message: End) -> None:
        """Learn that no more frames come; `refine` is due until it closes the job."""
        self._ended = message
        self._deadline = time.monotonic() + self._pace.final_s

    def refine(self, interrupted: Interrupted) -> None:
        """Do one of the last refinements; finish where none is left, none helps, or time is over.

        Parameters
        ----------
        interrupted : callable
            As in `take`.
        """
        if self._steps_left > 0 and time.monotonic() < self._deadline:
            self._steps_left -= 1
            if self._step(interrupted):
                return
        self.finish()

    def finish(self) -> None:
        """End the derived run with the estimate as it is; the state is kept only where frames may be taken in later.

        Raises
        ------
        FrameError, GeometryError, ScanFileError
            If most frames could not be used: why the first of them could not.
        WorkerError
            If no estimate was good enough to be shown.
        """
        used = 0 if self.estimate is None else self.estimate.n_frames
        if self._left_out.error is not None and self._left_out.unusable > used:
            raise self._left_out.error
        if self._fault and self.estimate is None:
            raise WorkerError(
                f"no image of the run was good enough to be shown: {self._fault}. "
                "Check the assumed probe, the geometry and the frames."
            )
        self._close(*self._outcome())
        if self._left_out.behind:
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

    def _add(self, frames: Sequence[Frame]) -> dict[int, Exception | None]:
        """Add frames; give those that the reconstructor refuses, by number, with the reason."""
        if not frames or self._reconstructor is None:
            return {}
        try:
            self._reconstructor.add(frames)
        except (FrameError, GeometryError) as err:
            if len(frames) == 1:
                return {frames[0].seq_num: err}
            return {seq_num: error for frame in frames for seq_num, error in self._add([frame]).items()}
        return {}

    def _step(self, interrupted: Interrupted) -> bool:
        """Reconstruct for a while; whether that gave a new estimate."""
        if self._reconstructor is None or self._recorder is None:
            return False
        estimate = self._reconstructor.step(self._pace.step_s, interrupted)
        if estimate is None:
            return False
        before, self._fault = self._fault, fault_of(estimate)
        if self._fault:
            if not before:
                logger.warning(
                    "the image of run %s is not shown: %s. The last good one stays.", self.info.scan_id, self._fault
                )
            return True
        self.estimate = estimate
        self._recorder.publish(estimate)
        self._tell(estimate)
        self._state.save_if_due(self._reconstructor)
        return True

    def _tell(self, estimate: Estimate) -> None:
        """Call the listeners; one that raises is told in the log and hears no more of this run."""
        for listener in list(self._listeners):
            try:
                listener(estimate)
            except Exception as err:
                logger.exception("a listener failed, and hears no more of run %s: %r", self.info.scan_id, err)
                self._listeners.remove(listener)

    def _outcome(self) -> tuple[str, str]:
        """Exit status and reason of the derived run, as far as the raw run tells them."""
        status, reason = ("fail", "") if self._ended is None else (self._ended.exit_status, self._ended.reason)
        older = ""
        if self._fault and self.estimate is not None:
            older = f"the image is that of {self.estimate.n_frames} frames; the last one was not good: {self._fault}"
        return status, "; ".join(filter(None, [reason, self._left_out.summary, older]))

    def _close(self, exit_status: str, reason: str) -> None:
        try:
            self._judge()
        finally:
            self._end(exit_status, reason)

    def _end(self, exit_status: str, reason: str) -> None:
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
        # Frames that were taken and are in no image that may be shown are missing as well.
        shown = self.estimate.n_frames + len(self.estimate.source.get("dark_frames", ()))
        left_out = self._left_out.behind + self._left_out.unusable + max(0, len(self._taken) - shown)
        doubt = f"the last image was not good, this is an earlier one: {self._fault}" if self._fault else ""
        self.estimate = with_verdict(self.estimate, left_out=left_out, doubt=doubt)
        said = verdict_said(self.estimate.source)
        level = logging.INFO if said.startswith("good") else logging.WARNING
        logger.log(level, "the image of run %s is %s", self.info.scan_id, said)
        self._tell(self.estimate)


class LeftOutFrames:
    """Counts the frames of a run that are not in its reconstruction, and tells of the first.

    Parameters
    ----------
    scan_id : int
        The run's number, for people.

    Attributes
    ----------
    behind : int
        Frames that came while too many waited.
    unusable : int
        Frames that can't be used.
    error : Exception or None
        Why the first of these can't.
    """

    def __init__(self, scan_id: int) -> None:
        self._scan_id = scan_id
        self.behind = self.unusable = 0
        self.error: Exception | None = None

    def add(self, seq_num: int, error: Exception | None) -> None:
        """Count a frame.

        Parameters
        ----------
        seq_num : int
            Its number.
        error : Exception or None
            Why it can't be used; None: too many waited.
        """
        if error is None:
            self.behind += 1
            return
        self.unusable += 1
        if self.error is None:
            self.error = error
            logger.warning(
                "frame %d of run %s is left out of the image: %s Further ones are counted.",
                seq_num,
                self._scan_id,
                error,
            )

    @property
    def summary(self) -> str:
        """What was left out, as a reason of the derived run; empty where nothing was."""
        behind = f"{self.behind} frame(s) were left out: the reconstruction was behind" if self.behind else ""
        unusable = f"{self.unusable} frame(s) could not be used, first: {self.error}" if self.unusable else ""
        return "; ".join(filter(None, [behind, unusable]))


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

    def save_if_due(self, reconstructor: Reconstructor) -> None:
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
