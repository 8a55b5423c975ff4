"""Where a detector's frames come from."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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
