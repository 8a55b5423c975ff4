"""How good an image and its predicted errors are.

Ptychography fixes an object up to a complex scale, and up to a shift and a linear phase ramp when the
probe is free too; `align` removes them before anything is compared. Arrays are (Y, X), pairs are (y, x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, special, stats

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.protocols import ComplexArray, FloatArray

BoolArray = npt.NDArray[np.bool_]
Weight = npt.NDArray[Any]

# Information per Fourier pixel of half a bit and one bit, van Heel & Schatz 2005: the signal-to-noise
# ratio of one of two half data sets, (2**bits - 1) / 2.
SNR_HALF_BIT = 0.2071
SNR_ONE_BIT = 0.5

# The share of the highest coverage under which a pixel counts as not measured.
ILLUMINATED_SHARE = 0.02

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
        Fourier pixels in each ring.
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


@dataclass(frozen=True)
class Dose:
    """What the sample received.

    Attributes
    ----------
    photons : float
        Photons delivered in all.
    photons_per_m2 : float
        Mean over the illuminated area, photons per square metre.
    """

    photons: float
    photons_per_m2: float


def illuminated(coverage: FloatArray, threshold: float = ILLUMINATED_SHARE) -> BoolArray:
    """Tell which pixels have at least `threshold` of the highest coverage.

    Parameters
    ----------
    coverage : ndarray, shape (Y, X)
        Summed illumination, photons per pixel.
    threshold : float
        Share of the maximum.

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
    """Bring angles into [-pi, pi)."""
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
        Weight of each pixel of the estimate, not negative; see `illuminated`.
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
    image, target, weight = _checked(estimate, truth, mask_or_weight)
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
    scale = _best_scale(flat, moved, weight)
    return Aligned(scale * flat, moved, _pair(offset), _pair(slope), scale)


def complex_nrmse(estimate: ComplexArray, truth: ComplexArray, mask_or_weight: Weight) -> float:
    """Compute the normalised root mean square error under the best complex scale.

    ``sqrt(sum w |a O - T|^2 / sum w |T - mean(T)|^2)``: 0 is perfect, 1 no better than a constant.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
    mask_or_weight : ndarray, shape (Y, X)

    Returns
    -------
    float
        NaN where the truth has no contrast, and the measure no meaning.

    Raises
    ------
    ValueError
        As `align`.
    """
    image, target, weight = _checked(estimate, truth, mask_or_weight)
    contrast = _power(target - np.average(target, weights=weight), weight)
    if contrast <= 1e-20 * _power(target, weight):
        return float("nan")
    return math.sqrt(_power(_best_scale(image, target, weight) * image - target, weight) / contrast)


def phase_mae_rad(estimate: ComplexArray, truth: ComplexArray, mask_or_weight: Weight) -> float:
    """Compute the mean of the absolute wrapped phase difference of two aligned objects, radians.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
    mask_or_weight : ndarray, shape (Y, X)

    Raises
    ------
    ValueError
        As `align`.
    """
    image, target, weight = _checked(estimate, truth, mask_or_weight)
    return float(np.average(np.abs(wrap_rad(np.angle(image) - np.angle(target))), weights=weight))


def ssim(image: FloatArray, truth: FloatArray, data_range: float, mask: BoolArray | None = None) -> float:
    """Compute the mean structural similarity, Wang et al., IEEE Trans. Image Process. 13, 600 (2004).

    Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, whole windows only.

    Parameters
    ----------
    image, truth : ndarray, shape (Y, X), real
        Amplitudes, or phases; not both in one.
    data_range : float
        Range of the values that the index takes as full contrast; the truth's own, usually.
    mask : ndarray, shape (Y, X), bool, optional
        Centres of the windows that count.

    Raises
    ------
    ValueError
        If shapes differ or are below 11 pixels, values are not real and finite, `data_range` is not
        positive or no window is in the mask.
    """
    x, y = _checked_real(image, truth, "data_range", data_range)
    if min(x.shape) < 11:
        raise ValueError(f"ssim needs images of at least 11 x 11 pixels; they are {x.shape}")

    def local(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # truncate 3.5 makes sigma 1.5 a window of 11 pixels.
        return np.asarray(ndimage.gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5])

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    index = luminance * (2 * covariance + c2) / (var_x + var_y + c2)
    counted = np.ones(x.shape, bool) if mask is None else np.asarray(mask, bool)
    if counted.shape != x.shape or not counted[5:-5, 5:-5].any():
        raise ValueError(f"mask must be {x.shape} with a pixel at least 5 from the border; it is {counted.shape}")
    return float(index[counted[5:-5, 5:-5]].mean())


def psnr(image: FloatArray, truth: FloatArray, peak: float, mask: BoolArray | None = None) -> float:
    """Compute the peak signal-to-noise ratio, ``10 log10(peak^2 / mean squared error)``, decibel.

    Parameters
    ----------
    image, truth : ndarray, shape (Y, X), real
    peak : float
        The truth's own range; a peak of 255 on images of range 1 adds 48.13 dB.
    mask : ndarray, shape (Y, X), bool, optional
        Pixels that count.

    Returns
    -------
    float
        inf for equal images.

    Raises
    ------
    ValueError
        If shapes differ, values are not real and finite, `peak` is not positive or the mask is empty.
    """
    x, y = _checked_real(image, truth, "peak", peak)
    counted = np.ones(x.shape, bool) if mask is None else np.asarray(mask, bool)
    if counted.shape != x.shape or not counted.any():
        raise ValueError(f"mask must be {x.shape} and not empty; it is {counted.shape} with {counted.sum()} pixels")
    error = float(np.mean((x - y)[counted] ** 2))
    return 10 * math.log10(peak**2 / error) if error else math.inf


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


def fourier_ring_correlation(a: ComplexArray, b: ComplexArray, pixel_m: float) -> FRC:
    """Correlate two images in rings of spatial frequency.

    The mean is removed and a Hann window applied; rings are one Fourier pixel of the shorter side
    wide. The window makes neighbouring Fourier pixels dependent, so the correlation of pure noise
    scatters about 1.4 times as much as the number of pixels in a ring suggests.

    Parameters
    ----------
    a, b : ndarray, shape (Y, X), complex or real
        Two registered images: independent halves of the data, or an estimate and a known truth,
        which is no measure of resolution and has to be named.
    pixel_m : float
        Pixel, metres.

    Raises
    ------
    ValueError
        If shapes differ, a side is below 8 pixels or values are not finite.
    GeometryError
        If `pixel_m` is not a positive number.
    """
    if not (math.isfinite(pixel_m) and pixel_m > 0):
        raise GeometryError(f"pixel_m must be finite and positive; it is {pixel_m}")
    first, second, _ = _checked(a, b, np.ones(np.shape(a)))
    side = min(first.shape)
    if side < 8:
        raise ValueError(f"a ring correlation needs at least 8 x 8 pixels; the images are {first.shape}")
    spectrum_a, spectrum_b = _windowed_spectrum(first), _windowed_spectrum(second)
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * side for n in first.shape), indexing="ij"))
    ring = np.rint(radius).astype(np.int64).ravel()

    def ring_sum(values: FloatArray) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(ring, values.ravel())[1 : side // 2 + 1], np.float64)

    shared = ring_sum((spectrum_a * spectrum_b.conj()).real)
    powers = np.sqrt(ring_sum(np.abs(spectrum_a) ** 2) * ring_sum(np.abs(spectrum_b) ** 2))
    correlation = np.divide(shared, powers, out=np.zeros_like(shared), where=powers > 0)
    n_pixels = np.bincount(ring)[1 : side // 2 + 1]
    frequency = np.arange(1, side // 2 + 1) / (side * pixel_m)
    half_bit, one_bit = frc_threshold(n_pixels, SNR_HALF_BIT), frc_threshold(n_pixels, SNR_ONE_BIT)
    return FRC(
        frequency,
        correlation,
        n_pixels,
        half_bit,
        one_bit,
        _resolution_m(frequency, correlation - half_bit),
        _resolution_m(frequency, correlation - one_bit),
    )


def dose(coverage: FloatArray, pixel_m: float) -> Dose:
    """Add up the photons delivered to the sample.

    Parameters
    ----------
    coverage : ndarray, shape (Y, X)
        Summed illumination, photons per pixel.
    pixel_m : float
        Sample pixel, metres.

    Raises
    ------
    ValueError
        If nothing is illuminated.
    GeometryError
        If `pixel_m` is not a positive number.
    """
    if not (math.isfinite(pixel_m) and pixel_m > 0):
        raise GeometryError(f"pixel_m must be finite and positive; it is {pixel_m}")
    photons = np.asarray(coverage, np.float64)
    return Dose(float(photons.sum()), float(photons[illuminated(photons)].mean()) / pixel_m**2)


def interval_coverage(
    error: FloatArray, std: FloatArray, levels: Sequence[float] = (0.5, 0.9, 0.95)
) -> dict[float, float]:
    """Count how often the central intervals of the predicted normal distribution hold the error.

    Parameters
    ----------
    error : ndarray
        Estimate minus truth; phases wrapped with `wrap_rad`.
    std : ndarray
        Predicted standard deviation, same shape and unit.
    levels : sequence of float
        Probability of each interval, between 0 and 1.

    Returns
    -------
    dict
        Share of errors within each level's interval; equal to the level when calibrated.

    Raises
    ------
    ValueError
        If shapes differ, arrays are empty or not finite, a `std` is negative or a level not in (0, 1).
    """
    size, spread = _checked_errors(error, std)
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must lie between 0 and 1; they are {tuple(levels)}")
    return {float(level): float(np.mean(size <= special.ndtri((1 + level) / 2) * spread)) for level in levels}


def expected_calibration_error(error: FloatArray, std: FloatArray) -> float:
    """Average the distance between observed and nominal interval coverage over the levels 5, 10, ... 95 %.

    The calibration error of Kuleshov, Fenner & Ermon, ICML 2018, with absolute differences of central
    intervals: 0 is calibrated, 0.5 the worst.

    Parameters
    ----------
    error, std : ndarray
        As `interval_coverage`.

    Raises
    ------
    ValueError
        As `interval_coverage`.
    """
    observed = interval_coverage(error, std, [k / 20 for k in range(1, 20)])
    return float(np.mean([abs(share - level) for level, share in observed.items()]))


def rank_correlation(error: FloatArray, std: FloatArray) -> float:
    """Compute Spearman's rank correlation of absolute error and predicted standard deviation.

    Parameters
    ----------
    error, std : ndarray
        As `interval_coverage`.

    Returns
    -------
    float
        -1 to 1; NaN where all errors, or all predictions, are equal.

    Raises
    ------
    ValueError
        As `interval_coverage`.
    """
    size, spread = _checked_errors(error, std)
    if np.ptp(size) == 0 or np.ptp(spread) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(size), stats.rankdata(spread))[0, 1])


def ause(error: FloatArray, std: FloatArray) -> float:
    """Compute the area under the sparsification error curve, Ilg et al., ECCV 2018.

    Pixels are taken away from the most uncertain on; the mean absolute error of the rest, divided by
    that of all, is compared with what the order of the errors themselves would give. Pixels of equal
    uncertainty go together.

    Parameters
    ----------
    error, std : ndarray
        As `interval_coverage`.

    Returns
    -------
    float
        0 when the prediction ranks errors perfectly (and where there is no error).

    Raises
    ------
    ValueError
        As `interval_coverage`.
    """
    size, spread = _checked_errors(error, std)
    if not size.any():
        return 0.0
    _, group, members = np.unique(spread, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, size) / members)[group]
    kept = np.arange(1, size.size + 1)
    by_std = np.cumsum(expected[np.argsort(spread)]) / kept
    by_error = np.cumsum(np.sort(size)) / kept
    return float(np.mean(by_std - by_error) / size.mean())


def crop_to(
    truth: ComplexArray,
    truth_origin_m: Sequence[float],
    origin_m: Sequence[float],
    shape: tuple[int, int],
    pixel_m: float,
) -> ComplexArray:
    """Cut out the part of a truth that lies under a canvas, to the nearest pixel.

    The rest of the shift, at most half a pixel, is left to `align`.

    Parameters
    ----------
    truth : ndarray, shape (Y', X'), complex
    truth_origin_m, origin_m : sequence of float
        Position (y, x) of pixel [0, 0] of the truth and of the canvas, metres.
    shape : tuple of int
        (Y, X) of the canvas.
    pixel_m : float
        Pixel of both, metres.

    Raises
    ------
    GeometryError
        If the canvas leaves the truth.
    """
    first = np.rint((np.asarray(origin_m, np.float64) - np.asarray(truth_origin_m, np.float64)) / pixel_m)
    inside = np.isfinite(first).all() and (first >= 0).all() and (first + shape <= np.asarray(truth.shape)).all()
    if not inside:
        raise GeometryError(
            f"a canvas of {tuple(shape)} pixels at {tuple(origin_m)} m must lie inside the truth; it begins at pixel "
            f"{tuple(first.tolist())} of the {truth.shape}. Make the truth larger, or the window smaller."
        )
    y, x = int(first[0]), int(first[1])
    return truth[y : y + shape[0], x : x + shape[1]]


def compare(
    estimate_object: ComplexArray, truth: ComplexArray, coverage: FloatArray, pixel_m: float
) -> dict[str, float]:
    """Align an estimate with the truth and measure what is left, on the illuminated pixels.

    Parameters
    ----------
    estimate_object, truth : ndarray, shape (Y, X), complex
        On one grid; see `crop_to`.
    coverage : ndarray, shape (Y, X)
        Summed illumination, photons per pixel.
    pixel_m : float
        Sample pixel, metres.

    Returns
    -------
    dict
        ``complex_nrmse``, ``phase_mae_rad``, and ``shift_y_m``, ``shift_x_m`` that were removed.

    Raises
    ------
    ValueError
        As `align` and `illuminated`.
    """
    mask = illuminated(coverage)
    aligned = align(estimate_object, truth, mask)
    return {
        "complex_nrmse": complex_nrmse(aligned.object, aligned.truth, mask),
        "phase_mae_rad": phase_mae_rad(aligned.object, aligned.truth, mask),
        "shift_y_m": aligned.shift_px[0] * pixel_m,
        "shift_x_m": aligned.shift_px[1] * pixel_m,
    }


def _checked(
    estimate: ComplexArray, truth: ComplexArray, mask_or_weight: Weight
) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128], npt.NDArray[np.float64]]:
    image, target = np.asarray(estimate, np.complex128), np.asarray(truth, np.complex128)
    weight = np.asarray(mask_or_weight, np.float64)
    if image.ndim != 2 or image.shape != target.shape or image.shape != weight.shape:
        raise ValueError(
            "estimate, truth and weight must be images of one shape (Y, X); they are "
            f"{image.shape}, {target.shape} and {weight.shape}. `crop_to` cuts a truth to a canvas."
        )
    if not (np.isfinite(image).all() and np.isfinite(target).all()):
        raise ValueError("estimate and truth must be finite everywhere; NaN or infinity came")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise ValueError("the mask or weight must be finite, nowhere negative and somewhere positive")
    return image, target, weight


def _checked_real(
    image: FloatArray, truth: FloatArray, what: str, value: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if np.iscomplexobj(image) or np.iscomplexobj(truth):
        raise ValueError("a real image is needed; a complex one came: compare np.abs and np.angle separately")
    x, y = np.asarray(image, np.float64), np.asarray(truth, np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"image and truth must be of one shape (Y, X); they are {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("image and truth must be finite everywhere; NaN or infinity came")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be finite and positive; it is {value}")
    return x, y


def _checked_errors(error: FloatArray, std: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    size, spread = np.abs(np.asarray(error, np.float64)).ravel(), np.asarray(std, np.float64).ravel()
    if np.shape(error) != np.shape(std) or not size.size:
        raise ValueError(f"error and std must have one shape, not empty; they are {np.shape(error)}, {np.shape(std)}")
    if not (np.isfinite(size).all() and np.isfinite(spread).all() and (spread >= 0).all()):
        raise ValueError("error and std must be finite and std not negative; select the illuminated pixels first")
    return size, spread


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _power(image: npt.NDArray[np.complex128], weight: npt.NDArray[np.float64]) -> float:
    return float(np.sum(weight * (image.real**2 + image.imag**2)))


def _best_scale(
    image: npt.NDArray[np.complex128], target: npt.NDArray[np.complex128], weight: npt.NDArray[np.float64]
) -> complex:
    power = _power(image, weight)
    return complex(np.sum(weight * image.conj() * target) / power) if power else 1 + 0j


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
    if _power(a, weight) <= 1e-20 * _power(image, weight) or _power(b, weight) <= 1e-20 * _power(target, weight):
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


def _windowed_spectrum(image: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    # The periodic Hann window: its spectrum is three pixels wide and exactly zero beyond.
    rows, columns = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in image.shape)
    return np.asarray(fft.fft2((image - image.mean()) * np.outer(rows, columns)))


def _resolution_m(frequency_per_m: FloatArray, margin: FloatArray) -> float | None:
    """Return the period at which `margin` first becomes negative, between rings by linear interpolation."""
    below = np.flatnonzero(margin < 0)
    if not below.size:
        return None
    last = int(below[0]) - 1
    if last < 0:
        return math.inf
    part = margin[last] / (margin[last] - margin[last + 1])
    return 1 / float(frequency_per_m[last] + part * (frequency_per_m[last + 1] - frequency_per_m[last]))
