"""The candidates of a scan, and what is measured or on its way among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bluesky_cdi.agent.acquisition import Coverage
from bluesky_cdi.agent.constraints import Box, outside_boxes
from bluesky_cdi.agent.observations import Observations
from bluesky_cdi.agent.patterns import IndexArray, MaskArray
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray

# Frames on a square lattice one probe width apart leave no place farther than this many widths.
FILL_GAP = 2**-0.5


class Field:
    """Keeps which candidates are open, how far each is from what is measured, and how much of the field is lit.

    Parameters
    ----------
    space : SearchSpace
        The candidates.
    width_m : float
        Full width at half maximum of the illumination, metres.
    keep_out_m : sequence of ((y, x), (y, x))
        Rectangles where nothing may be measured, low and high corners, metres.

    Raises
    ------
    SearchSpaceError
        If no candidate is allowed, or the width is not a length.
    """

    def __init__(self, space: SearchSpace, width_m: float, keep_out_m: Sequence[Box] = ()) -> None:
        if not (np.isfinite(width_m) and width_m > 0):
            raise SearchSpaceError(f"the probe's width must be a positive length in metres; it is {width_m!r}")
        self.space, self.width_m = space, width_m
        self.allowed = outside_boxes(space.candidates_m, keep_out_m)
        self._visited = np.zeros(len(space), bool)
        self.forget()

    @property
    def is_open(self) -> MaskArray:
        """Which candidates may still be chosen, shape (m,)."""
        return self.allowed & ~self._visited

    @property
    def gap_m(self) -> float:
        """Distance to the nearest frame from which on a place is not covered, metres."""
        return FILL_GAP * self.width_m

    def forget(self) -> None:
        """Forget what was measured; what was visited stays visited."""
        self._n_taken = 0
        self._nearest_m = np.full(len(self.space), np.inf)
        self._coverage = Coverage(self.space, self.width_m)

    def visit(self, index: IndexArray) -> None:
        """Mark candidates as chosen."""
        self._visited[index] = True

    def take(self, observations: Observations) -> None:
        """Take in the measured positions that came since the last call."""
        positions_m = observations.positions_m[self._n_taken :]
        for row, position in enumerate(positions_m, start=self._n_taken):
            distance = np.linalg.norm(self.space.candidates_m - position, axis=1)
            np.minimum(self._nearest_m, distance, out=self._nearest_m)
            nearest = int(distance.argmin())
            # The candidate of a proposal is marked already; nearest may be another one at the same place.
            if observations.ids[row] is None and distance[nearest] <= self.space.spacing_m / 2:
                self._visited[nearest] = True
        self._coverage.add_positions(positions_m)
        self._n_taken += len(positions_m)

    def nearest_m(self, pending_m: FloatArray) -> FloatArray:
        """Compute the distance of each candidate to what is measured or pending.

        Parameters
        ----------
        pending_m : ndarray, shape (p, 2)
            Positions on their way, metres.

        Returns
        -------
        ndarray, shape (m,)
            Metres; infinite where nothing is.
        """
        nearest = self._nearest_m.copy()
        for position in pending_m:
            np.minimum(nearest, np.linalg.norm(self.space.candidates_m - position, axis=1), out=nearest)
        return nearest

    def coverage(self, pending_m: FloatArray) -> Coverage:
        """Copy the coverage by what is measured, with pending positions, shape (p, 2), metres, lit too."""
        coverage = self._coverage.copy()
        coverage.add_positions(pending_m)
        return coverage

    def has_gap(self, nearest_m: FloatArray) -> bool:
        """Tell whether the field is not yet covered once, from the distances that `nearest_m` gives."""
        return bool((nearest_m[self.is_open] > self.gap_m).any())
