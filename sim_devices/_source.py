"""Where a detector's frames come from."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray

Counts = npt.NDArray[Any]


class FrameSource(Protocol):
    """Source of a simulated detector's frames.

    Attributes
    ----------
    frame_shape : tuple of int
        (H, W).
    frame_dtype : dtype
        Type of the counts: what the detector states, and writes.
    """

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W) of every frame."""

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """Type of the counts."""

    def expose(self, position_m: tuple[float, float], exposure_s: float, flux: float) -> Counts:
        """Take one frame.

        Parameters
        ----------
        position_m : tuple of float
            Read-back of the stage (y, x), metres.
        exposure_s : float
            Exposure, seconds.
        flux : float
            Incident flux relative to its mean; 0 behind a closed shutter.

        Returns
        -------
        ndarray, shape (H, W)
            Counts, zero frequency at ``[H // 2, W // 2]``.
        """


class MovingSource(FrameSource, Protocol):
    """Source whose frames may also be taken while the stage moves."""

    def expose_along(self, paths_m: FloatArray, exposure_s: float, flux: FloatArray) -> Counts:
        """Take frames during each of which the stage moves.

        Parameters
        ----------
        paths_m : ndarray, shape (n, k, 2)
            Where the stage (y, x) is at k moments, evenly spread over each exposure, metres.
        exposure_s : float
            Exposure of each, seconds.
        flux : ndarray, shape (n,)
            Incident flux of each relative to its mean.

        Returns
        -------
        ndarray, shape (n, H, W)
            Counts.
        """
