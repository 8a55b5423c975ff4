"""The causes of misfit of a run: named as its frames come, and told when they begin and when they end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.causes.beam import lost_beam, unsteady_flux
from bluesky_cdi.reconstruction.causes.finding import Finding
from bluesky_cdi.reconstruction.causes.look import Block, block_of, looked_at, saturated
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.tiles import IndexArray

logger = logging.getLogger(__name__)

# Frames that are scored together; how many such blocks are the newest, and how many before them are needed and kept.
EVERY, LATELY, LEAST_BEFORE, MOST_BEFORE = 8, 3, 4, 64
# Names of what no test explains.
LEFT = ("object", "unexplained")


@dataclass
class Report:
    """A cause of a run, the frames that show it, and whether the newest do."""

    cause: str
    says: str
    frames: list[int]
    from_start: bool
    goes_on: bool = True


class CauseWatch:
    """Looks at the newest frames of a run, block by block, and keeps what was found.

    Frames are scored once, when they have been reconstructed for the first time: those before were as new then as the
    newest are now, so that an object that isn't converged makes no difference. Blocks that show a cause are left out of
    what later ones are compared with.
    """

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._looked_at: set[int] = set()
        self.begin()

    def look(
        self,
        frames: MeasuredFrames,
        rows: IndexArray,
        embedding: FloatArray,
        obj: Tensor,
        probe: Tensor,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Look at the frames that are new, once they are enough.

        Parameters
        ----------
        frames : MeasuredFrames
            Those of the run by now.
        rows : ndarray, shape (n,)
            Rows of those of the newest epoch that are reconstructed, in the order of their numbers.
        embedding : ndarray, shape (n, d)
            Their features.
        obj : Tensor, shape (1, Y, X), complex64
            What was reconstructed from them.
        probe : Tensor, shape (1, M, N, N), complex64
            The probe.
        interrupted : callable, optional
            Asked before each block whether to leave the rest for the next time.
        """
        numbers = frames.table.seq_nums[rows]
        new = np.flatnonzero(~np.isin(numbers, list(self._looked_at)))
        for k in range(0, len(new) - EVERY + 1, EVERY):
            if interrupted():
                return
            part = new[k : k + EVERY]
            self._looked_at.update(numbers[part].tolist())
            data = frames.diffraction(rows[part])
            block = block_of(obj, probe, data, numbers[part], embedding[part])
            if not block.scores.are_finite:
                # An image that has run away says nothing of its frames; the verdict does.
                continue
            self._take(block)
            lately = frames.table.rows_of(number for block in self._lately for number in block.seq_nums.tolist())
            self._judge(list(unsteady_flux(frames, lately)))

    def look_for_light(self, frames: MeasuredFrames) -> None:
        """Tell of frames without light among the newest, as soon as they are known."""
        table = frames.table
        newest = table.rows[-EVERY * LATELY :]
        dark = table.seq_nums[newest[np.isin(newest, frames.light.dark)]]
        self._tell(list(lost_beam(frames, newest)), dark.tolist(), lambda cause: cause == "beam")

    def notes(self, frames: int) -> list[dict[str, Any]]:
        """Say what an estimate of so many frames keeps, as plain values; see `evaluation.causes`."""
        return [
            {
                "cause": each.cause,
                "says": each.says,
                "frames": None if each.from_start else [min(each.frames), max(each.frames)],
                "share": 1.0 if each.from_start else min(1.0, len(set(each.frames)) / max(frames, 1)),
                "goes_on": each.goes_on,
            }
            for each in self._reports
        ]

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give what was reported, and which frames were looked at."""
        reports = json.dumps([asdict(each) for each in self._reports])
        return {"reports": np.array(reports), "looked_at": np.array(sorted(self._looked_at), np.int64)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave, if anything; later frames are compared with each other only."""
        # Checkpoints of before have another name for them, or none.
        reports = state.get("reports", state.get("told"))
        if reports is not None:
            self._reports = [Report(**each) for each in json.loads(str(reports))]
            self._looked_at = set(state["looked_at"].tolist())

    def begin(self) -> None:
        """Forget all blocks: under another probe, what frames asked of the one before is no measure."""
        self._before: list[Block] = []
        self._sums: FloatArray | None = None
        self._lately: list[Block] = []
        self._shows: list[bool] = []
        self._is_left = False

    def _take(self, block: Block) -> None:
        """Take a block in; the oldest of the newest becomes one of before, unless it showed a cause."""
        self._lately.append(block)
        self._shows.append(False)
        if len(self._lately) <= LATELY:
            return
        oldest, shows = self._lately.pop(0), self._shows.pop(0)
        if shows:
            return
        self._sums = oldest.sums if self._sums is None else self._sums + oldest.sums
        self._before.append(replace(oldest, sums=np.zeros((2, 0, 0))))
        if len(self._before) > MOST_BEFORE:
            self._before = self._before[::2]

    def _judge(self, found: list[Finding]) -> None:
        if len(self._lately) < LATELY:
            return
        if self._sums is not None and len(self._before) >= LEAST_BEFORE:
            found = looked_at(self._before, self._sums, self._lately, found)
        else:
            found += saturated(self._lately)
        # What nothing explains is told at the second look: the first may be too early to know the cause.
        left = {each.cause for each in found if each.cause in LEFT}
        if not self._is_left:
            found = [each for each in found if each.cause not in LEFT]
        self._is_left = bool(left)
        if found or left:
            self._shows = [True] * len(self._shows)
        numbers = [number for block in self._lately for number in block.seq_nums.tolist()]
        self._tell(found, numbers, lambda cause: cause != "beam")

    def _tell(self, found: Sequence[Finding], numbers: Sequence[int], is_asked: Callable[[str], bool]) -> None:
        """Note and log what begins and what has ended, of the causes that were looked for."""
        going_on = {each.cause: each for each in self._reports if each.goes_on and is_asked(each.cause)}
        for finding in found:
            report = going_on.pop(finding.cause, None)
            if report is None:
                report = Report(finding.cause, finding.says, [], finding.from_start)
                self._reports.append(report)
                logger.warning("%s: %s", finding.cause, finding.says)
            report.says = finding.says
            report.frames = sorted({*report.frames, *numbers})
        for each in going_on.values():
            each.goes_on = False
            logger.info("%s: over, the newest frames are as those before", each.cause)
