"""Fourier ring correlation and the resolution that it supports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import distance_transform_edt

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation._checks import BoolArray, checked
from bluesky_cdi.protocols import ComplexArray, FloatArray

# Information per Fourier pixel of half a bit and one bit, van Heel & Schatz 2005: the signal-to-noise
# ratio of one of two half data sets, (2**bits - 1) / 2.
SNR_HALF_BIT = 0.2071
SNR_ONE_BIT = 0.5
# Of a soft window: a narrower one leaks into all rings.
LEAST_EDGE_PX = 4.0


@dataclass(frozen=True, eq=False)
class FRC:
    """A Fourier ring correlation and its thresholds, one value a ring.

    Attributes
    ----------
    frequency_per_m : ndarray, shape (r,)
        Spatial frequency of the rings, from the first above zero to the Nyquist frequency, 1/m.
    correlation : ndarray, shape (r,)
        Correlation, -1 to 1.
    n_pixels : ndarray, shape (r,), int
        Fourier pixels in each ring; those that are independent, where a window is given.
    half_bit, one_bit : ndarray, shape (r,)
        Threshold curves.
    resolution_half_bit_m, resolution_one_bit_m : float or None
        Full period at which the correlation first falls below the threshold, metres; None if it
        never does, inf if no ring is above. A claim of resolution needs two independent halves.
    """

    frequency_per_m: FloatArray
    correlation: FloatArray
    n_pixels: npt.NDArray[np.int64]
    half_bit: FloatArray
    one_bit: FloatArray
    resolution_half_bit_m: float | None
    resolution_one_bit_m: float | None

    @classmethod
    def of(cls, frequency_per_m: FloatArray, correlation: FloatArray, n_pixels: npt.NDArray[np.int64]) -> FRC:
        """Add the thresholds, and where they are crossed, to a curve.

        Parameters
        ----------
        frequency_per_m, correlation : ndarray, shape (r,)
            The curve.
        n_pixels : ndarray, shape (r,), int
            Fourier pixels in each ring.
        """
        half_bit, one_bit = frc_threshold(n_pixels, SNR_HALF_BIT), frc_threshold(n_pixels, SNR_ONE_BIT)
        crossings = (resolution_at(frequency_per_m, correlation - each) for each in (half_bit, one_bit))
        return cls(frequency_per_m, correlation, n_pixels, half_bit, one_bit, *crossings)


def frc_threshold(n_pixels: npt.NDArray[Any], snr: float) -> FloatArray:
    """Compute the information threshold of van Heel & Schatz, J. Struct. Biol. 151, 250 (2005), eq. 13-17.

    Parameters
    ----------
    n_pixels : ndarray, shape (r,)
        Fourier pixels in each ring.
    snr : float
        `SNR_HALF_BIT` or `SNR_ONE_BIT`.
    """
    root = np.sqrt(np.asarray(n_pixels, np.float64))
    return np.asarray((snr + (2 * math.sqrt(snr) + 1) / root) / (1 + snr + 2 * math.sqrt(snr) / root))


def soft_window(mask: BoolArray) -> FloatArray:
    """Give a mask soft edges: 0 at its border, 1 from a sixteenth of its width on, a raised cosine between.

    Two images under one mask with hard edges would be alike at all frequencies, by the edges alone.

    Parameters
    ----------
    mask : ndarray, shape (Y, X), bool
        Pixels that count.
    """
    inside = np.asarray(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1])
    edge = max(LEAST_EDGE_PX, math.sqrt(np.count_nonzero(mask)) / 16)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(inside / edge, 1)))


def fourier_ring_correlation(a: ComplexArray, b: ComplexArray, pixel_m: float, window: FloatArray | None = None) -> FRC:
    """Correlate two images in rings of spatial frequency.

    The mean is removed and a window applied, Hann's if no other is given; rings are one Fourier pixel of the shorter
    side wide. Hann's window makes neighbouring Fourier pixels dependent, so the correlation of pure noise scatters
    about 1.4 times as much as the number of pixels in a ring suggests. Under a window that is given, thresholds count
    the Fourier pixels that it leaves independent: the share ``sum(w^2)^2 / (n sum(w^4))`` of all n.

    Parameters
    ----------
    a, b : ndarray, shape (Y, X), complex or real
        Two registered images: independent halves of the data, or an estimate and a known truth,
        which is no measure of resolution and has to be named.
    pixel_m : float
        Pixel, metres.
    window : ndarray, shape (Y, X), optional
        Weight of each pixel, such as `soft_window` of where there is something to see; only the rectangle that holds
        all of it is looked at.

    Raises
    ------
    ValueError
        If shapes differ, a side is below 8 pixels, values are not finite, or the window is 0 everywhere.
    GeometryError
        If `pixel_m` is not a positive number.
    """
    if not (math.isfinite(pixel_m) and pixel_m > 0):
        raise GeometryError(f"pixel_m must be finite and positive; it is {pixel_m}")
    first, second, weight = checked(a, b, np.ones(np.shape(a)) if window is None else window)
    independent = 1.0
    if window is None:
        # The periodic Hann window: its spectrum is three pixels wide and exactly zero beyond.
        rows, columns = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in first.shape)
        first, second, weight = first - first.mean(), second - second.mean(), np.outer(rows, columns)
    else:
        first, second, weight = _under(first, second, weight)
        independent = float(np.square(weight).sum() ** 2 / (weight.size * (weight**4).sum()))
    side = min(first.shape)
    if side < 8:
        raise ValueError(f"a ring correlation needs at least 8 x 8 pixels; the images are {first.shape}")
    spectrum_a, spectrum_b = fft.fft2(first * weight), fft.fft2(second * weight)
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * side for n in first.shape), indexing="ij"))
    ring = np.rint(radius).astype(np.int64).ravel()

    def ring_sum(values: FloatArray) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(ring, values.ravel())[1 : side // 2 + 1], np.float64)

    shared = ring_sum((spectrum_a * spectrum_b.conj()).real)
    powers = np.sqrt(ring_sum(np.abs(spectrum_a) ** 2) * ring_sum(np.abs(spectrum_b) ** 2))
    correlation = np.divide(shared, powers, out=np.zeros_like(shared), where=powers > 0)
    n_pixels = np.maximum(1, np.rint(independent * np.bincount(ring)[1 : side // 2 + 1])).astype(np.int64)
    frequency = np.arange(1, side // 2 + 1) / (side * pixel_m)
    return FRC.of(frequency, correlation, n_pixels)


def _under(
    first: npt.NDArray[np.complex128], second: npt.NDArray[np.complex128], window: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128], npt.NDArray[np.float64]]:
    """Cut images to the rectangle that holds a window, without their means under it; and the window."""
    spans = (np.flatnonzero(window.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    weight = window[rows, columns]
    first, second = (image[rows, columns] for image in (first, second))
    return first - np.average(first, weights=weight), second - np.average(second, weights=weight), weight


def resolution_at(frequency_per_m: FloatArray, margin: FloatArray) -> float | None:
    """Return the full period at which a curve first falls below its threshold, between rings by linear interpolation.

    Parameters
    ----------
    frequency_per_m : ndarray, shape (r,)
        Of the rings, 1/m.
    margin : ndarray, shape (r,)
        Correlation less threshold.

    Returns
    -------
    float or None
        Metres; inf where the first ring is below already, None where none is.
    """
    below = np.flatnonzero(margin < 0)
    if not below.size:
        return None
    last = int(below[0]) - 1
    if last < 0:
        return math.inf
    part = margin[last] / (margin[last] - margin[last + 1])
    return 1 / float(frequency_per_m[last] + part * (frequency_per_m[last + 1] - frequency_per_m[last]))
