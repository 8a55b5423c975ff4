"""Pixels that can't be trusted, found from the first frames of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# A pixel this many times brighter than its neighbourhood in the mean of many frames is hot: no
# speckle is a single pixel wide in a detector that samples the pattern properly.
HOT_RATIO = 30.0
# Photons a frame that neighbours must have before a pixel without any, in all frames, is called dead.
DEAD_NEIGHBOURS = 1.0


def valid_pixels(counts: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Find hot and dead pixels.

    Parameters
    ----------
    counts : ndarray, shape (n, N, N)
        Some frames at different positions.

    Returns
    -------
    ndarray, shape (N, N), bool
        True where a pixel can be used.
    """
    from scipy.ndimage import median_filter

    mean = counts.mean(axis=0, dtype=np.float64)
    around = median_filter(mean, size=5, mode="nearest")
    hot = mean > HOT_RATIO * (around + 1)
    dead = (counts.max(axis=0) == 0) & (around > DEAD_NEIGHBOURS)
    return np.asarray(~(hot | dead))
