"""Scan patterns and even orderings: numpy only, so that plans can import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray

IndexArray = npt.NDArray[np.int64]
MaskArray = npt.NDArray[np.bool_]

GOLDEN_ANGLE_RAD = np.pi * (3.0 - np.sqrt(5.0))


def grid_axes(low_m: npt.ArrayLike, high_m: npt.ArrayLike, step_m: float) -> tuple[FloatArray, FloatArray]:
    """Compute the coordinates of a regular grid, centred in its window.

    Parameters
    ----------
    low_m, high_m : array-like, shape (2,)
        Corners (y, x) of the window, metres.
    step_m : float
        Distance of neighbours, metres.

    Returns
    -------
    y_m, x_m : ndarray

    Raises
    ------
    SearchSpaceError
        If the window or the step is not usable.
    """
    low, high = _window(low_m, high_m, step_m)
    # The small allowance keeps a window of exactly k steps from losing its last line to rounding.
    steps = np.floor((high - low) / step_m + 1e-6).astype(int)
    first = (low + high - steps * step_m) / 2
    return first[0] + step_m * np.arange(steps[0] + 1), first[1] + step_m * np.arange(steps[1] + 1)


def raster(low_m: npt.ArrayLike, high_m: npt.ArrayLike, step_m: float) -> FloatArray:
    """Lay a regular raster, every other row backwards.

    Parameters
    ----------
    low_m, high_m : array-like, shape (2,)
        Corners (y, x) of the window, metres.
    step_m : float
        Distance of neighbours, metres.

    Returns
    -------
    ndarray, shape (n, 2)
        (y, x), metres.

    Raises
    ------
    SearchSpaceError
        If the window or the step is not usable.
    """
    y, x = grid_axes(low_m, high_m, step_m)
    rows = [np.column_stack([np.full(len(x), yi), x if i % 2 == 0 else x[::-1]]) for i, yi in enumerate(y)]
    return np.concatenate(rows)


def fermat_spiral(low_m: npt.ArrayLike, high_m: npt.ArrayLike, step_m: float) -> FloatArray:
    """Lay a Fermat spiral from the centre of the window, clipped to it; one point per ``step_m**2``.

    Point k lies at radius ``step_m * sqrt(k / pi)`` and angle k times the golden angle
    (Huang et al., Optics Express 22, 12634 (2014)).

    Parameters
    ----------
    low_m, high_m : array-like, shape (2,)
        Corners (y, x) of the window, metres.
    step_m : float
        Square root of the area per point, metres.

    Returns
    -------
    ndarray, shape (n, 2)
        (y, x), metres.

    Raises
    ------
    SearchSpaceError
        If the window or the step is not usable.
    """
    low, high = _window(low_m, high_m, step_m)
    half = (high - low) / 2
    k = np.arange(int(np.pi * (half @ half) / step_m**2) + 2)
    radius, angle = step_m * np.sqrt(k / np.pi), GOLDEN_ANGLE_RAD * k
    offset = radius[:, None] * np.column_stack([np.sin(angle), np.cos(angle)])
    inside = (np.abs(offset) <= half).all(axis=1)
    return np.asarray((low + high) / 2 + offset[inside])


def within_budget(
    pattern: Callable[[npt.ArrayLike, npt.ArrayLike, float], FloatArray],
    low_m: npt.ArrayLike,
    high_m: npt.ArrayLike,
    step_m: float,
    budget: int,
) -> FloatArray:
    """Widen a pattern's step until it covers the window with at most `budget` positions.

    Parameters
    ----------
    pattern : callable
        `raster` or `fermat_spiral`.
    low_m, high_m : array-like, shape (2,)
        Corners (y, x) of the window, metres.
    step_m : float
        Smallest step, metres.
    budget : int
        At least 1.

    Returns
    -------
    ndarray, shape (n, 2), n <= budget
        (y, x), metres.

    Raises
    ------
    SearchSpaceError
        If the window, the step or the budget is not usable.
    """
    if budget < 1:
        raise SearchSpaceError(f"the budget of a scan must be at least 1 frame; it is {budget}")
    order = pattern(low_m, high_m, step_m)
    while len(order) > budget:
        step_m *= 1.01  # one per cent finer than any difference that a scan would show
        order = pattern(low_m, high_m, step_m)
    return order


def random_uniform(low_m: npt.ArrayLike, high_m: npt.ArrayLike, n: int, seed: int) -> FloatArray:
    """Draw independent uniform positions.

    Parameters
    ----------
    low_m, high_m : array-like, shape (2,)
        Corners (y, x) of the window, metres.
    n : int
        Number of positions.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray, shape (n, 2)
        (y, x), metres.

    Raises
    ------
    SearchSpaceError
        If the window is not usable.
    """
    low, high = _window(low_m, high_m, 1.0)
    return np.random.default_rng(seed).uniform(low, high, size=(n, 2))


def coverage_order(candidates_m: npt.ArrayLike, seed: int) -> FloatArray:
    """Order candidates so that every prefix covers them evenly.

    Greedy farthest-point order from the centre (Gonzalez, Theor. Comput. Sci. 38, 293 (1985)):
    the largest gap after any k points is at most twice the smallest possible one.

    Parameters
    ----------
    candidates_m : array-like, shape (m, 2)
        (y, x), metres.
    seed : int
        Decides between candidates equally far.

    Returns
    -------
    ndarray, shape (m, 2)
        The same positions, (y, x), metres.
    """
    points = np.asarray(candidates_m, dtype=np.float64)
    everywhere = np.full(len(points), np.inf)
    return points[farthest_first(points, everywhere, len(points), np.random.default_rng(seed))]


def farthest_first(
    candidates_m: FloatArray,
    nearest_m: FloatArray,
    n: int,
    rng: np.random.Generator,
    allowed: MaskArray | None = None,
    gap_m: float | None = None,
) -> IndexArray:
    """Choose candidates one by one, each the farthest from all that is chosen already.

    Parameters
    ----------
    candidates_m : ndarray, shape (m, 2)
        (y, x), metres.
    nearest_m : ndarray, shape (m,)
        Distance of each candidate to what was chosen before, metres; infinite where nothing was.
    n : int
        Most candidates to choose.
    rng : Generator
        Decides between candidates equally far.
    allowed : ndarray, shape (m,), bool, optional
        Candidates that may be chosen.
    gap_m : float, optional
        Stop once no allowed candidate is farther than this from what is chosen, metres.

    Returns
    -------
    ndarray, shape (k,), int64
        Indices, k <= n, each once.
    """
    y, x = np.ascontiguousarray(candidates_m[:, 0]), np.ascontiguousarray(candidates_m[:, 1])
    # Negative marks what can't be chosen; it survives the minimum below.
    square = np.where(np.ones(len(y), bool) if allowed is None else allowed, nearest_m**2, -1.0)
    tie_break = 1.0 + 1e-6 * rng.random(len(y))
    chosen: list[int] = []
    while len(chosen) < min(n, len(y)):
        best = int(np.argmax(square * tie_break))
        if np.isinf(square[best]):
            best = _most_central(y, x, square)
        if square[best] < 0 or (gap_m is not None and square[best] <= gap_m**2):
            break
        chosen.append(best)
        np.minimum(square, (y - y[best]) ** 2 + (x - x[best]) ** 2, out=square)
        square[best] = -1.0
    return np.asarray(chosen, dtype=np.int64)


def _most_central(y: FloatArray, x: FloatArray, square: FloatArray) -> int:
    centre_y, centre_x = (y.min() + y.max()) / 2, (x.min() + x.max()) / 2
    return int(np.argmin(np.where(np.isinf(square), (y - centre_y) ** 2 + (x - centre_x) ** 2, np.inf)))


def _window(low_m: npt.ArrayLike, high_m: npt.ArrayLike, step_m: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    low, high = np.asarray(low_m, dtype=np.float64), np.asarray(high_m, dtype=np.float64)
    if low.shape != (2,) or high.shape != (2,) or not np.isfinite([low, high]).all() or (high < low).any():
        raise SearchSpaceError(
            f"a scan window needs two finite corners (y, x) in metres, low <= high; they are {low} and {high}"
        )
    if not (np.isfinite(step_m) and step_m > 0):
        raise SearchSpaceError(f"the step of a scan must be a positive length in metres; it is {step_m!r}")
    return low, high
