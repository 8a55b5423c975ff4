"""What a frame must be before anything is computed from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bluesky_cdi.errors import FrameError
from bluesky_cdi.protocols import Frame

BoolImage = np.ndarray[Any, np.dtype[np.bool_]]


def check_frame(frame: Frame, shape: tuple[int, int], mask: BoolImage | None = None) -> None:
    """Refuse a frame from which nothing can be reconstructed: `check_raw_frame`, and its counts.

    Parameters
    ----------
    frame : Frame
        The frame, counts of shape (H, W).
    shape : tuple of int
        (H, W) as the descriptor announced it.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels; what others hold is not looked at.

    Raises
    ------
    FrameError
        If counts are of another shape, no real numbers, in valid pixels not finite or negative, if the position
        is not finite, or if the incident flux is not finite and positive.
    """
    check_raw_frame(frame, shape)
    counts = frame.counts
    check_counts(counts if mask is None or mask.shape != shape else counts[mask], f"frame {frame.seq_num}")


def check_raw_frame(frame: Frame, shape: tuple[int, int]) -> None:
    """Refuse a frame of another form, or without place or flux; what its pixels hold is not looked at.

    Parameters
    ----------
    frame : Frame
        The frame, of shape (H, W).
    shape : tuple of int
        (H, W) as the descriptor announced it.

    Raises
    ------
    FrameError
        If the frame is of another shape, or holds no real numbers, if the position is not finite, or if the incident
        flux is not finite and positive.
    """
    counts, which = frame.counts, f"frame {frame.seq_num}"
    if counts.shape != shape:
        raise FrameError(
            f"{which} must have the announced shape {shape}; it has {counts.shape}. "
            "The detector's region of interest or binning must not change during a run."
        )
    if counts.dtype.kind not in "biuf":
        raise FrameError(
            f"{which} must hold counts, real numbers; its type is {counts.dtype}. "
            "Name the data key of the frames: documents.frame_key of the configuration."
        )
    if not np.isfinite(frame.position_m).all():
        raise FrameError(
            f"{which} must have a finite position; it is {frame.position_m} m (y, x). Check the encoders' read-back."
        )
    if not (math.isfinite(frame.flux) and frame.flux > 0):
        raise FrameError(
            f"{which} must have a finite, positive incident flux; the monitor gave {frame.flux}. "
            "Was there beam? Suspend the scan without it, or name another monitor (documents.monitor_key)."
        )


def check_counts(counts: np.ndarray[Any, Any], which: str) -> None:
    """Refuse what can't be counts.

    Parameters
    ----------
    counts : ndarray
        Of the valid pixels.
    which : str
        How an error calls the frame.

    Raises
    ------
    FrameError
        If some are not finite, or negative.
    """
    if counts.dtype.kind == "f" and not (finite := np.isfinite(counts)).all():
        raise FrameError(
            f"{which} must be finite; {int((~finite).sum())} of {counts.size} pixels are NaN or infinite. "
            "Hand on raw counts; bad pixels belong into the mask."
        )
    if counts.dtype.kind in "if" and (low := counts.min(initial=0)) < 0:
        raise FrameError(
            f"{which} must hold counts, which are not negative; its lowest value is {low}, in "
            f"{int((counts < 0).sum())} of {counts.size} pixels. Hand on raw counts: no dark or background taken away, "
            "flagged pixels (-1, -2) in the mask."
        )
