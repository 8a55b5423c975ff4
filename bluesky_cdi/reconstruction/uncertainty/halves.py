"""Two objects from disjoint halves of the frames, and the noise that their difference shows.

What both halves share, a wrong probe or a network's habits, is in both and not in the difference; photon noise, and
errors of single positions or frames, are each half's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bluesky_cdi.errors import FrameError
from bluesky_cdi.evaluation.alignment import align
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE

# Cells along a side of the curve that frames are ordered by: finer than any step of a scan.
CURVE_CELLS = 2**16
# Part of a frame's width over which squared differences are averaged, and the fewest pixels: a deviation from 50
# independent ones is known to a tenth.
SMOOTHED, LEAST_PX = 8, 7
# Fewest frames that have two halves, and pixels that both must illuminate to be brought into one gauge.
LEAST_FRAMES, LEAST_PIXELS = 2, 16

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HalfObjects:
    """Objects of two disjoint halves of the frames, in one gauge.

    Attributes
    ----------
    first, second : Tensor, shape (Y, X), complex64
        Without the phase ramp and the complex scale between each and the object that they were brought to.
    light : Tensor, shape (2, Y, X)
        Photons per pixel of each half.
    both : Tensor, shape (Y, X), bool
        Where both halves measured the object.
    n_frames : int
        Frames of both.
    """

    first: Tensor
    second: Tensor
    light: Tensor
    both: Tensor
    n_frames: int


def is_second_half(positions: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Divide frames into two halves that lie between one another: as on a checkerboard, where they are on a grid.

    Every other frame along a Hilbert curve, on which neighbours are neighbours in the plane, so both halves cover
    what all frames cover, whatever their order in time (Skilling, AIP Conf. Proc. 707, 381 (2004), has the curve).

    Parameters
    ----------
    positions : ndarray, shape (n, 2)
        Of the frames, in any unit of length.

    Returns
    -------
    ndarray, shape (n,), bool
        True for the frames of the second half, half of all to within one.
    """
    along = _along_curve(np.asarray(positions, np.float64))
    second = np.zeros(len(along), np.bool_)
    second[np.argsort(along, kind="stable")[1::2]] = True
    return second


def split(data: Diffraction) -> tuple[Diffraction, Diffraction]:
    """Divide the frames of one object into two halves that lie between one another; see `is_second_half`.

    Parameters
    ----------
    data : Diffraction
        The frames.

    Raises
    ------
    FrameError
        If there are fewer than two.
    """
    if len(data) < LEAST_FRAMES:
        raise FrameError(f"two halves need {LEAST_FRAMES} frames or more; there are {len(data)}")
    second = torch.from_numpy(is_second_half((data.corner + data.shift_px).cpu().numpy())).to(data.counts.device)
    return data[~second], data[second]


def half_objects(
    data: Diffraction, probe: Tensor, reconstruct: Callable[[Diffraction], Tensor], obj: Tensor | None = None
) -> HalfObjects | None:
    """Reconstruct the object from each half of its frames.

    Parameters
    ----------
    data : Diffraction
        All frames of one object.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes, which say where the halves illuminate the object.
    reconstruct : callable
        Makes an object (1, Y, X) of frames: a pass of a network, or iterations of an engine from some start.
    obj : Tensor, shape (1, Y, X), complex64, optional
        Object of all frames, to whose gauge both halves are brought; the first half's, if absent.

    Returns
    -------
    HalfObjects or None
        None where the halves have no place in common, of one frame for example, and where an object is not finite:
        its iterations have run away.
    """
    if len(data) < LEAST_FRAMES:
        return None
    halves = split(data)
    light = torch.cat([summed_illumination(probe, half) for half in halves])
    both = (light > MEASURED_SHARE * light.amax(dim=(-2, -1), keepdim=True)).all(dim=0)
    if int(both.sum()) < LEAST_PIXELS:
        return None
    first, second = (reconstruct(half)[0] for half in halves)
    weight = torch.where(both, light.prod(dim=0) / light.sum(dim=0).clamp_min(1e-9), 0.0)
    towards = first if obj is None else obj[0]
    if not all(bool(torch.isfinite(each).all()) for each in (first, second, towards)):
        return None
    first, second = (in_gauge_of(towards, half, weight) for half in (first, second))
    return HalfObjects(first, second, light, both, len(data))


def in_gauge_of(wanted: Tensor, obj: Tensor, weight: Tensor) -> Tensor:
    """Take the phase ramp and the complex scale out that stand between an object and another.

    Parameters
    ----------
    wanted, obj : Tensor, shape (Y, X), complex
        The other, and the one that is changed.
    weight : Tensor, shape (Y, X)
        How much each pixel counts.
    """
    found = align(*(each.cpu().numpy() for each in (obj, wanted, weight)), shift=False)
    return torch.from_numpy(found.object).to(obj)


def noise_of(halves: HalfObjects, window_px: int) -> Tensor:
    """Compute the deviations of noise in the object of all frames from the difference of two halves.

    Of noise that grows as the light falls, halves with light ``l1`` and ``l2`` differ with the variance of all frames
    times ``(l1 + l2)^2 / (l1 l2)``: four times, where they share the light evenly. The squared differences, weighted
    with the light that they speak of, are averaged over a window, which gives the variance of a pixel per photon there;
    far from all that both measured it is that of the whole object. Phases differ on the circle, so the average is that
    of the cosine: for differences of a wrapped normal distribution it is ``exp(-variance / 2)``.

    Parameters
    ----------
    halves : HalfObjects
        Objects of two halves of the frames.
    window_px : int
        Over how many pixels a side is averaged; odd.

    Returns
    -------
    Tensor, shape (2, Y, X)
        Standard deviation of amplitude, and of phase (radians), infinite where no light fell and where phases have
        nothing in common.
    """
    total = halves.light.sum(dim=0)
    weight = torch.where(halves.both, halves.light.prod(dim=0) / total, 0.0)
    amplitude = (halves.first.abs() - halves.second.abs()).square()
    alike = torch.cos(torch.angle(halves.first * halves.second.conj()))
    images = torch.stack([halves.both.to(total.dtype), weight, weight * amplitude, weight * alike])
    near = smoothed(images, window_px)
    least = 1 / window_px**2
    inside, light, of_amplitude, of_alike = torch.where(near[0] > least, near, images.mean(dim=(-2, -1))[:, None, None])
    of_phase = -2 * torch.log((of_alike / light).clamp(0.0, 1.0)) * light
    variance: Tensor = torch.stack([of_amplitude, of_phase]) / inside / total
    # Halves that don't differ at all would have no noise without light either.
    return torch.where(total > 0, variance.sqrt(), torch.inf)


def smoothed(images: Tensor, window_px: int) -> Tensor:
    """Average images twice over a square window: sums, to be divided by those of a mask.

    Parameters
    ----------
    images : Tensor, shape (k, Y, X)
        0 where they are not known.
    window_px : int
        Side of the window; odd.
    """
    half = window_px // 2
    for _ in range(2):
        rows = F.avg_pool2d(images[None], (window_px, 1), stride=1, padding=(half, 0))
        images = F.avg_pool2d(rows, (1, window_px), stride=1, padding=(0, half))[0]
    return images


def window_of(frame_px: int) -> int:
    """Give the side of the window that differences are averaged over, for frames of a size; odd, pixels."""
    return max(LEAST_PX, frame_px // SMOOTHED) | 1


def _along_curve(positions: npt.NDArray[np.float64]) -> IntArray:
    """Compute how far along a Hilbert curve over their bounding square positions (n, 2) lie, in cells."""
    if not len(positions):
        return np.zeros(0, np.int64)
    low = positions.min(axis=0)
    width = float((positions.max(axis=0) - low).max())
    cells = np.zeros(positions.shape, np.int64)
    if width > 0:
        cells = np.minimum((positions - low) / width * CURVE_CELLS, CURVE_CELLS - 1).astype(np.int64)
    x, y = cells[:, 1].copy(), cells[:, 0].copy()
    along, side = np.zeros(len(positions), np.int64), CURVE_CELLS // 2
    while side:
        right, below = (x & side) > 0, (y & side) > 0
        along += side * side * ((3 * right) ^ below)
        # The quarters at both ends of the curve are turned, so that it leads on from one to the next.
        turned = ~below
        mirrored = turned & right
        x[mirrored], y[mirrored] = CURVE_CELLS - 1 - x[mirrored], CURVE_CELLS - 1 - y[mirrored]
        x[turned], y[turned] = y[turned], x[turned]
        side //= 2
    return along
