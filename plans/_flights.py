"""Flights along positions: without stops, or resting during the exposures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.plans._keep_out import KeepOut
from bluesky_cdi.protocols import Flight, FloatArray


def line_spiral(low_m: Sequence[float], high_m: Sequence[float], step_m: float) -> FloatArray:
    """Lay a spiral whose turns and whose points along it are a step apart, as far as it fits into the window.

    Parameters
    ----------
    low_m, high_m : sequence of float
        Corners (y, x) of the window, metres; the spiral fills the largest circle in it.
    step_m : float
        Distance of neighbours, metres.

    Returns
    -------
    ndarray, shape (n, 2)
        (y, x), metres.
    """
    low, high = np.asarray(low_m, dtype=np.float64), np.asarray(high_m, dtype=np.float64)
    turns = float((high - low).min()) / 2 / step_m
    angle = np.linspace(0.0, 2 * np.pi * turns, max(2, int(np.ceil(200 * turns))))  # 200 chords a turn
    curve = (low + high) / 2 + step_m * (angle / (2 * np.pi))[:, None] * np.column_stack([np.sin(angle), np.cos(angle)])
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    places = np.arange(0.0, length[-1] + step_m * 1e-6, step_m)
    return np.column_stack([np.interp(places, length, curve[:, axis]) for axis in (0, 1)])


def pieces(points_m: FloatArray, keep_out: KeepOut, longest_m: float = np.inf) -> list[FloatArray]:
    """Part positions, in their order, where the straight way to the next one crosses a box, or is too long.

    Parameters
    ----------
    points_m : ndarray, shape (n, 2)
        (y, x), metres.
    keep_out : KeepOut
        The boxes.
    longest_m : float
        Longest way from one position to the next in one piece, metres.
    """
    ways = np.hypot(*np.diff(points_m, axis=0).T)
    ends = [
        i + 1
        for i, way in enumerate(ways)
        if way > longest_m or (keep_out.boxes_m and not keep_out.lets_pass(points_m[i], points_m[i + 1]))
    ]
    return np.split(points_m, ends)


def through(points_m: FloatArray, period_s: float, exposure_s: float) -> Flight:
    """Fly through positions without stopping, one each period; the middles of exposures are there.

    It rests at the first and the last one for a period, so that encoders have samples around all exposures.

    Parameters
    ----------
    points_m : ndarray, shape (n, 2)
        (y, x), metres.
    period_s, exposure_s : float
        Seconds.
    """
    middles_s = period_s * (1 + np.arange(len(points_m)))
    times_s = np.concatenate([[0.0], middles_s, [middles_s[-1] + period_s]])
    positions_m = np.concatenate([points_m[:1], points_m, points_m[-1:]])
    return Flight(times_s, positions_m, period_s - exposure_s / 2, period_s, exposure_s, len(points_m))


def resting(points_m: FloatArray, period_s: float, exposure_s: float, speed_m_per_s: float = np.inf) -> Flight:
    """Fly from position to position, at rest during each exposure; positions may lie far apart.

    Parameters
    ----------
    points_m : ndarray, shape (n, 2)
        (y, x), metres.
    period_s, exposure_s : float
        Seconds. The period is longer where a way needs that.
    speed_m_per_s : float
        Highest speed, metres per second.
    """
    longest_m = float(np.max(np.hypot(*np.diff(points_m, axis=0).T), initial=0.0))
    period_s = max(period_s, exposure_s + longest_m / speed_m_per_s)
    starts_s = (period_s - exposure_s) + period_s * np.arange(len(points_m))
    times_s = np.concatenate([[0.0], np.column_stack([starts_s, starts_s + exposure_s]).ravel()])
    times_s = np.concatenate([times_s, [times_s[-1] + period_s - exposure_s]])
    positions_m = np.repeat(points_m, 2, axis=0)
    positions_m = np.concatenate([points_m[:1], positions_m, points_m[-1:]])
    return Flight(times_s, positions_m, float(starts_s[0]), period_s, exposure_s, len(points_m))


def check_rate(rate_hz: float, exposure_s: float | None, duty: float) -> tuple[float, float]:
    """Give period and exposure of frames at a rate, seconds.

    Parameters
    ----------
    rate_hz : float
        Frames a second.
    exposure_s : float or None
        Exposure; None: a part of the period.
    duty : float
        That part.

    Raises
    ------
    GeometryError
        If the rate is not positive, or exposures don't fit into it.
    """
    sound = np.isfinite(rate_hz) and rate_hz > 0
    period_s = 1 / rate_hz if sound else np.nan
    exposure = duty * period_s if exposure_s is None else exposure_s
    if not (sound and 0 < exposure < period_s):
        raise GeometryError(
            "a fly scan needs a rate above 0 Hz and an exposure above 0 and below a period (1 / rate); "
            f"got rate_hz={rate_hz}, exposure_s={exposure_s}"
        )
    return period_s, float(exposure)
