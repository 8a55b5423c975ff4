"""Comparing reconstructions of a single far-field frame, which fixes neither place nor twin nor phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import fft

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.evaluation.alignment import best_scale
from bluesky_cdi.protocols import ComplexArray, FloatArray


@dataclass(frozen=True, eq=False)
class Resolved:
    """Estimate brought to a reference, and what stood between them.

    Attributes
    ----------
    object : ndarray, shape (N, N), complex128
        The estimate, or its twin, moved by `-shift_px` and scaled.
    shift_px : tuple of float
        (y, x) by which the estimate, or its twin, was displaced from the reference; periodic.
    twin : bool
        Whether it was the conjugate twin.
    scale : complex
        Factor that brought it closest to the reference.
    """

    object: npt.NDArray[np.complex128]
    shift_px: tuple[float, float]
    twin: bool
    scale: complex


def conjugate_twin(image: ComplexArray) -> ComplexArray:
    """Compute ``conj(image(-r))`` about pixel ``N // 2``, periodic: its far-field intensities are the same.

    Parameters
    ----------
    image : ndarray, shape (N, N), complex
        An exit wave or an object.
    """
    turned = np.conj(image[..., ::-1, ::-1])
    # Reversal maps pixel i to N - 1 - i; about N // 2 it belongs at 2 (N // 2) - i.
    turn = [2 * (n // 2) - (n - 1) for n in image.shape[-2:]]
    return np.roll(turned, turn, axis=(-2, -1))


def resolve_ambiguities(
    estimate: ComplexArray,
    reference: ComplexArray,
    *,
    upsampling: int = 100,
    scale: Literal["complex", "phase"] = "complex",
) -> Resolved:
    """Remove translation, conjugate twin and complex scale (or only its phase).

    Translation is the maximum of the periodic cross-correlation, refined by an upsampled transform
    (Guizar-Sicairos, Thurman and Fienup, Opt. Lett. 33, 156 (2008)); of estimate and twin, that
    with the higher maximum counts.

    Parameters
    ----------
    estimate, reference : ndarray, shape (N, N), complex
        Exit waves that vanish away from the sample.
    upsampling : int
        Steps per pixel to which the translation is found.
    scale : {'complex', 'phase'}
        A truth may be in other units; two reconstructions of one frame differ by a phase alone.

    Raises
    ------
    ValueError
        If shapes differ, values are not finite, or one of the images is zero everywhere.
    """
    image, target = np.asarray(estimate, np.complex128), np.asarray(reference, np.complex128)
    if image.ndim != 2 or image.shape != target.shape:
        raise ValueError(f"estimate and reference must be images of one shape; they are {image.shape}, {target.shape}")
    if not (np.isfinite(image).all() and np.isfinite(target).all()):
        raise ValueError("estimate and reference must be finite everywhere; NaN or infinity came")
    if not (image.any() and target.any()):
        raise ValueError("estimate and reference must not be zero everywhere: nothing fixes their translation")
    if upsampling < 1:
        raise ValueError(f"upsampling must be 1 or more; it is {upsampling}")
    candidates = [(image, False), (np.asarray(conjugate_twin(image), np.complex128), True)]
    found = [(*_displacement(one, target, upsampling), one, twin) for one, twin in candidates]
    _, shift, chosen, twin = max(found, key=lambda f: f[0])
    moved = translate(chosen, -shift)
    factor = best_scale(moved, target, np.ones(target.shape))
    if scale == "phase":
        factor = factor / abs(factor) if factor else 1 + 0j
    return Resolved(factor * moved, (float(shift[0]), float(shift[1])), twin, factor)


def translate(image: ComplexArray, shift_px: Sequence[float] | FloatArray) -> npt.NDArray[np.complex128]:
    """Move an image to higher indices by a real number of pixels, periodic.

    Parameters
    ----------
    image : ndarray, shape (N, N), complex
        Of any values.
    shift_px : sequence of float
        Rows, columns.

    Returns
    -------
    ndarray, shape (N, N), complex128
    """
    spectrum = fft.fft2(np.asarray(image, np.complex128))
    for axis, (step, n) in enumerate(zip(shift_px, image.shape, strict=True)):
        turn = np.exp(-2j * np.pi * step * fft.fftfreq(n))
        spectrum *= turn[:, None] if axis == 0 else turn
    return np.asarray(fft.ifft2(spectrum))


def phase_retrieval_transfer(
    detector_waves: ComplexArray, counts: FloatArray, mask: BoolArray | None = None
) -> npt.NDArray[np.float64]:
    """Measure how reproducibly phases were retrieved, in rings of the detector.

    Ring sum of the modulus of the mean wave over that of the measured modulus (Chapman et al.,
    J. Opt. Soc. Am. A 23, 1179 (2006), section 3): 1 where all starts agree, about ``1 / sqrt(s)``
    where they agree no better than chance.

    Parameters
    ----------
    detector_waves : ndarray, shape (s, N, N), complex
        Of s reconstructions without their ambiguities; zero frequency at ``[N // 2, N // 2]``.
    counts : ndarray, shape (N, N)
        Photons, in the same order.
    mask : ndarray, shape (N, N), bool, optional
        True where a pixel is valid.

    Returns
    -------
    ndarray, shape (N // 2 + 1,)
        Ring k has a radius of k pixels; NaN where nothing was measured.

    Raises
    ------
    ValueError
        If shapes differ or there is no reconstruction.
    """
    waves, photons = np.asarray(detector_waves), np.asarray(counts, np.float64)
    if waves.ndim != 3 or waves.shape[1:] != photons.shape or not len(waves):
        raise ValueError(f"waves must be (s, N, N) and counts (N, N), s > 0; they are {waves.shape}, {photons.shape}")
    valid = np.ones(photons.shape, bool) if mask is None else np.asarray(mask, bool)
    rows, columns = np.indices(photons.shape)
    size = photons.shape[0]
    ring = np.rint(np.hypot(rows - size // 2, columns - photons.shape[1] // 2)).astype(np.int64)[valid]
    # Invalid pixels are left out before any arithmetic: they may hold anything, NaN too.
    shared, measured = (
        np.bincount(ring, values, size // 2 + 1)[: size // 2 + 1]
        for values in (np.abs(waves[:, valid].mean(axis=0)), np.sqrt(photons[valid]))
    )
    return np.asarray(np.divide(shared, measured, out=np.full(shared.shape, math.nan), where=measured > 0))


def transfer_resolution_px(transfer: FloatArray, size: int, threshold: float = 1 / math.e) -> float | None:
    """Find the full period at which a phase retrieval transfer function first falls below a threshold.

    Between rings the function is taken as linear. The threshold of 1/e is that of Ekeberg et al., Phys. Rev. Lett. 114,
    098102 (2015).

    Parameters
    ----------
    transfer : ndarray, shape (N // 2 + 1,)
        As `phase_retrieval_transfer` gives it; rings of NaN, where nothing was measured, are left out.
    size : int
        Pixels along one side of the frame, N.
    threshold : float
        1/e by convention.

    Returns
    -------
    float or None
        Object pixels; infinite if no ring is above the threshold, None if all are: then the frame's border, a
        period of 2 pixels, limits the resolution.
    """
    ring = np.flatnonzero(np.isfinite(transfer))
    value = np.asarray(transfer, np.float64)[ring]
    below = np.flatnonzero(value < threshold)
    if not below.size:
        return None if ring.size else math.inf
    first = int(below[0])
    if first == 0:
        return math.inf
    share = (value[first - 1] - threshold) / (value[first - 1] - value[first])
    crossing = ring[first - 1] + share * (ring[first] - ring[first - 1])
    return size / float(crossing) if crossing else math.inf


def _displacement(
    image: npt.NDArray[np.complex128], target: npt.NDArray[np.complex128], upsampling: int
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the highest cross-correlation and the shift (y, x) of `image` at which it is."""
    product = fft.fft2(image) * fft.fft2(target).conj()
    coarse = np.abs(fft.ifft2(product))
    peak = np.array(np.unravel_index(int(np.argmax(coarse)), coarse.shape), np.float64)
    # Shifts of more than half the frame are shorter the other way round.
    half = np.array(coarse.shape) // 2
    peak = (peak + half) % coarse.shape - half
    near = np.arange(-math.ceil(0.75 * upsampling), math.ceil(0.75 * upsampling) + 1) / upsampling
    fine = [p + near for p in peak]
    rows, columns = (np.exp(2j * np.pi * np.outer(s, fft.fftfreq(n))) for s, n in zip(fine, product.shape, strict=True))
    values = np.abs(rows @ product @ columns.T)
    at = np.unravel_index(int(np.argmax(values)), values.shape)
    return float(values[at]), np.array([s[i] for s, i in zip(fine, at, strict=True)])
