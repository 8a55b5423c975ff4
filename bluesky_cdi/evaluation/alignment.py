"""Making an estimate and a truth comparable: registration, phase ramp, scale, and which pixels count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation._checks import BoolArray, Weight, checked, weighted_energy
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.protocols import ComplexArray, FloatArray

# Registration under a mask leans towards zero shift, so it is repeated until nothing moves; two or
# three passes do, the others are for poor images.
PASSES = 6


@dataclass(frozen=True, eq=False)
class Aligned:
    """An estimate and a truth made comparable, and what stood between them.

    Both are on the estimate's grid, where its coverage and its predicted errors are: the truth is
    moved, since it is known beyond the border of what was measured and so loses nothing.

    Attributes
    ----------
    object : ndarray, shape (Y, X), complex128
        The estimate without its ramp, times `scale`.
    truth : ndarray, shape (Y, X), complex128
        The truth displaced by `shift_px`.
    shift_px : tuple of float
        (y, x) by which the estimate was displaced from the truth, pixels.
    ramp_rad_per_px : tuple of float
        (y, x) slope of the linear phase that the estimate had, radians per pixel.
    scale : complex
        Factor that brings the estimate closest to the truth.
    """

    object: npt.NDArray[np.complex128]
    truth: npt.NDArray[np.complex128]
    shift_px: tuple[float, float]
    ramp_rad_per_px: tuple[float, float]
    scale: complex


def illuminated_mask(coverage: FloatArray | BoolArray, threshold: float = MEASURED_SHARE) -> BoolArray:
    """Tell which pixels have at least `threshold` of the highest coverage.

    Parameters
    ----------
    coverage : ndarray, shape (Y, X), real or bool
        Summed illumination, photons per pixel; a mask stays what it is.
    threshold : float
        Share of the maximum; `physics.illumination_shares` has them by purpose.

    Returns
    -------
    ndarray, shape (Y, X), bool

    Raises
    ------
    ValueError
        If nothing is illuminated.
    """
    highest = float(np.max(coverage, initial=0.0))
    if not (math.isfinite(highest) and highest > 0):
        raise ValueError(f"coverage must be finite and somewhere positive; its maximum is {highest}: no frame is in it")
    return np.asarray(coverage >= threshold * highest)


def wrap_rad(phase_rad: FloatArray) -> FloatArray:
    """Bring angles into [-pi, pi).

    Parameters
    ----------
    phase_rad : ndarray
        Angles, radians.
    """
    return np.asarray((np.asarray(phase_rad) + np.pi) % (2 * np.pi) - np.pi)


def align(
    estimate: ComplexArray,
    truth: ComplexArray,
    mask_or_weight: Weight,
    *,
    upsampling: int = 100,
    ramp: bool = True,
    shift: bool = True,
    max_shift_px: float = 16.0,
) -> Aligned:
    """Remove shift, linear phase ramp and complex scale, in this order.

    The shift is the maximum of the upsampled cross-correlation of Guizar-Sicairos, Thurman & Fienup,
    Opt. Lett. 33, 156 (2008). A ramp would smear that maximum, so a first guess of it, from the mean
    phase step between neighbouring pixels of each image, is taken out beforehand.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
        Objects on grids that agree but for a shift.
    mask_or_weight : ndarray, shape (Y, X)
        Weight of each pixel of the estimate, not negative; see `illuminated_mask`.
    upsampling : int
        Steps per pixel to which the shift is found.
    ramp, shift : bool
        Whether there is a ramp, a shift to remove. The scale is always removed.
    max_shift_px : float
        Largest shift looked for. A truth without contrast under the weight fixes no shift: 0.

    Raises
    ------
    ValueError
        If shapes differ, values are not finite, or the weight is negative or zero everywhere.
    """
    image, target, weight = checked(estimate, truth, mask_or_weight)
    if upsampling < 1 or not max_shift_px >= 0:
        raise ValueError(f"upsampling must be 1 or more, max_shift_px 0 or more; they are {upsampling}, {max_shift_px}")
    slope = _mean_step(image, weight) - _mean_step(target, weight) if ramp else np.zeros(2)
    offset = np.zeros(2)
    flat, moved = image * _ramp(-slope, image.shape), target
    for _ in range(PASSES if shift else 1):
        step = _displacement(flat, moved, weight, upsampling, max_shift_px) if shift else np.zeros(2)
        offset = offset + step
        moved = _translate(target, offset)
        if ramp:
            slope = slope + _fit_ramp(flat, moved, weight)
            flat = image * _ramp(-slope, image.shape)
        if not step.any():
            break
    scale = best_scale(flat, moved, weight)
    return Aligned(scale * flat, moved, _pair(offset), _pair(slope), scale)


def crop_to(
    truth: ComplexArray,
    truth_origin_m: Sequence[float],
    origin_m: Sequence[float],
    shape: tuple[int, int],
    pixel_m: float,
) -> ComplexArray:
    """Cut out the part of a truth that lies under a grid, to the nearest pixel.

    The rest of the shift, at most half a pixel, is left to `align`.

    Parameters
    ----------
    truth : ndarray, shape (Y', X'), complex
        Known beyond the grid on every side.
    truth_origin_m, origin_m : sequence of float
        Position (y, x) of pixel [0, 0] of the truth and of the grid, metres.
    shape : tuple of int
        (Y, X) of the grid.
    pixel_m : float
        Pixel of both, metres.

    Raises
    ------
    GeometryError
        If the grid leaves the truth.
    """
    first = np.rint((np.asarray(origin_m, np.float64) - np.asarray(truth_origin_m, np.float64)) / pixel_m)
    inside = np.isfinite(first).all() and (first >= 0).all() and (first + shape <= np.asarray(truth.shape)).all()
    if not inside:
        raise GeometryError(
            f"a grid of {tuple(shape)} pixels at {tuple(origin_m)} m must lie inside the truth; it begins at pixel "
            f"{tuple(first.tolist())} of the {truth.shape}. Make the truth larger, or the window smaller."
        )
    y, x = int(first[0]), int(first[1])
    return truth[y : y + shape[0], x : x + shape[1]]


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def best_scale(
    image: npt.NDArray[np.complex128], target: npt.NDArray[np.complex128], weight: npt.NDArray[np.float64]
) -> complex:
    """Return the factor that brings `image` closest to `target` in the weighted least-squares sense.

    Parameters
    ----------
    image, target : ndarray, shape (Y, X), complex128
        The images.
    weight : ndarray, shape (Y, X)
        How much each pixel counts.

    Returns
    -------
    complex
        1 where `image` is 0 all over.
    """
    energy = weighted_energy(image, weight)
    return complex(np.sum(weight * image.conj() * target) / energy) if energy else 1 + 0j


def _ramp(slope: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.complex128]:
    rows, columns = (np.exp(1j * k * np.arange(n)) for k, n in zip(slope, shape, strict=True))
    return np.asarray(rows[:, None] * columns)


def _mean_step(image: npt.NDArray[np.complex128], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean phase step (y, x) between neighbours, radians; averaged before the angle, so nothing wraps."""
    down = np.sum(weight[1:] * weight[:-1] * image[1:] * image[:-1].conj())
    right = np.sum(weight[:, 1:] * weight[:, :-1] * image[:, 1:] * image[:, :-1].conj())
    return np.asarray(np.angle([down, right]))


def _fit_ramp(
    image: npt.NDArray[np.complex128], target: npt.NDArray[np.complex128], weight: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Fit the plane in the phase of `image` over `target` by least squares, radians per pixel (y, x)."""
    ratio = image * target.conj()
    slope = _mean_step(ratio, weight)
    # A pixel that transmits nothing has no phase: the modulus joins the weight.
    pixel_weight = (weight * np.abs(ratio)).ravel()
    y, x = np.indices(image.shape, dtype=np.float64)
    columns = np.stack([np.ones(image.size), (y - y.mean()).ravel(), (x - x.mean()).ravel()])
    normal = (columns * pixel_weight) @ columns.T
    for _ in range(8):
        flat = ratio * _ramp(-slope, image.shape)
        phase = np.angle(flat * np.conj(np.sum(weight * flat))).ravel()
        change = np.linalg.lstsq(normal, columns @ (pixel_weight * phase), rcond=None)[0][1:]
        slope = slope + change
        if np.abs(change).max() < 1e-9:
            break
    return np.asarray(slope)


def _displacement(
    image: npt.NDArray[np.complex128],
    target: npt.NDArray[np.complex128],
    weight: npt.NDArray[np.float64],
    upsampling: int,
    max_shift_px: float,
) -> npt.NDArray[np.float64]:
    """Return by how much (y, x) `image` is displaced from `target`, to 1 / `upsampling` pixel."""
    a, b = (weight * (i - np.average(i, weights=weight)) for i in (image, target))
    pairs = ((a, image), (b, target))
    if any(weighted_energy(rest, weight) <= 1e-20 * weighted_energy(whole, weight) for rest, whole in pairs):
        return np.zeros(2)
    reach = [min(int(max_shift_px), n - 1) for n in image.shape]
    size = [fft.next_fast_len(n + r) for n, r in zip(image.shape, reach, strict=True)]
    product = fft.fft2(a, size) * fft.fft2(b, size).conj()
    whole = [np.arange(-r, r + 1) for r in reach]
    peak = _argmax(fft.ifft2(product)[np.ix_(*whole)], whole)
    near = np.arange(-math.ceil(0.75 * upsampling), math.ceil(0.75 * upsampling) + 1) / upsampling
    fine = [p + near for p in peak]
    rows, columns = (np.exp(2j * np.pi * np.outer(s, fft.fftfreq(n))) for s, n in zip(fine, size, strict=True))
    return _argmax(rows @ product @ columns.T, fine)


def _argmax(correlation: npt.NDArray[np.complex128], shifts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    highest = np.unravel_index(int(np.argmax(np.abs(correlation))), correlation.shape)
    return np.array([s[i] for s, i in zip(shifts, highest, strict=True)], np.float64)


def _translate(image: npt.NDArray[np.complex128], shift_px: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
    """Move an image by a real number of pixels in Fourier space; mirrored borders keep it from ringing."""
    if not shift_px.any():
        return image
    rows, columns = image.shape
    spectrum = fft.fft2(np.pad(image, ((0, rows), (0, columns)), mode="symmetric"))
    for axis, (step, n) in enumerate(zip(shift_px, image.shape, strict=True)):
        turn = np.exp(-2j * np.pi * step * fft.fftfreq(2 * n))
        spectrum *= turn[:, None] if axis == 0 else turn
    return np.asarray(fft.ifft2(spectrum)[:rows, :columns])
