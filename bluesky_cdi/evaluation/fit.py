"""One diffraction pattern beside what a result expects there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray


@dataclass(frozen=True, eq=False)
class FittedFrame:
    """A frame and its fit.

    Attributes
    ----------
    seq_num : int
        The frame's number.
    counts : ndarray, shape (N, N), float32
        Photons as measured.
    fit : ndarray, shape (N, N), float32
        Photons that object and probe make expect, at the flux that fits the frame best.
    valid : ndarray, shape (N, N), bool
        Pixels that count.
    flux : float
        That flux; 1 is the mean of the scan.
    deviance : float
        Poisson deviance a valid pixel.
    """

    seq_num: int
    counts: FloatArray
    fit: FloatArray
    valid: npt.NDArray[np.bool_]
    flux: float
    deviance: float

    @property
    def misfit(self) -> FloatArray:
        """Twice the difference of the square roots of counts and fit, (N, N): in standard deviations of the counts.

        NaN where pixels don't count.
        """
        counts = np.where(self.valid, self.counts, np.nan)
        return np.asarray(2 * (np.sqrt(counts) - np.sqrt(self.fit)))
