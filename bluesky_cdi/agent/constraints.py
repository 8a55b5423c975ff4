"""What may be measured, as boolean masks over the candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bluesky_cdi.agent.patterns import MaskArray
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray

Box = tuple[tuple[float, float], tuple[float, float]]
"""Rectangle ((y, x) low, (y, x) high), metres."""


def outside_boxes(candidates_m: FloatArray, boxes_m: Sequence[Box]) -> MaskArray:
    """Tell which candidates lie in none of the keep-out rectangles.

    Parameters
    ----------
    candidates_m : ndarray, shape (m, 2)
        (y, x), metres.
    boxes_m : sequence of ((y, x), (y, x))
        Low and high corners, metres; the border belongs to the rectangle.

    Returns
    -------
    ndarray, shape (m,), bool

    Raises
    ------
    SearchSpaceError
        If nothing is left.
    """
    allowed = np.ones(len(candidates_m), bool)
    for low, high in boxes_m:
        allowed &= ~((candidates_m >= low) & (candidates_m <= high)).all(axis=1)
    if not allowed.any():
        raise SearchSpaceError(
            f"keep-out rectangles must leave some candidate; these {len(boxes_m)} leave none: {boxes_m}. "
            "Are their corners (y, x) in metres?"
        )
    return allowed


def overlapping(nearest_m: FloatArray, reach_m: float) -> MaskArray:
    """Tell which candidates overlap something measured or pending; all do while nothing is.

    Parameters
    ----------
    nearest_m : ndarray, shape (m,)
        Distance to the nearest measured or pending position, metres; infinite where there is none.
    reach_m : float
        Largest distance at which two frames overlap: one probe width, metres.

    Returns
    -------
    ndarray, shape (m,), bool
    """
    if np.isinf(nearest_m).all():
        return np.ones(len(nearest_m), bool)
    return np.asarray(nearest_m <= reach_m * (1 + 1e-9))
