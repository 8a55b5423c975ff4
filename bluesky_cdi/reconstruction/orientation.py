"""Which way round the frames of a recorded scan lie: checked by what explains them best.

Rows and columns of a detector may run along either axis of the stage, in either direction: eight
orientations. In a wrong one neighbouring frames contradict each other, and a short reconstruction shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.short_trial import short_deviance

if TYPE_CHECKING:
    from bluesky_cdi.io import Scan

# Another orientation is better only if its deviance is below this share of the stated one's.
CLEARLY = 0.9


@dataclass(frozen=True)
class Orientation:
    """How positions are turned to match the frames: exchanged first, then their signs.

    Parameters
    ----------
    swap : bool
        y and x exchanged.
    flip_y, flip_x : bool
        Sign of y, of x turned.
    """

    swap: bool = False
    flip_y: bool = False
    flip_x: bool = False

    def turn(self, positions_m: FloatArray) -> FloatArray:
        """Turn positions (n, 2) into this orientation.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            (y, x), metres.
        """
        turned = positions_m[:, ::-1] if self.swap else positions_m
        return np.asarray(turned * np.where([self.flip_y, self.flip_x], -1.0, 1.0))

    def __str__(self) -> str:
        changes = [
            *(["y and x exchanged"] if self.swap else []),
            *(["y's sign turned"] if self.flip_y else []),
            *(["x's sign turned"] if self.flip_x else []),
        ]
        return " and ".join(changes) or "as they are"


AS_STATED = Orientation()
ALL = tuple(Orientation(s, y, x) for s in (False, True) for y in (False, True) for x in (False, True))


@dataclass(frozen=True, eq=False)
class OrientationCheck:
    """How well each orientation explains the frames.

    Attributes
    ----------
    deviance : dict
        Mean Poisson deviance per valid pixel after a short reconstruction, by orientation.
    """

    deviance: dict[Orientation, float]

    @property
    def best(self) -> Orientation:
        """The orientation with the lowest deviance."""
        return min(self.deviance, key=lambda o: self.deviance[o])

    @property
    def better(self) -> Orientation | None:
        """An orientation clearly better than the stated one, if there is one."""
        return self.best if self.deviance[self.best] < CLEARLY * self.deviance[AS_STATED] else None


def check_orientation(
    scan: Scan,
    probe: ComplexArray,
    *,
    frames: int = 64,
    epochs: int = 12,
    device: str = "cpu",
    on_progress: Callable[[Orientation], None] | None = None,
) -> OrientationCheck:
    """Reconstruct a small part of a scan in each of the eight orientations.

    The positions are turned and not the frames, for the probe belongs to the frames. In the far field
    one pair of orientations, that differ in both signs, is told apart by the probe alone (the
    other is the object's conjugate twin): there a poor guess of the probe can't decide.

    Parameters
    ----------
    scan : Scan
        The recorded scan.
    probe : ndarray, shape (modes, N, N), complex
        First guess; refined on the way.
    frames : int
        Frames to use: those nearest to the middle of the scan.
    epochs : int
        Epochs of LSQ-ML for each orientation.
    device : str
        PyTorch device.
    on_progress : callable, optional
        Called before each orientation.
    """
    part = scan.subset(nearest_to_middle(scan.positions_m, frames))
    found = {}
    for orientation in ALL:
        if on_progress is not None:
            on_progress(orientation)
        turned = replace(part, positions_m=orientation.turn(part.positions_m))
        found[orientation] = short_deviance(turned, probe, epochs, device)
    return OrientationCheck(found)
