"""How an engine comes to its result: what frames that it was not given say after each epoch, and when that was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bluesky_cdi.bench.machine import Stopwatch
from bluesky_cdi.bench.methods import Found
from bluesky_cdi.engines.ptychography import Solution
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.prediction import mean_deviance

# A course is at the image of another where it explains unseen frames as well but for this share.
NEAR = 0.02


@dataclass(frozen=True, eq=False)
class Mark:
    """What there was at a time.

    Attributes
    ----------
    found : Found
        With the time until then.
    unseen : float
        Mean deviance a pixel of the frames that were not given.
    """

    found: Found
    unseen: float


class Course:
    """Marks epochs while `iterate` makes them, as its `should_continue`; the watch stands while it looks.

    Parameters
    ----------
    unseen : Diffraction
        Frames that the engine is not given.
    watch : Stopwatch
        It runs while the engine does.
    until : float
        The course ends where the deviance of the unseen frames is this.
    least : int
        But not before so many epochs.

    Attributes
    ----------
    marks : list of Mark
        One an epoch.
    """

    def __init__(self, unseen: Diffraction, watch: Stopwatch, until: float = -math.inf, least: int = 0) -> None:
        self.marks: list[Mark] = []
        self._unseen, self._watch, self._until, self._least = unseen, watch, until, least

    def __call__(self, epochs: int, solution: Solution) -> bool:
        """Mark an epoch; whether there shall be another."""
        self._watch.stop()
        found = Found(solution.object, solution.probe, self._watch.seconds, self._watch.cpu_seconds, epochs)
        self.marks.append(Mark(found, mean_deviance(found.object, found.probe, self._unseen)))
        self._watch.start()
        return epochs < self._least or self.marks[-1].unseen > self._until


def first_near(marks: Sequence[Mark], deviance: float) -> Mark | None:
    """Find the first mark that explains unseen frames as well as a deviance says, but for `NEAR` of it."""
    return next((mark for mark in marks if mark.unseen <= (1 + NEAR) * deviance), None)
