"""How far an image is from a truth, or from another image, when nothing that no measurement fixes stands between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bluesky_cdi.evaluation._checks import BoolArray, window_sums
from bluesky_cdi.evaluation.alignment import Aligned, align, crop_to, illuminated_mask, wrap_rad
from bluesky_cdi.evaluation.calibration import interval_widths, rank_correlation, share_inside
from bluesky_cdi.evaluation.image import SSIM_WINDOW_PX, complex_nrmse, phase_mae_rad, psnr, ssim
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray

# Stages come back to a place, and engines leave the whole image free to move, by less than this.
MOST_SHIFT_PX = 16.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """An estimate beside a truth, made comparable, and how far off it is.

    Attributes
    ----------
    aligned : Aligned
        Both images, and the shift, ramp and scale that were removed.
    mask : ndarray, shape (Y, X), bool
        Pixels that count.
    numbers : Mapping of str to float
        ``complex_nrmse`` and ``phase_mae_rad``, as the functions of these names;
        ``ssim_amplitude``, ``ssim_phase``, ``psnr_amplitude_db`` and ``psnr_phase_db``, whose range and peak are the
        truth's own: the phase is that relative to the truth's mean (where it wraps, the range is the whole circle),
        and SSIM counts the windows that lie in the mask as a whole.
        Where predicted errors are given, ``inside_90_percent_interval``, the share of phase errors within the
        central interval of 90 %, those of 50 and 95 %, ``predicted_over_actual_rms`` and
        ``uncertainty_rank_correlation``.
        NaN where a measure has no meaning: all but the phase error in a truth without contrast.
    """

    aligned: Aligned
    mask: BoolArray
    numbers: Mapping[str, float]

    @property
    def object(self) -> npt.NDArray[np.complex128]:
        """The estimate without its ramp, scaled to the truth, shape (Y, X)."""
        return self.aligned.object

    @property
    def truth(self) -> npt.NDArray[np.complex128]:
        """The truth moved under the estimate, shape (Y, X)."""
        return self.aligned.truth


def compare(
    estimate: ComplexArray,
    truth: ComplexArray,
    illumination: FloatArray | BoolArray,
    *,
    std_phase_rad: FloatArray | None = None,
    widths: Mapping[float, float] | None = None,
    max_shift_px: float = MOST_SHIFT_PX,
) -> Comparison:
    """Align an estimate with a truth and measure what is left, on the illuminated pixels.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
        On one grid; see `crop_to`.
    illumination : ndarray, shape (Y, X), real or bool
        Summed illumination, of which `illuminated_mask` is taken, or a mask.
    std_phase_rad : ndarray, shape (Y, X), optional
        Predicted standard deviation of the estimate's phase, radians.
    widths : Mapping of float to float, optional
        Half widths of its central intervals by level, in deviations; those of a normal distribution if absent.
    max_shift_px : float
        Largest shift between them that is looked for.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        As `align`, `illuminated_mask` and `interval_coverage`.
    """
    mask = illuminated_mask(illumination)
    return measured(align(estimate, truth, mask, max_shift_px=max_shift_px), mask, std_phase_rad, widths)


def compare_estimate(estimate: Estimate, truth: ComplexArray, truth_origin_m: Sequence[float]) -> Comparison:
    """Compare an estimate, and the errors that it predicts, with the part of a truth that lies under it.

    Parameters
    ----------
    estimate : Estimate
        Its coverage tells which pixels count.
    truth : ndarray, shape (Y', X'), complex
        On the estimate's pixel.
    truth_origin_m : sequence of float
        Sample position (y, x) of its pixel [0, 0], metres.

    Returns
    -------
    Comparison

    Raises
    ------
    GeometryError
        If the estimate leaves the truth.
    ValueError
        If the estimate has no frame.
    """
    under = crop_to(truth, truth_origin_m, estimate.origin_m, estimate.object.shape, estimate.pixel_m)
    widths = interval_widths(estimate.source)
    return compare(estimate.object, under, estimate.coverage, std_phase_rad=estimate.std_phase_rad, widths=widths)


def measured(
    aligned: Aligned,
    mask: BoolArray,
    std_phase_rad: FloatArray | None = None,
    widths: Mapping[float, float] | None = None,
) -> Comparison:
    """Measure how far off an aligned estimate is; see `compare`.

    Parameters
    ----------
    aligned : Aligned
        Estimate and truth, made comparable.
    mask : ndarray, shape (Y, X), bool
        Pixels that count.
    std_phase_rad : ndarray, shape (Y, X), optional
        Predicted standard deviation of the estimate's phase, radians.
    widths : Mapping of float to float, optional
        As of `compare`.

    Returns
    -------
    Comparison
    """
    found, truth = aligned.object, aligned.truth
    ssim_amplitude, psnr_amplitude = _similarity(np.abs(found), np.abs(truth), mask)
    ssim_phase, psnr_phase = _similarity(*_relative_phases(found, truth, mask), mask)
    numbers = {
        "complex_nrmse": complex_nrmse(found, truth, mask),
        "phase_mae_rad": phase_mae_rad(found, truth, mask),
        "ssim_amplitude": ssim_amplitude,
        "ssim_phase": ssim_phase,
        "psnr_amplitude_db": psnr_amplitude,
        "psnr_phase_db": psnr_phase,
    }
    if std_phase_rad is not None:
        error, std = wrap_rad(np.angle(found) - np.angle(truth))[mask], std_phase_rad[mask]
        shares = share_inside(error, std, interval_widths({}) if widths is None else widths)
        numbers |= {f"inside_{100 * level:g}_percent_interval": share for level, share in shares.items()}
        numbers["predicted_over_actual_rms"] = _rms(std) / max(_rms(error), 1e-12)
        numbers["uncertainty_rank_correlation"] = rank_correlation(error, std)
    return Comparison(aligned, mask, numbers)


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _relative_phases(
    image: npt.NDArray[np.complex128], truth: npt.NDArray[np.complex128], mask: BoolArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return both phases relative to the truth's mean, the image's within half a turn of the truth's: none wraps."""
    mean = np.sum(truth[mask])
    phase = np.angle(truth * np.conj(mean)) if mean else np.angle(truth)
    return np.asarray(phase + np.angle(image * np.conj(truth))), np.asarray(phase)


def _similarity(image: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], mask: BoolArray) -> tuple[float, float]:
    """Return SSIM on the windows that lie in the mask, and PSNR on the mask; the truth's own range for both."""
    span = float(np.ptp(truth[mask]))
    # The rounding of a constant is no contrast.
    if not span > 1e-9 * float(np.abs(truth[mask]).max()):
        return math.nan, math.nan
    inner = _window_centres(mask)
    index = ssim(image, truth, span, inner) if inner.any() else math.nan
    return index, psnr(image, truth, span, mask)


def _window_centres(mask: BoolArray) -> BoolArray:
    """Tell which pixels are centres of SSIM windows that lie in a mask as a whole."""
    half, inner = SSIM_WINDOW_PX // 2, np.zeros_like(mask)
    if min(mask.shape) >= SSIM_WINDOW_PX:
        inner[half:-half, half:-half] = window_sums(mask.astype(np.int64), SSIM_WINDOW_PX) == SSIM_WINDOW_PX**2
    return inner
