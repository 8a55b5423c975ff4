"""How far two reconstructions in files agree: two halves of the data, two programs, or a result and a truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation._checks import BoolArray, window_sums
from bluesky_cdi.evaluation.alignment import align
from bluesky_cdi.evaluation.comparison import MOST_SHIFT_PX, Comparison, measured
from bluesky_cdi.evaluation.frc import FRC, fourier_ring_correlation
from bluesky_cdi.io import Product
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.protocols import ComplexArray, FloatArray

# Pixels that differ by more, relatively, shift a detail by half a pixel within 500: one image has to be resampled.
MOST_MISFIT = 1e-3
# A ring correlation of a smaller square has fewer than eight rings, too few for a curve.
LEAST_SQUARE_PX = 16


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
class ProductComparison:
    """Two reconstructions on the area that they share, and how far they agree there.

    Attributes
    ----------
    images : Comparison
        A without its phase ramp, scaled to B, beside B moved onto A's grid, on the pixels illuminated in both.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0] in A's coordinates, metres.
    pixel_m : float
    shift_m : tuple of float
        (y, x) by which A lay off B on the sample, metres.
    square : Square
        Where the ring correlation was taken: the largest square in the mask; of several, the one whose less
        illuminated side (A or B, each relative to its brightest pixel) adds up highest.
    frc : FRC
        Its resolutions hold only if A and B come from independent halves of the data.
    shared_frames : int
        Frames of the same number in both: halves that are independent share none.
    """

    images: Comparison
    origin_m: tuple[float, float]
    pixel_m: float
    shift_m: tuple[float, float]
    square: Square
    frc: FRC
    shared_frames: int


def compare_products(a: Product, b: Product, *, max_shift_px: float = MOST_SHIFT_PX) -> ProductComparison:
    """Cut two reconstructions to the area that they share, align A with B, and measure what is left.

    Parameters
    ----------
    a, b : Product
        Of one sample pixel, to 1e-3. Their positions tell what was illuminated.
    max_shift_px : float
        Largest shift between them that is looked for, beyond what their origins say.

    Returns
    -------
    ProductComparison

    Raises
    ------
    GeometryError
        If the pixels differ, the illuminated areas share no square of 16 pixels, or no position lies on its object.
    """
    shared = _shared(a, b)
    pixel_m, illumination_a = a.geometry.pixel_m, shared.illumination_a
    mask = (illumination_a >= MEASURED_SHARE) & (shared.illumination_b >= MEASURED_SHARE)
    _largest_square(mask, illumination_a, a, b)  # Raises where there is nothing to align.
    aligned = align(shared.a, shared.b, mask, max_shift_px=max_shift_px)
    illumination_b = _moved(shared.illumination_b, aligned.shift_px)
    kept = mask & (illumination_b >= MEASURED_SHARE)
    square = _largest_square(kept, np.minimum(illumination_a, illumination_b), a, b)
    if (kept != mask).any():
        # What came in at B's border, or from where B is dark, has pulled at the fit.
        mask, aligned = kept, align(shared.a, shared.b, kept, max_shift_px=max_shift_px)
    shift_m = (np.asarray(aligned.shift_px) + shared.rest_px) * pixel_m
    return ProductComparison(
        images=measured(aligned, mask),
        origin_m=shared.origin_m,
        pixel_m=pixel_m,
        shift_m=(float(shift_m[0]), float(shift_m[1])),
        square=square,
        frc=fourier_ring_correlation(square.of(aligned.object), square.of(aligned.truth), pixel_m),
        shared_frames=len(np.intersect1d(a.indexes, b.indexes)),
    )


def coverage_of(product: Product) -> npt.NDArray[np.float64]:
    """Add up the illumination of all positions, shape (Y, X), in the probe's unit squared.

    As `physics.illumination.summed_illumination`, but for files: positions are rounded to a pixel, which a mask does
    not notice, what of a probe lies outside the object is left out, and no torch is loaded for it.

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
            f"{product.name or 'a reconstruction'}: the probe must illuminate the object at one position at least; "
            f"none of the {len(centres)} positions lies on it. Positions and the object's origin belong to "
            "different scans."
        )
    return coverage


def _illumination(product: Product) -> npt.NDArray[np.float64]:
    """Return the coverage relative to its highest value."""
    coverage = coverage_of(product)
    return np.asarray(coverage / coverage.max())


@dataclass(frozen=True, eq=False)
class _Shared:
    """Two objects and their illumination on the rectangle that both cover, to the nearest pixel."""

    a: ComplexArray
    b: ComplexArray
    illumination_a: npt.NDArray[np.float64]
    illumination_b: npt.NDArray[np.float64]
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
        illumination_a=_illumination(a)[of_a],
        illumination_b=_illumination(b)[of_b],
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


def _largest_square(mask: BoolArray, weight: FloatArray, a: Product, b: Product) -> Square:
    """Find the largest square in a mask; of several, the one of the highest weight.

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
        low, high = (side, high) if (window_sums(inside, side) == side**2).any() else (low, side - 1)
    if low < LEAST_SQUARE_PX:
        raise _no_overlap(a, b)
    whole = window_sums(inside, low) == low**2
    best = np.argmax(np.where(whole, window_sums(weight, low), -np.inf))
    row, column = np.unravel_index(int(best), whole.shape)
    return Square(int(row), int(column), low)
