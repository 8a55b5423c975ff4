"""Where a plan of Bluesky will measure, as its start document tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_cdi.callbacks._positions import is_named
from bluesky_cdi.protocols import FloatArray

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]
# Of each motor, by its representation: the first point, and the lowest and the highest.
Range = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class PlanPattern:
    """First point and bounds of a pattern; its origin is the stage's, or where a relative plan begins.

    Attributes
    ----------
    first, low, high : ndarray, shape (2,)
        (y, x), metres.
    """

    first: FloatArray
    low: FloatArray
    high: FloatArray

    def around(self, position_m: FloatArray, slack_m: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Give the corners of the window of a scan.

        Parameters
        ----------
        position_m : ndarray, shape (2,)
            Where its first point was measured, (y, x), metres.
        slack_m : float
            Room on each side, metres.
        """
        low, high = (position_m - self.first + bound for bound in (self.low - slack_m, self.high + slack_m))
        return (float(low[0]), float(low[1])), (float(high[0]), float(high[1]))


def plan_pattern(start: Document, motors: Sequence[str], metres_per: Sequence[float]) -> PlanPattern | None:
    """Read the pattern of a plan; None where it is none of Bluesky's own, or of other motors.

    Parameters
    ----------
    start : Mapping
        The run's start document.
    motors : sequence of str
        Names of the motors, (y, x).
    metres_per : sequence of float
        Metres that one unit of each is.
    """
    if start.get("plan_pattern_module") != "bluesky.plan_patterns":
        return None
    read = _PATTERNS.get(str(start.get("plan_pattern")))
    if read is None:
        return None
    try:
        ranges = read(start["plan_pattern_args"])
        found = [next(of for name, of in ranges.items() if is_named(motor, name)) for motor in motors]
        rows = np.array(found, dtype=np.float64) * np.asarray(metres_per)[:, None]
    except (StopIteration, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as err:
        logger.debug("the pattern of run %s can't be told beforehand: %r", start.get("scan_id"), err)
        return None
    return PlanPattern(*rows.T) if np.isfinite(rows).all() else None


def _products(args: Mapping[str, Any]) -> dict[str, Range]:
    """Read (motor, start, stop[, number][, snake]) of a grid or a line."""
    items = list(args["args"])
    places = [i for i, item in enumerate(items) if isinstance(item, str)]
    return {items[i]: (items[i + 1], *sorted(items[i + 1 : i + 3])) for i in places}


def _lists(args: Mapping[str, Any]) -> dict[str, Range]:
    """Read (motor, positions) of a list scan."""
    items = list(args["args"])
    return {items[i]: (items[i + 1][0], min(items[i + 1]), max(items[i + 1])) for i in range(0, len(items), 2)}


def _curve(name: str) -> Callable[[Mapping[str, Any]], dict[str, Range]]:
    """Make the points of a spiral again."""

    def read(args: Mapping[str, Any]) -> dict[str, Range]:
        from bluesky import plan_patterns

        points = list(getattr(plan_patterns, name)(**args))
        columns = {motor: [point[motor] for point in points] for motor in points[0]}
        return {motor: (column[0], min(column), max(column)) for motor, column in columns.items()}

    return read


_PATTERNS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Range]]] = {
    "outer_product": _products,
    "inner_product": _products,
    "outer_list_product": _lists,
    "inner_list_product": _lists,
    "spiral": _curve("spiral"),
    "spiral_fermat": _curve("spiral_fermat"),
}
