"""Where the probe must not go, and ways around it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.protocols import FloatArray

# A way around passes a box at this share of its size.
ROOM = 0.02


@dataclass(frozen=True)
class KeepOut:
    """Boxes in the sample plane that no probe centre may enter, on its way neither.

    Axes of a stage move independently: between two places it may be anywhere in the rectangle that they span.

    Attributes
    ----------
    boxes_m : tuple
        ((y, x), (y, x)) of each: its low and its high corner, metres.
    """

    boxes_m: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = ()

    @classmethod
    def of_um(cls, boxes_um: Sequence[Sequence[Sequence[float]]]) -> KeepOut:
        """Take boxes in micrometres.

        Parameters
        ----------
        boxes_um : sequence of ((y, x), (y, x))
            Low and high corner of each.

        Raises
        ------
        GeometryError
            If a box is not two corners, the low one first.
        """
        boxes = []
        for box in boxes_um:
            corners = np.asarray(box, dtype=np.float64)
            if corners.shape != (2, 2) or not np.isfinite(corners).all() or (corners[0] >= corners[1]).any():
                raise GeometryError(
                    "keep_out_um must hold boxes ((y_low, x_low), (y_high, x_high)) in micrometres, the low corner "
                    f"first; got {box}"
                )
            (y0, x0), (y1, x1) = (corners * 1e-6).tolist()
            boxes.append(((y0, x0), (y1, x1)))
        return cls(tuple(boxes))

    def allows(self, points_m: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Tell which of some points, shape (n, 2), lie outside of all boxes."""
        out = np.ones(len(points_m), bool)
        for low, high in self.boxes_m:
            out &= ~((points_m > low) & (points_m < high)).all(axis=1)
        return out

    def is_free(self, a_m: FloatArray, b_m: FloatArray) -> bool:
        """Tell whether the rectangle that two places span touches no box."""
        low, high = np.minimum(a_m, b_m), np.maximum(a_m, b_m)
        return not any(((high > box[0]) & (low < box[1])).all() for box in self.boxes_m)

    def lets_pass(self, a_m: FloatArray, b_m: FloatArray) -> bool:
        """Tell whether the straight line between two places crosses no box (Liang and Barsky, 1984)."""
        return not any(_crosses(np.asarray(a_m), np.asarray(b_m), *map(np.array, box)) for box in self.boxes_m)

    def way(self, a_m: FloatArray, b_m: FloatArray, low_m: FloatArray, high_m: FloatArray) -> list[FloatArray] | None:
        """Find a short way around the boxes, inside a window.

        Parameters
        ----------
        a_m, b_m : ndarray, shape (2,)
            From where to where, (y, x), metres.
        low_m, high_m : ndarray, shape (2,)
            Corners of the window.

        Returns
        -------
        list of ndarray or None
            Where to go one after the other, `b_m` last; None where there is no way.
        """
        if self.is_free(a_m, b_m):
            return [b_m]
        lines: list[list[float]] = [[float(a_m[axis]), float(b_m[axis])] for axis in (0, 1)]
        for low, high in self.boxes_m:
            for axis in (0, 1):
                room = ROOM * (high[axis] - low[axis])
                lines[axis] += [v for v in (low[axis] - room, high[axis] + room) if low_m[axis] <= v <= high_m[axis]]
        nodes = [np.array([y, x]) for y in sorted(set(lines[0])) for x in sorted(set(lines[1]))]
        return self._shortest(nodes, a_m, b_m)

    def _shortest(self, nodes: Sequence[FloatArray], a_m: FloatArray, b_m: FloatArray) -> list[FloatArray] | None:
        """Find the shortest way over some places, from each to each (Dijkstra)."""
        places = np.array(nodes)
        begin, end = (int(np.hypot(*(places - place).T).argmin()) for place in (a_m, b_m))
        cost, before, queue = {begin: 0.0}, {begin: begin}, [(0.0, begin)]
        while queue:
            so_far, here = heapq.heappop(queue)
            if here == end:
                way = []
                while here != begin:
                    way.append(nodes[here])
                    here = before[here]
                return way[::-1]
            for other in range(len(nodes)):
                length = so_far + float(np.hypot(*(nodes[other] - nodes[here])))
                if length < cost.get(other, np.inf) and self.is_free(nodes[here], nodes[other]):
                    cost[other], before[other] = length, here
                    heapq.heappush(queue, (length, other))
        return None


def _crosses(a: FloatArray, b: FloatArray, low: FloatArray, high: FloatArray) -> bool:
    """Tell whether a straight line enters the inside of a box."""
    enter, leave = 0.0, 1.0
    for axis in (0, 1):
        step = b[axis] - a[axis]
        if step == 0:
            if not low[axis] < a[axis] < high[axis]:
                return False
            continue
        first, last = sorted(((low[axis] - a[axis]) / step, (high[axis] - a[axis]) / step))
        enter, leave = max(enter, first), min(leave, last)
    return bool(enter < leave)
