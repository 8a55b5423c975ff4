"""How far an image is from the truth, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation._checks import BoolArray, Weight, checked, checked_real, weighted_energy
from bluesky_cdi.evaluation.alignment import best_scale, illuminated_mask, wrap_rad
from bluesky_cdi.protocols import ComplexArray, FloatArray

# Side of the window of `ssim`.
SSIM_WINDOW_PX = 11


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


def complex_nrmse(estimate: ComplexArray, truth: ComplexArray, mask_or_weight: Weight) -> float:
    """Compute the normalised root mean square error under the best complex scale.

    ``sqrt(sum w |a O - T|^2 / sum w |T - mean(T)|^2)``: 0 is perfect, 1 no better than a constant.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
        Objects whose shift and ramp are removed.
    mask_or_weight : ndarray, shape (Y, X)
        Weight of each pixel, not negative.

    Returns
    -------
    float
        NaN where the truth has no contrast, and the measure no meaning.

    Raises
    ------
    ValueError
        As `align`.
    """
    image, target, weight = checked(estimate, truth, mask_or_weight)
    contrast = weighted_energy(target - np.average(target, weights=weight), weight)
    if contrast <= 1e-20 * weighted_energy(target, weight):
        return float("nan")
    return math.sqrt(weighted_energy(best_scale(image, target, weight) * image - target, weight) / contrast)


def phase_mae_rad(estimate: ComplexArray, truth: ComplexArray, mask_or_weight: Weight) -> float:
    """Compute the mean of the absolute wrapped phase difference of two aligned objects, radians.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
        Objects whose shift, ramp and scale are removed.
    mask_or_weight : ndarray, shape (Y, X)
        Weight of each pixel, not negative.

    Raises
    ------
    ValueError
        As `align`.
    """
    image, target, weight = checked(estimate, truth, mask_or_weight)
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
    x, y = checked_real(image, truth, "data_range", data_range)
    if min(x.shape) < SSIM_WINDOW_PX:
        raise ValueError(f"ssim needs at least {SSIM_WINDOW_PX} x {SSIM_WINDOW_PX} pixels; the images are {x.shape}")

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
        Amplitudes, or phases; not both in one.
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
    x, y = checked_real(image, truth, "peak", peak)
    counted = np.ones(x.shape, bool) if mask is None else np.asarray(mask, bool)
    if counted.shape != x.shape or not counted.any():
        raise ValueError(f"mask must be {x.shape} and not empty; it is {counted.shape} with {counted.sum()} pixels")
    error = float(np.mean((x - y)[counted] ** 2))
    return 10 * math.log10(peak**2 / error) if error else math.inf


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
    return Dose(float(photons.sum()), float(photons[illuminated_mask(photons)].mean()) / pixel_m**2)
