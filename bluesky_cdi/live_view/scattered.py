"""Numbers at scattered places as an image: each pixel has that of the nearest place, and gaps stay gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_cdi.protocols import FloatArray

# Pixels along the longer side, at most; and how far a place reaches in units of the usual distance to a neighbour:
# the corners of a square raster's cells lie 0.71 away.
MOST_PX, REACH = 240, 0.75
# Pixels between usual neighbours.
FINE = 4.0


@dataclass(frozen=True, eq=False)
class Ground:
    """The pixels of an image of scattered places.

    Attributes
    ----------
    nearest : ndarray, shape (Y, X), int
        Index of the place nearest to each pixel.
    gap : ndarray, shape (Y, X), bool
        Where none is near.
    extent_um : tuple of float
        Left, right, below, above, micrometres; y grows downwards.
    """

    nearest: np.ndarray[Any, Any]
    gap: np.ndarray[Any, Any]
    extent_um: tuple[float, float, float, float]

    @classmethod
    def of(cls, positions_m: FloatArray, lone_m: float) -> Ground:
        """Lay pixels around places.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            (y, x), metres; at least one.
        lone_m : float
            Usual distance to a neighbour where there is but one place, metres.
        """
        from scipy.spatial import KDTree

        tree = KDTree(positions_m)
        apart_m = lone_m
        if len(np.unique(positions_m, axis=0)) > 1:
            distance = tree.query(positions_m, k=2)[0][:, 1]
            apart_m = float(np.median(distance[distance > 0])) if (distance > 0).any() else lone_m
        low, high = positions_m.min(axis=0) - apart_m / 2, positions_m.max(axis=0) + apart_m / 2
        step = max(apart_m / FINE, float((high - low).max()) / MOST_PX)
        rows, columns = np.maximum(1, np.ceil((high - low) / step).astype(int))
        y, x = low[0] + step * (np.arange(rows) + 0.5), low[1] + step * (np.arange(columns) + 0.5)
        # Within a pixel nothing is told apart.
        reach = max(REACH * apart_m, step)
        far, nearest = tree.query(np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1))
        edges = (low[1], low[1] + columns * step, low[0] + rows * step, low[0])
        extent = tuple(float(1e6 * edge) for edge in edges)
        return cls(nearest, far > reach, extent)  # type: ignore[arg-type] # four of them

    def image(self, values: FloatArray) -> np.ma.MaskedArray[Any, Any]:
        """Give the image of values, shape (n,); masked in gaps and where a place has none."""
        return np.ma.masked_invalid(np.ma.array(values[self.nearest], mask=self.gap))
