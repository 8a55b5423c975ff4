"""How far two reconstructions of one sample agree: two halves of the data, two programs, or a result and a truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi import metrics
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.io import Product
from bluesky_cdi.metrics import FRC
from bluesky_cdi.protocols import ComplexArray, FloatArray

BoolArray = npt.NDArray[np.bool_]

# Pixels that differ by more, relatively, shift a detail by half a pixel within 500: one image has to be resampled.
MOST_MISFIT = 1e-3
# Stages come back to a place, and engines leave the whole image free to move, by less than this.
MOST_SHIFT_PX = 16.0
# A ring correlation of a smaller square has fewer than eight rings, too few for a curve.
LEAST_SQUARE_PX = 16
# Side of the window of `metrics.ssim`.
SSIM_WINDOW_PX = 11


@dataclass(frozen=True)
class Square:
    """A square of pixels.

    Attributes
    ----------
    row, column : int
        Its first pixel.
    side : int
        Pixels.
    """

    row: int
    column: int
    side: int

    def of(self, image: ComplexArray) -> ComplexArray:
        """Cut the square out of an image of shape (Y, X)."""
        return image[self.row : self.row + self.side, self.column : self.column + self.side]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two reconstructions on the area that they share, and how far they agree there.

    Attributes
    ----------
    a, b : ndarray, shape (Y, X), complex128
        A without its phase ramp, scaled to B; B moved onto A's grid.
    mask : ndarray, shape (Y, X), bool
        Illuminated in both: what is measured below.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0] in A's coordinates, metres.
    pixel_m : float
    shift_m : tuple of float
        (y, x) by which A lay off B on the sample, metres.
    ramp_rad_per_px : tuple of float
        (y, x) slope of the linear phase that A had over B, radians per pixel.
    scale : complex
        Factor that brings A closest to B.
    complex_nrmse, phase_mae_rad : float
        As of `metrics`; NaN where B has no contrast.
    ssim_amplitude, ssim_phase, psnr_amplitude_db, psnr_phase_db : float
        Range and peak are B's own; NaN where B has none. The phase is that relative to B's mean: where it
        wraps, the range is the whole circle. SSIM counts the windows that lie in the mask as a whole.
    square : Square
        Where the ring correlation was taken: the largest square in the mask; of several, the one whose less
        illuminated side (A or B, each relative to its brightest pixel) adds up highest.
    frc : FRC
        Its resolutions hold only if A and B come from independent halves of the data.
    shared_frames : int
        Frames of the same number in both: halves that are independent share none.
    """

    a: npt.NDArray[np.complex128]
    b: npt.NDArray[np.complex128]
    mask: BoolArray
    origin_m: tuple[float, float]
    pixel_m: float
    shift_m: tuple[float, float]
    ramp_rad_per_px: tuple[float, float]
    scale: complex
    complex_nrmse: float
    phase_mae_rad: float
    ssim_amplitude: float
    ssim_phase: float
    psnr_amplitude_db: float
    psnr_phase_db: float
    square: Square
    frc: FRC
    shared_frames: int


def compare_products(a: Product, b: Product, *, max_shift_px: float = MOST_SHIFT_PX) -> Comparison:
    """Cut two reconstructions to the area that they share, align A with B, and measure what is left.

    Parameters
    ----------
    a, b : Product
        Of one sample pixel, to 1e-3. Their positions tell what was illuminated.
    max_shift_px : float
        Largest shift between them that is looked for, beyond what their origins say.

    Raises
    ------
    GeometryError
        If the pixels differ, the illuminated areas share no square of 16 pixels, or no position lies on its object.
    """
    shared = _shared(a, b)
    pixel_m, light_a = a.geometry.pixel_m, shared.light_a
    mask = (light_a >= metrics.ILLUMINATED_SHARE) & (shared.light_b >= metrics.ILLUMINATED_SHARE)
    _largest_square(mask, light_a, a, b)  # Raises where there is nothing to align.
    aligned = metrics.align(shared.a, shared.b, mask, max_shift_px=max_shift_px)
    light_b = _moved(shared.light_b, aligned.shift_px)
    kept = mask & (light_b >= metrics.ILLUMINATED_SHARE)
    square = _largest_square(kept, np.minimum(light_a, light_b), a, b)
    if (kept != mask).any():
        # What came in at B's border, or from where B is dark, has pulled at the fit.
        mask, aligned = kept, metrics.align(shared.a, shared.b, kept, max_shift_px=max_shift_px)
    shift_m = (np.asarray(aligned.shift_px) + shared.rest_px) * pixel_m
    found, truth = aligned.object, aligned.truth
    ssim_amplitude, psnr_amplitude = similarity(np.abs(found), np.abs(truth), mask)
    ssim_phase, psnr_phase = similarity(*relative_phases(found, truth, mask), mask)
    return Comparison(
        a=found,
        b=truth,
        mask=mask,
        origin_m=shared.origin_m,
        pixel_m=pixel_m,
        shift_m=(float(shift_m[0]), float(shift_m[1])),
        ramp_rad_per_px=aligned.ramp_rad_per_px,
        scale=aligned.scale,
        complex_nrmse=metrics.complex_nrmse(found, truth, mask),
        phase_mae_rad=metrics.phase_mae_rad(found, truth, mask),
        ssim_amplitude=ssim_amplitude,
        ssim_phase=ssim_phase,
        psnr_amplitude_db=psnr_amplitude,
        psnr_phase_db=psnr_phase,
        square=square,
        frc=metrics.fourier_ring_correlation(square.of(found), square.of(truth), pixel_m),
        shared_frames=len(np.intersect1d(a.indexes, b.indexes)),
    )


def coverage_of(product: Product) -> npt.NDArray[np.float64]:
    """Add up the illumination of all positions, each rounded to a pixel, shape (Y, X), in the probe's unit squared.

    What of a probe lies outside the object is left out.

    Raises
    ------
    GeometryError
        If no position lies on the object.
    """
    intensity = np.square(np.abs(product.probe.astype(np.complex128))).sum(axis=0)
    size, (rows, columns) = intensity.shape[0], product.object.shape
    coverage = np.zeros((rows, columns))
    centres = np.rint((product.positions_m - np.asarray(product.origin_m)) / product.geometry.pixel_m)
    near = ((centres > -size) & (centres < np.array([rows, columns]) + size)).all(axis=1)
    for y, x in centres[near].astype(np.int64) - size // 2:
        down, right = slice(max(y, 0), max(y + size, 0)), slice(max(x, 0), max(x + size, 0))
        patch = coverage[down, right]
        patch += intensity[max(-y, 0) :, max(-x, 0) :][: patch.shape[0], : patch.shape[1]]
    if not coverage.any():
        raise GeometryError(
            f"{product.name or 'a reconstruction'}: the probe must light the object at one position at least; none of "
            f"the {len(centres)} positions lies on it. Positions and the object's origin belong to different scans."
        )
    return coverage


def _illumination(product: Product) -> npt.NDArray[np.float64]:
    """Coverage relative to its highest value."""
    coverage = coverage_of(product)
    return np.asarray(coverage / coverage.max())


@dataclass(frozen=True, eq=False)
class _Shared:
    """Two objects and their illumination on the rectangle that both cover, to the nearest pixel."""

    a: ComplexArray
    b: ComplexArray
    light_a: npt.NDArray[np.float64]
    light_b: npt.NDArray[np.float64]
    origin_m: tuple[float, float]
    # By how much A's pixels lie off B's, at most half a pixel.
    rest_px: npt.NDArray[np.float64]


def _shared(a: Product, b: Product) -> _Shared:
    pixel_m = a.geometry.pixel_m
    if not abs(b.geometry.pixel_m / pixel_m - 1) <= MOST_MISFIT:
        raise GeometryError(
            f"two reconstructions are compared on one pixel; {a.name or 'A'} has {pixel_m:.6g} m and "
            f"{b.name or 'B'} {b.geometry.pixel_m:.6g} m. "
            "Reconstruct both from frames of the same size, or resample one."
        )
    offset_px = (np.asarray(b.origin_m, np.float64) - np.asarray(a.origin_m, np.float64)) / pixel_m
    whole = np.rint(offset_px)
    first_a, first_b = np.maximum(whole, 0), np.maximum(-whole, 0)
    shape = np.minimum(a.object.shape - first_a, b.object.shape - first_b)
    if not (shape >= LEAST_SQUARE_PX).all():
        raise _no_overlap(a, b)
    of_a, of_b = _window(first_a, shape), _window(first_b, shape)
    origin_m = np.asarray(a.origin_m) + first_a * pixel_m
    return _Shared(
        a=a.object[of_a],
        b=b.object[of_b],
        light_a=_illumination(a)[of_a],
        light_b=_illumination(b)[of_b],
        origin_m=(float(origin_m[0]), float(origin_m[1])),
        rest_px=np.asarray(whole - offset_px),
    )


def _window(first: npt.NDArray[np.float64], shape: npt.NDArray[np.float64]) -> tuple[slice, slice]:
    (y, x), (rows, columns) = (int(f) for f in first), (int(n) for n in shape)
    return slice(y, y + rows), slice(x, x + columns)


def _no_overlap(a: Product, b: Product) -> GeometryError:
    def area(product: Product) -> str:
        low = np.asarray(product.origin_m) * 1e6
        high = low + np.asarray(product.object.shape) * product.geometry.pixel_m * 1e6
        return f"y {low[0]:.6g} to {high[0]:.6g}, x {low[1]:.6g} to {high[1]:.6g} µm"

    return GeometryError(
        f"two reconstructions must share an illuminated square of {LEAST_SQUARE_PX} pixels; these do not: "
        f"{a.name or 'A'} lies at {area(a)}, {b.name or 'B'} at {area(b)}. Compare scans of one area, "
        "in the same coordinates."
    )


def _moved(image: npt.NDArray[np.float64], shift_px: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Move an image to the nearest pixel; 0 comes in at the borders."""
    moved = np.zeros_like(image)
    (down, right), (rows, columns) = (round(s) for s in shift_px), image.shape
    to = (slice(max(down, 0), max(rows + down, 0)), slice(max(right, 0), max(columns + right, 0)))
    part = image[max(-down, 0) :, max(-right, 0) :]
    target = moved[to]
    target[...] = part[: target.shape[0], : target.shape[1]]
    return moved


def relative_phases(
    a: npt.NDArray[np.complex128], b: npt.NDArray[np.complex128], mask: BoolArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Phases of A and B relative to B's mean, radians; A's within half a turn of B's, so that no wrap lies between."""
    mean = np.sum(b[mask])
    phase = np.angle(b * np.conj(mean)) if mean else np.angle(b)
    return np.asarray(phase + np.angle(a * np.conj(b))), np.asarray(phase)


def similarity(
    image: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], mask: BoolArray
) -> tuple[float, float]:
    """SSIM on the windows that lie in the mask, and PSNR on the mask; the truth's own range for both."""
    span = float(np.ptp(truth[mask]))
    # The rounding of a constant is no contrast.
    if not span > 1e-9 * float(np.abs(truth[mask]).max()):
        return math.nan, math.nan
    half = SSIM_WINDOW_PX // 2
    inner = np.zeros_like(mask)
    inner[half:-half, half:-half] = _window_sums(mask.astype(np.int64), SSIM_WINDOW_PX) == SSIM_WINDOW_PX**2
    similarity = metrics.ssim(image, truth, span, inner) if inner.any() else math.nan
    return similarity, metrics.psnr(image, truth, span, mask)


def _largest_square(mask: BoolArray, weight: FloatArray, a: Product, b: Product) -> Square:
    """The largest square in a mask; of several, the one of the highest weight.

    Raises
    ------
    GeometryError
        If it is smaller than `LEAST_SQUARE_PX`.
    """
    inside = mask.astype(np.int64)
    low, high = 0, min(mask.shape)
    # A square of some side holds all smaller ones: bisection.
    while low < high:
        side = (low + high + 1) // 2
        low, high = (side, high) if (_window_sums(inside, side) == side**2).any() else (low, side - 1)
    if low < LEAST_SQUARE_PX:
        raise _no_overlap(a, b)
    whole = _window_sums(inside, low) == low**2
    best = np.argmax(np.where(whole, _window_sums(weight, low), -np.inf))
    row, column = np.unravel_index(int(best), whole.shape)
    return Square(int(row), int(column), low)


def _window_sums(values: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Sum over each square window, shape (Y - side + 1, X - side + 1), from a summed-area table."""
    table = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return np.asarray(table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side])
