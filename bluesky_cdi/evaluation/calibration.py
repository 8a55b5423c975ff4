"""Whether predicted errors are the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from bluesky_cdi.protocols import FloatArray


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


def share_inside(error: FloatArray, std: FloatArray, widths: Mapping[float, float]) -> dict[float, float]:
    """Count how often intervals of stated widths hold the error.

    Parameters
    ----------
    error, std : ndarray
        As `interval_coverage`.
    widths : Mapping of float to float
        Half width of the interval of each level, in deviations; see `interval_widths`.

    Returns
    -------
    dict
        Share of errors within each level's interval; equal to the level when calibrated.

    Raises
    ------
    ValueError
        As `interval_coverage`.
    """
    size, spread = _checked_errors(error, std)
    return {level: float(np.mean(size <= width * spread)) for level, width in widths.items()}


def interval_widths(source: Mapping[str, Any], part: str = "phase") -> dict[float, float]:
    """Read how wide an estimate says that its central intervals are.

    Parameters
    ----------
    source : Mapping
        Of the estimate; its ``uncertainty`` has ``intervals``.
    part : {'amplitude', 'phase'}
        Whose.

    Returns
    -------
    dict
        By level the half width in predicted deviations; those of a normal distribution where it doesn't say.
    """
    said = source.get("uncertainty")
    widths = said.get("intervals", {}).get(part) if isinstance(said, Mapping) else None
    if widths is None:
        return {level: float(special.ndtri((1 + level) / 2)) for level in (0.5, 0.9, 0.95)}
    # Keys of documents may hold no dot: they are per cent.
    return {float(level) / 100: float(width) for level, width in widths.items()}


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


def _checked_errors(error: FloatArray, std: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    size, spread = np.abs(np.asarray(error, np.float64)).ravel(), np.asarray(std, np.float64).ravel()
    if np.shape(error) != np.shape(std) or not size.size:
        raise ValueError(f"error and std must have one shape, not empty; they are {np.shape(error)}, {np.shape(std)}")
    if not (np.isfinite(size).all() and np.isfinite(spread).all() and (spread >= 0).all()):
        raise ValueError("error and std must be finite and std not negative; select the illuminated pixels first")
    return size, spread
