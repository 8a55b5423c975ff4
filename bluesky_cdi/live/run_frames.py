"""The frames of one run: which are in its reconstruction, which are not, and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bluesky_cdi.errors import BlueskyCDIError, FrameError, GeometryError, ScanFileError
from bluesky_cdi.evaluation.missing import unreached
from bluesky_cdi.live.flow import FrameFlow
from bluesky_cdi.live.messages import LeftOut
from bluesky_cdi.protocols import Estimate, Frame, Reconstructor, RunInfo

logger = logging.getLogger(__name__)

Interrupted = Callable[[], bool]

# Frames that are read again are taken in together, as many as fit: a reconstructor looks at all that it has each time.
BATCH_BYTES = 2**26
# How often it is tried to read a frame again, and the time between two tries, seconds: its file may be written last of
# all.
TRIES, LATE_S = 3, 1.0
# How often it is asked whether something else is to be done while a file is waited for, seconds.
LOOK_S = 0.02


@dataclass
class _LeftOut:
    """Why a frame is not in, None where too many waited; what came of reading it again, and when that may be tried."""

    error: Exception | None
    again: str = ""
    tries: int = 0
    not_before: float = 0.0

    @property
    def is_readable(self) -> bool:
        """Whether nothing is wrong with it but that it wasn't there in time."""
        return self.error is None or isinstance(self.error, ScanFileError)

    @property
    def why(self) -> str:
        why = "too many frames waited" if self.error is None else str(self.error)
        return f"{why}; {self.again}" if self.again else why


class RunFrames:
    """Hands a run's frames to its reconstructor, and keeps account of those that this lacks.

    Parameters
    ----------
    info : RunInfo
        The run; `read_again`, where it has that, gives the frames that were left out.

    Attributes
    ----------
    ingested : int
        The highest number of a frame that was taken or left out: no decision may wait for one that was left out.
    flow : FrameFlow
        How many are where.
    """

    def __init__(self, info: RunInfo) -> None:
        self.ingested, self.flow = 0, FrameFlow()
        self._info = info
        self._taken: set[int] = set()
        self._left_out: dict[int, _LeftOut] = {}
        self._has_told = False

    def take(self, reconstructor: Reconstructor, messages: Sequence[Frame | LeftOut]) -> bool:
        """Add frames to a reconstructor; whether it took any.

        Parameters
        ----------
        reconstructor : Reconstructor
            The run's.
        messages : sequence of Frame or LeftOut
            In the order in which they came.
        """
        for message in messages:
            if isinstance(message, Frame):
                self.flow.receive(message.seq_num, message.arrived_s)
        refused = self._add(reconstructor, [message for message in messages if isinstance(message, Frame)])
        taken = False
        for message in messages:
            if isinstance(message, LeftOut):
                self._leave_out(message.seq_num, message.error)
            elif message.seq_num in refused:
                self._leave_out(message.seq_num, refused[message.seq_num])
            else:
                taken = True
                self._taken.add(message.seq_num)
                self._left_out.pop(message.seq_num, None)
        self.ingested = max(self.ingested, *(message.seq_num for message in messages))
        return taken

    def read_again(self, reconstructor: Reconstructor, budget_s: float, interrupted: Interrupted) -> bool:
        """Read frames that were left out again from their files, for a while; whether the reconstructor took any.

        Parameters
        ----------
        reconstructor : Reconstructor
            The run's.
        budget_s : float
            No further frame is read after this time, seconds.
        interrupted : callable
            Whether to come back before.
        """
        now, before = time.monotonic(), len(self._left_out)
        batch: list[Frame] = []
        for seq_num in self.owed:
            if interrupted() or time.monotonic() >= now + budget_s:
                break
            if self._left_out[seq_num].not_before <= now and (frame := self._read(seq_num)) is not None:
                batch.append(frame)
            if sum(frame.counts.nbytes for frame in batch) >= BATCH_BYTES:
                self.take(reconstructor, batch)
                batch = []
        if batch:
            self.take(reconstructor, batch)
        if came := before - len(self._left_out):
            logger.info("%d frame(s) of run %s were read again from their files", came, self._info.scan_id)
        return came > 0

    @staticmethod
    def wait(interrupted: Interrupted) -> None:
        """Wait for the files of frames that are owed, until it is time to try again.

        Parameters
        ----------
        interrupted : callable
            Whether to come back before.
        """
        until = time.monotonic() + LATE_S
        while time.monotonic() < until and not interrupted():
            time.sleep(LOOK_S)

    @property
    def owed(self) -> list[int]:
        """Numbers of the frames that may yet be read again."""
        if self._info.read_again is None:
            return []
        return sorted(s for s, left_out in self._left_out.items() if left_out.is_readable and left_out.tries < TRIES)

    @property
    def errors(self) -> list[Exception]:
        """Why frames can't be used, of each that can't."""
        return [left_out.error for left_out in self._left_out.values() if left_out.error is not None]

    def may_come_later(self, estimate: Estimate | None) -> bool:
        """Tell whether frames are missing that the raw run may give to who goes on with it.

        Parameters
        ----------
        estimate : Estimate or None
            The final one.
        """
        if any(left_out.is_readable for left_out in self._left_out.values()):
            return True
        return estimate is not None and bool(unreached(estimate, self._taken - self._left_out.keys()))

    def missing_in(self, estimate: Estimate) -> dict[int, str]:
        """Say of the run's frames that are not in an estimate why; those without light, which it names, are none.

        Parameters
        ----------
        estimate : Estimate
            Of the run.
        """
        why = unreached(estimate, self._taken | self._left_out.keys())
        return {n: self._left_out[n].why if n in self._left_out else late for n, late in why.items()}

    @property
    def summary(self) -> str:
        """What was left out, as a reason of the derived run; empty where nothing was."""
        errors = self.errors
        behind = len(self._left_out) - len(errors)
        said = f"{behind} frame(s) were left out: the reconstruction was behind" if behind else ""
        bad = f"{len(errors)} frame(s) could not be used, first: {errors[0]}" if errors else ""
        return "; ".join(filter(None, [said, bad]))

    def _add(self, reconstructor: Reconstructor, frames: Sequence[Frame]) -> dict[int, Exception]:
        """Add frames; give those that the reconstructor refuses, by number, with the reason."""
        if not frames:
            return {}
        try:
            reconstructor.add(frames)
        except (FrameError, GeometryError) as err:
            if len(frames) == 1:
                return {frames[0].seq_num: err}
            return {seq_num: error for frame in frames for seq_num, error in self._add(reconstructor, [frame]).items()}
        return {}

    def _leave_out(self, seq_num: int, error: Exception | None) -> None:
        left_out = self._left_out[seq_num] = _LeftOut(error)
        self.flow.leave_out(seq_num, is_bad=not left_out.is_readable)
        if error is not None and not self._has_told:
            self._has_told = True
            logger.warning(
                "frame %d of run %s is left out of the image: %s Further ones are counted.",
                seq_num,
                self._info.scan_id,
                error,
            )

    def _read(self, seq_num: int) -> Frame | None:
        """Read a frame again; None where that fails, which is kept."""
        left_out = self._left_out[seq_num]
        left_out.tries, left_out.not_before = left_out.tries + 1, time.monotonic() + LATE_S
        try:
            frame = None if self._info.read_again is None else self._info.read_again(seq_num)
        except ScanFileError as err:
            left_out.again = f"read again: {err}"
        except BlueskyCDIError as err:
            self._leave_out(seq_num, err)
        else:
            if frame is not None:
                return frame
            left_out.again, left_out.tries = "it is in no file to be read again from", TRIES
        if left_out.tries >= TRIES:
            self.flow.leave_out(seq_num, is_bad=True)
        return None
