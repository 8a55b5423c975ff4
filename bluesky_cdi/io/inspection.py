"""What can be said of a detector's frames by looking at them once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError
from bluesky_cdi.io.beam_centre import find_beam_centre
from bluesky_cdi.io.frame_summaries import dark_frames, without_flagged
from bluesky_cdi.io.frames import Frames, LazyFrames, blocks, taken

BoolImage = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Inspection:
    """Frames as the detector gave them, summed up.

    Attributes
    ----------
    shape : tuple of int
        (n, H, W), of the frames that were looked at: those that the file holds.
    numbers : ndarray, shape (n,), int
        Their numbers, from 1.
    unwritten : ndarray, int
        Numbers of the frames that the file announces and doesn't hold.
    dtype : dtype
        Type of the counts in the file.
    valid : ndarray, shape (H, W), bool
        Pixels that neither the mask leaves out nor hold flags.
    masked, flagged : int
        Pixels that the mask leaves out; others that hold a flag in place of counts.
    mean : ndarray, shape (H, W)
        Mean counts of a frame; 0 where not valid.
    photons : ndarray, shape (n,)
        Counts of each frame on valid pixels.
    highest : ndarray, shape (n,)
        The highest count of each frame on valid pixels.
    unusable : ndarray, shape (n,), int
        Valid pixels of each frame that hold a flag in it, though not in all: NaN, or a negative number.
    dark : ndarray, shape (n,), bool
        Frames without light, beside the others.
    beam_centre_px : tuple of float or None
        (row, column) where the direct beam seems to be; None where nothing is found.
    """

    shape: tuple[int, ...]
    numbers: npt.NDArray[np.int64]
    unwritten: npt.NDArray[np.int64]
    dtype: np.dtype[Any]
    valid: BoolImage
    masked: int
    flagged: int
    mean: npt.NDArray[np.float64]
    photons: npt.NDArray[np.float64]
    highest: npt.NDArray[np.float64]
    unusable: npt.NDArray[np.int64]
    dark: BoolImage
    beam_centre_px: tuple[float, float] | None

    @property
    def frames_at_highest(self) -> int:
        """Frames that hold the highest count of all: several do where the detector is saturated."""
        return int((self.highest == self.highest.max()).sum())

    def saturated(self, level: float) -> int:
        """Count frames that reach a number of counts.

        Parameters
        ----------
        level : float
            Counts.
        """
        return int((self.highest >= level).sum())


def inspect_frames(frames: Frames, mask: BoolImage | None = None, *, has_beam: bool = True) -> Inspection:
    """Look at every frame once, block by block.

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        As the detector gave them.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels, as far as they are known.
    has_beam : bool
        Whether to look for the direct beam: near-field frames have none.

    Raises
    ------
    FrameError
        If the file holds none of them.
    """
    unwritten = frames.unwritten().frames if isinstance(frames, LazyFrames) else np.zeros(len(frames), bool)
    if unwritten.all():
        raise FrameError("none of the frames was ever written: the file, or a source of it, holds no values")
    frames = taken(frames, ~unwritten) if unwritten.any() else frames
    given = np.ones(frames.shape[1:], bool) if mask is None else mask
    valid, flagged = without_flagged(frames, given)
    total = np.zeros(frames.shape[1:])
    photons, highest, unusable = [], [], []
    for block in blocks(frames):
        # What is no number is not above or equal to 0 either.
        usable = valid & (block >= 0) & np.isfinite(block)
        counts = np.where(usable, block, np.zeros((), block.dtype))
        total += counts.sum(axis=0, dtype=np.float64)
        photons.append(counts.sum(axis=(1, 2), dtype=np.float64))
        highest.append(counts.max(axis=(1, 2)).astype(np.float64))
        unusable.append((valid & ~usable).sum(axis=(1, 2)))
    each, mean = np.concatenate(photons), total / len(frames)
    return Inspection(
        shape=frames.shape,
        numbers=np.flatnonzero(~unwritten) + 1,
        unwritten=np.flatnonzero(unwritten) + 1,
        dtype=frames.dtype,
        valid=valid,
        masked=int((~given).sum()),
        flagged=flagged,
        mean=mean,
        photons=each,
        highest=np.concatenate(highest),
        unusable=np.concatenate(unusable),
        dark=dark_frames(each),
        beam_centre_px=_centre(mean, valid) if has_beam else None,
    )


def _centre(mean: npt.NDArray[np.float64], valid: BoolImage) -> tuple[float, float] | None:
    try:
        return find_beam_centre(mean, valid)
    except FrameError:
        return None
