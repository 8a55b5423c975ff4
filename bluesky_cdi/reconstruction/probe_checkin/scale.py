"""A common error of all distances between positions, found by letting the positions go.

Positions that are refined with the object move towards their true distances, all alike; in noise they also move
apart, where less overlap fits more of it. How far noise alone moves them is seen on frames that are simulated from what
was found, at the assumed positions. Unseen frames err to the other side: positions pushed together overlap more, and
that alone explains an unseen frame better. So a scale has to please both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.probe_checkin.gain import SIGMAS

# With a right scale the estimate was within 0.5 % of 1 on simulated scans of 1e5 photons, and 1.2 % with a poor probe.
LEAST_CHANGE = 0.015
# Epochs of LSQ-ML with a held probe, the first that moves positions, frames a mini-batch, and room around the object.
# A first look takes fewer epochs; where it moves by less than a tenth of what is a finding, there is none.
EPOCHS, FIRST_EPOCHS, MOVE_FROM, BATCH, MARGIN_PX = 40, 15, 5, 6, 8
FIRST_CHANGE = 0.002
# What noise alone does may be at most this share of what is found.
MOST_NOISE = 0.5
# Positions go a part of the way at a time: the estimate is made again until it stays.
MOST_ESTIMATES, SETTLED = 5, 0.004


@dataclass(frozen=True)
class ScaleEstimate:
    """How much further apart positions want to be.

    Attributes
    ----------
    scale : float
        Factor on their distances.
    standard_error : float
        From the scatter of the single positions about it.
    """

    scale: float
    standard_error: float

    @property
    def sure(self) -> bool:
        """Whether it differs from 1 beyond doubt."""
        change = abs(self.scale - 1)
        return change > LEAST_CHANGE and change > SIGMAS * self.standard_error


def estimate_scale(data: Diffraction, probe: Tensor, allowed: Callable[[float], bool]) -> ScaleEstimate:
    """Estimate the common scale of the positions.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene.
    probe : Tensor, shape (M, N, N), complex64
        Held while the positions move.
    allowed : callable
        Asked whether a scale may be; one that may not is the last.

    Returns
    -------
    ScaleEstimate
    """
    first, _ = _estimate(rescaled(data, 1.0), probe, FIRST_EPOCHS)
    if abs(first.scale - 1) < FIRST_CHANGE:
        return first
    found = _settled(data, probe, first, allowed)
    if not found.sure:
        return found
    # The same once more where the assumed positions are known to be right.
    noise = _settled(_simulated(data, probe), probe, ScaleEstimate(1.0, 0.0), lambda _: True)
    if abs(noise.scale - 1) > MOST_NOISE * abs(found.scale - 1):
        return ScaleEstimate(1.0, math.inf)
    return ScaleEstimate(found.scale / noise.scale, math.hypot(found.standard_error, noise.standard_error))


def _settled(data: Diffraction, probe: Tensor, first: ScaleEstimate, allowed: Callable[[float], bool]) -> ScaleEstimate:
    """Estimate again from where the last estimate came to, until it stays or may not be."""
    total = first
    for _ in range(MOST_ESTIMATES):
        found, _ = _estimate(rescaled(data, total.scale), probe, EPOCHS)
        total = ScaleEstimate(total.scale * found.scale, found.standard_error)
        if abs(found.scale - 1) < SETTLED or not allowed(total.scale):
            break
    return total


def _simulated(data: Diffraction, probe: Tensor) -> Diffraction:
    """Draw frames of the object that the assumed positions give."""
    data = rescaled(data, 1.0)
    _, obj = _estimate(data, probe, EPOCHS, moves=False)
    rate = torch.cat([part.rate(part.probes(probe[None]), part.patches(obj)) for part in data.chunks(BATCH)])
    counts = torch.poisson(rate.cpu(), generator=torch.Generator().manual_seed(0)).to(rate.device)
    return replace(data, counts=counts)


def rescaled(data: Diffraction, scale: float) -> Diffraction:
    """Multiply the distances of positions from their middle, on an object of a fitting size.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene.
    scale : float
        The factor.
    """
    place = data.corner + data.shift_px.double()
    place = scale * (place - place.mean(dim=0))
    place = place - place.amin(dim=0).floor() + MARGIN_PX
    corner = place.round().long()
    sides = corner.amax(dim=0) + data.counts.shape[-1] + MARGIN_PX
    return replace(
        data,
        corner=corner,
        shift_px=(place - corner).to(data.shift_px.dtype),
        object_shape=(1, int(sides[0]), int(sides[1])),
        scene=None,
    )


def _estimate(data: Diffraction, probe: Tensor, epochs: int, moves: bool = True) -> tuple[ScaleEstimate, Tensor]:
    """Reconstruct from vacuum, with positions that move or not; returns their scale and the object."""
    vacuum = torch.ones(data.object_shape, dtype=torch.complex64, device=probe.device)
    engine = Lsqml(LsqmlSettings(batch=BATCH, together_from=-1))
    start = Solution.start(vacuum, probe[None], data)
    schedule = Schedule(epochs, probe_from=-1, positions_from=MOVE_FROM if moves else -1)
    solution = iterate(engine, start, schedule).solution
    before, after = (_about_the_middle(each) for each in (data, solution.data))
    power = before.square().sum()
    if not float(power) > 0:
        return ScaleEstimate(1.0, math.inf), solution.object
    scale = (before * after).sum() / power
    scatter = (after - scale * before).square().sum() / (before.numel() - 3)
    return ScaleEstimate(float(scale), float((scatter / power).sqrt())), solution.object


def _about_the_middle(data: Diffraction) -> Tensor:
    place = data.corner + data.shift_px.double()
    return place - place.mean(dim=0)
