"""What many frames say together: their mean, their flags, which are dark."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from bluesky_cdi.io.frames import Frames, flagged_pixels, spread

logger = logging.getLogger(__name__)

# Share of a bright frame's photons below which a frame is dark. Nine tenths of the frames have no more than a bright
# one: so most may be dark.
DARK_SHARE, BRIGHT = 0.02, 0.9


def mean_frame(frames: Frames) -> npt.NDArray[np.float64]:
    """Compute the mean of up to `FLAG_FRAMES` frames, spread over the scan, shape (H, W)."""
    looked_at = spread(len(frames))
    total = np.zeros(frames.shape[1:])
    for row in looked_at:
        total += frames[int(row)]
    return np.asarray(total / len(looked_at))


def without_flagged(counts: Frames, mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], int]:
    """Take pixels that hold flags out of a mask, which is logged.

    Frames of nothing but flags are left for others to refuse.

    Parameters
    ----------
    counts : Frames, shape (n, H, W)
        Up to `FLAG_FRAMES` of them are looked at.
    mask : ndarray, shape (H, W), bool
        Valid pixels, as far as they are known.

    Returns
    -------
    mask : ndarray, shape (H, W), bool
    flagged : int
        How many pixels became invalid.
    """
    flagged = flagged_pixels(counts) & mask
    number = int(flagged.sum())
    if not 0 < number <= flagged.size // 2:
        return mask, 0
    logger.warning(
        "%d pixels hold a flag in place of counts (NaN, a negative number, or the largest of their type): they are "
        "masked. State them in the file's mask to be sure of it.",
        number,
    )
    return mask & ~flagged, number


def dark_frames(photons: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which frames, of their photons (n,), have less than `DARK_SHARE` of a bright one's: no light came."""
    return np.asarray(photons < DARK_SHARE * np.quantile(photons, BRIGHT))
