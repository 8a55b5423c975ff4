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
        found[orientation] = _deviance(turned, probe, epochs, device)
    return OrientationCheck(found)


def _deviance(scan: Scan, probe: ComplexArray, epochs: int, device: str) -> float:
    import torch

    from bluesky_cdi.engines import make_engine
    from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
    from bluesky_cdi.physics.geometry import ObjectGrid
    from bluesky_cdi.physics.probes import scaled_to
    from bluesky_cdi.physics.propagators import propagator_of
    from bluesky_cdi.protocols import Frame
    from bluesky_cdi.reconstruction.frames import MeasuredFrames

    geometry = scan.geometry
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, geometry.pixel_m, geometry.frame_px)
    propagator = propagator_of(geometry, device)
    measured = MeasuredFrames(grid, torch.device(device), propagator=propagator, known_mask=scan.mask)
    measured.add(Frame(i + 1, scan.positions_m[i], counts) for i, counts in enumerate(np.asarray(scan.counts)))
    if scan.mask is not None:
        measured.use_mask(scan.mask)
    first = scaled_to(torch.from_numpy(np.asarray(probe, np.complex64)), max(measured.light.mean_photons(), 1.0))[None]
    vacuum = torch.ones((1, *grid.shape), dtype=torch.complex64, device=device)
    start = Solution.start(vacuum, first.to(device), measured.diffraction())
    # The guess of the probe decides between the twins, so it is held for a while.
    outcome = iterate(make_engine("lsqml", batch=16), start, Schedule(epochs, probe_from=epochs // 3))
    return outcome.solution.judged().mean_deviance
