"""Faults that begin in the middle of a simulated scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.cases import Case, positions_of, true_probe
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import propagated
from bluesky_cdi.protocols import FloatArray

# How far the focus moves, metres; how far frames are off their places, pixels rms along each axis, and all of them.
MOVED_M, JITTER_PX, JUMP_PX = 100e-6, 1.5, (8.0, -6.0)
# Share of the light that is even background; times that patterns are averaged with their neighbours, each adding half a
# squared pixel to the variance along each axis.
BACKGROUND, SMEARED = 0.05, 2
# Highest count over the median of the frames' highest ones.
CEILING = 0.5
# Of a quarter of the detector; of a beam that is topped up; of what is left of a lost one, and for how many frames.
GAIN, WEAK, LOST, LOST_FRAMES = 0.7, 0.4, 0.002, 8
# Pixels that count much too much, and how many times the mean of a pixel.
NOISY, NOISE = 10, 30.0
# What comes after the case's own sample, and how many times thicker than usual it is.
OTHER_SAMPLE, OTHER_THICKNESS = "gold", 2.0


@dataclass(frozen=True, eq=False)
class Measured:
    """A scan with a fault.

    Attributes
    ----------
    counts : Tensor, shape (n, N, N)
        As the detector has them.
    positions_m : ndarray, shape (n, 2)
        As they are told.
    """

    counts: Tensor
    positions_m: FloatArray


class FaultyScan:
    """A scan that is measured well until a frame.

    Parameters
    ----------
    case : Case
        What is simulated.
    problem : Problem
        The same without a fault.
    seed : int
        Of the noise.
    start : int
        The first frame with the fault.
    """

    def __init__(self, case: Case, problem: Problem, seed: int, start: int) -> None:
        self.case, self.problem, self.start = case, problem, start
        self.late = slice(start, None)
        self.rng = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self.truth = torch.from_numpy(problem.truth)[None]
        self.probe = true_probe(case)[None]

    @property
    def well(self) -> Measured:
        """The scan without a fault."""
        return Measured(to_centre(self.problem.data.counts), positions_of(self.problem))

    def rate(self, probe: Tensor | None = None, truth: Tensor | None = None) -> Tensor:
        """Compute what all frames expect under a probe and of an object, as the detector has them."""
        data = self.problem.data
        rate = data.rate(
            data.probes(self.probe if probe is None else probe), data.patches(self.truth if truth is None else truth)
        )
        return to_centre(rate)

    def with_counts(self, rate: Tensor) -> Measured:
        """Measure the later frames anew, of a rate (n, N, N)."""
        counts = self.well.counts.clone()
        counts[self.late] = torch.poisson(rate[self.late], generator=self._generator)
        return Measured(counts, self.well.positions_m)

    def with_places(self, off_px: FloatArray) -> Measured:
        """Tell later frames' places wrongly by some pixels, (2,) or (n, 2)."""
        positions_m = self.well.positions_m.copy()
        positions_m[self.late] += np.broadcast_to(off_px, positions_m.shape)[self.late] * self.problem.pixel_m
        return Measured(self.well.counts, positions_m)


def _focus(scan: FaultyScan) -> Measured:
    wavelength_m = scan.case.geometry.wavelength_m
    return scan.with_counts(scan.rate(propagated(scan.probe[0], scan.problem.pixel_m, wavelength_m, MOVED_M)[None]))


def _jitter(scan: FaultyScan) -> Measured:
    return scan.with_places(JITTER_PX * scan.rng.standard_normal(scan.well.positions_m.shape))


def _jump(scan: FaultyScan) -> Measured:
    return scan.with_places(np.asarray(JUMP_PX))


def _background(scan: FaultyScan) -> Measured:
    rate = scan.rate()
    return scan.with_counts(rate + BACKGROUND * scan.case.dose / rate[0].numel())


def _smeared(scan: FaultyScan) -> Measured:
    rate = scan.rate()
    for axis in (-2, -1):
        for _ in range(SMEARED):
            rate = (torch.roll(rate, 1, axis) + 2 * rate + torch.roll(rate, -1, axis)) / 4
    return scan.with_counts(rate)


def _saturated(scan: FaultyScan) -> Measured:
    counts = scan.well.counts.clone()
    ceiling = max(1.0, round(CEILING * float(counts.amax(dim=(-2, -1)).median())))
    counts[scan.late] = counts[scan.late].clamp_max(ceiling)
    return Measured(counts, scan.well.positions_m)


def _dead_row(scan: FaultyScan) -> Measured:
    counts = scan.well.counts.clone()
    counts[scan.late, counts.shape[-1] // 2 + 5] = 0
    return Measured(counts, scan.well.positions_m)


def _noisy_pixels(scan: FaultyScan) -> Measured:
    counts, size = scan.well.counts.clone(), scan.well.counts.shape[-1]
    much = NOISE * scan.case.dose / size**2
    for y, x in scan.rng.integers(size, size=(NOISY, 2)).tolist():
        counts[scan.late, y, x] += torch.from_numpy(scan.rng.poisson(much, len(counts[scan.late]))).float()
    return Measured(counts, scan.well.positions_m)


def _gain(scan: FaultyScan) -> Measured:
    rate, half = scan.rate(), scan.well.counts.shape[-1] // 2
    rate[:, :half, :half] *= GAIN
    return scan.with_counts(rate)


def _lost(scan: FaultyScan) -> Measured:
    rate = scan.rate()
    rate[scan.start : scan.start + LOST_FRAMES] *= LOST
    return scan.with_counts(rate)


def _topped_up(scan: FaultyScan) -> Measured:
    rate = scan.rate()
    weak = torch.from_numpy(scan.rng.random(len(rate)) < 0.5)
    rate[weak] *= WEAK
    return scan.with_counts(rate)


def _other_object(scan: FaultyScan) -> Measured:
    shape, seed = scan.problem.truth.shape, int(scan.rng.integers(2**31))
    other = make_sample(OTHER_SAMPLE, shape, seed, thickness=OTHER_THICKNESS)
    return scan.with_counts(scan.rate(truth=torch.from_numpy(other)[None]))


# What goes wrong, and the causes that name it.
FAULTS: Mapping[str, tuple[Callable[[FaultyScan], Measured], tuple[str, ...]]] = {
    "focus moved": (_focus, ("probe",)),
    "places jitter": (_jitter, ("positions",)),
    "places jump": (_jump, ("positions",)),
    "background": (_background, ("background",)),
    "smeared": (_smeared, ("coherence",)),
    "saturated": (_saturated, ("saturation",)),
    "dead row": (_dead_row, ("detector",)),
    "noisy pixels": (_noisy_pixels, ("detector",)),
    "gain of a quarter": (_gain, ("detector",)),
    "beam lost": (_lost, ("beam",)),
    "beam unsteady": (_topped_up, ("flux",)),
    "another object": (_other_object, ("object",)),
}
