"""The positions among which an agent may choose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import spatial

from bluesky_cdi.agent.patterns import IndexArray, grid_axes
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """The only positions that an agent may choose.

    Parameters
    ----------
    candidates_m : ndarray, shape (m, 2), float64
        (y, x), metres.
    recorded : bool
        The candidates are those of a recorded scan: nothing else can be measured.

    Raises
    ------
    SearchSpaceError
        If there is no candidate, or one is not finite.
    """

    candidates_m: FloatArray
    recorded: bool = False

    def __post_init__(self) -> None:
        points = np.array(self.candidates_m, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise SearchSpaceError(
                f"candidates must have shape (m, 2) with m >= 1, (y, x) in metres; they have {points.shape}"
            )
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise SearchSpaceError(
                f"candidates must be finite; {int(bad.sum())} of {len(points)} are not, "
                f"the first at index {int(bad.argmax())}. Remove those positions from the scan."
            )
        points.setflags(write=False)
        object.__setattr__(self, "candidates_m", points)

    @classmethod
    def grid(cls, low_m: npt.ArrayLike, high_m: npt.ArrayLike, step_m: float) -> SearchSpace:
        """Make a regular grid, centred in a window.

        Parameters
        ----------
        low_m, high_m : array-like, shape (2,)
            Corners (y, x) of the window, metres.
        step_m : float
            Distance of neighbours, metres.

        Raises
        ------
        SearchSpaceError
            If the window or the step is not usable.
        """
        y, x = grid_axes(low_m, high_m, step_m)
        return cls(np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2))

    @classmethod
    def from_positions(cls, positions_m: npt.ArrayLike) -> SearchSpace:
        """Take the positions of a recorded scan as they are, near-duplicates too.

        Parameters
        ----------
        positions_m : array-like, shape (m, 2)
            (y, x), metres.

        Raises
        ------
        SearchSpaceError
            If there is no position, or one is not finite.
        """
        return cls(np.asarray(positions_m, dtype=np.float64), recorded=True)

    def __len__(self) -> int:
        return len(self.candidates_m)

    @property
    def low_m(self) -> FloatArray:
        """Lower corner (y, x) of the candidates, metres."""
        return np.asarray(self.candidates_m.min(axis=0))

    @property
    def high_m(self) -> FloatArray:
        """Upper corner (y, x) of the candidates, metres."""
        return np.asarray(self.candidates_m.max(axis=0))

    @cached_property
    def spacing_m(self) -> float:
        """Median distance of distinct neighbours, metres; infinite for a single candidate."""
        distinct = np.unique(self.candidates_m, axis=0)
        if len(distinct) < 2:
            return float("inf")
        distance, _ = spatial.cKDTree(distinct).query(distinct, k=2)
        return float(np.median(distance[:, 1]))

    def nearest(self, positions_m: npt.ArrayLike) -> IndexArray:
        """Find the candidate nearest to each position.

        Parameters
        ----------
        positions_m : array-like, shape (n, 2)
            (y, x), metres.

        Returns
        -------
        ndarray, shape (n,), int64
        """
        _, index = self.tree.query(np.asarray(positions_m, dtype=np.float64).reshape(-1, 2))
        return np.asarray(index, dtype=np.int64)

    @cached_property
    def tree(self) -> spatial.cKDTree:
        """Spatial index of the candidates."""
        return spatial.cKDTree(self.candidates_m)
