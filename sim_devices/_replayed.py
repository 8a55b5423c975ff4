"""Frames of a recorded scan."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy.spatial import KDTree

from bluesky_cdi.io import Frames
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.sim_devices._errors import OutOfRangeError
from bluesky_cdi.sim_devices._source import Counts

# How far from a recorded position its frame is still given, in median spacings of the scan.
TOLERANCE_SPACINGS = 3.0


class RecordedScan(Protocol):
    """Parts of a scan that a replay needs; the package's `Scan` has them."""

    @property
    def counts(self) -> Frames:
        """Frames, shape (n, H, W), photons."""

    @property
    def positions_m(self) -> FloatArray:
        """Centre of the probe (y, x) in each frame, shape (n, 2), metres."""

    @property
    def geometry(self) -> Geometry:
        """Far-field geometry."""


class ReplayedSource:
    """Gives the recorded frame nearest to the stage: a `FrameSource`.

    Parameters
    ----------
    scan : RecordedScan
        Where a position was recorded more than once, its first frame is given.

    Attributes
    ----------
    tolerance_m : float
        Largest distance from a recorded position, metres: three times the median distance between
        neighbours, or one sample pixel where all positions are the same.
    """

    def __init__(self, scan: RecordedScan) -> None:
        self._counts: Frames = scan.counts
        self._positions_m = np.asarray(scan.positions_m, np.float64)
        self.tolerance_m = TOLERANCE_SPACINGS * _median_spacing(self._positions_m) or scan.geometry.pixel_m

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W)."""
        return int(self._counts.shape[1]), int(self._counts.shape[2])

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """As recorded."""
        return self._counts.dtype

    @property
    def limits_um(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest position of y, then of x: the recorded ones and the tolerance, micrometres."""
        low = (self._positions_m.min(axis=0) - self.tolerance_m) * 1e6
        high = (self._positions_m.max(axis=0) + self.tolerance_m) * 1e6
        return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))

    def snap(self, position_m: tuple[float, float]) -> tuple[float, float]:
        """Turn a position into the nearest recorded one; leave one that is beyond the tolerance as it is.

        Parameters
        ----------
        position_m : tuple of float
            (y, x), metres.

        Returns
        -------
        tuple of float
            (y, x), metres.
        """
        distance, index = self._nearest(position_m)
        if distance > self.tolerance_m:
            return position_m
        return float(self._positions_m[index, 0]), float(self._positions_m[index, 1])

    def expose(self, position_m: tuple[float, float], exposure_s: float, flux: float) -> Counts:
        """Give the frame recorded nearest to a position; behind a closed shutter (flux 0), zeros.

        Parameters
        ----------
        position_m : tuple of float
            Read-back of the stage (y, x), metres.
        exposure_s : float
            Not used: the frame has the exposure of its recording.
        flux : float
            Incident flux relative to its mean; 0 behind a closed shutter.

        Returns
        -------
        ndarray, shape (H, W)
            Counts.

        Raises
        ------
        OutOfRangeError
            If no position was recorded within the tolerance.
        """
        distance, index = self._nearest(position_m)
        if distance > self.tolerance_m:
            raise OutOfRangeError(
                f"nothing was recorded within {self.tolerance_m * 1e6:.4g} um of (y, x) = "
                f"({position_m[0] * 1e6:.6g}, {position_m[1] * 1e6:.6g}) um: the nearest position of the recorded "
                f"scan is {distance * 1e6:.4g} um away. Choose among the recorded positions when replaying."
            )
        frame: Counts = self._counts[index] if flux > 0 else np.zeros(self.frame_shape, self.frame_dtype)
        return frame.copy()

    def _nearest(self, position_m: tuple[float, float]) -> tuple[float, int]:
        squared = ((self._positions_m - position_m) ** 2).sum(axis=1)
        index = int(squared.argmin())
        return float(np.sqrt(squared[index])), index


def _median_spacing(positions_m: FloatArray) -> float:
    """Compute the median distance of distinct positions to their nearest neighbour; 0 if there is only one."""
    distinct = np.unique(positions_m, axis=0)
    if len(distinct) < 2:
        return 0.0
    distance, _ = KDTree(distinct).query(distinct, k=2)
    return float(np.median(distance[:, 1]))
