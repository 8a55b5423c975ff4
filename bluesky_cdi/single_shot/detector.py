"""From a detector's frame to the square of counts and the mask that a reconstruction takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError, GeometryError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame as it can be reconstructed.

    Attributes
    ----------
    counts : ndarray, shape (N, N), float64
        0 where not valid.
    mask : ndarray, shape (N, N), bool
        True where a pixel is valid.
    flagged : int
        Pixels that are not valid though the given mask said so.
    """

    counts: npt.NDArray[np.float64]
    mask: BoolArray
    flagged: int


def prepare_frame(
    frames: Iterable[npt.NDArray[Any]],
    window: tuple[slice, slice],
    mask: BoolArray | None = None,
    *,
    mask_negative: bool = False,
    saturation: float | None = None,
    name: str = "the frame",
) -> PreparedFrame:
    """Crop and sum frames of one sample, and mask what the detector flagged in any of them.

    Parameters
    ----------
    frames : iterable of ndarray, shape (H, W), real
        One, or the exposures to sum.
    window : tuple of slice
        Rows and columns that are kept; see `square_window`.
    mask : ndarray, shape (H, W), bool, optional
        True where a pixel is valid.
    mask_negative, saturation : bool, float
        See `flagged_pixels`.
    name : str
        How an error calls the frame.

    Raises
    ------
    FrameError
        If a valid pixel is infinite or negative, or none holds a photon.
    """
    side = (window[0].stop - window[0].start, window[1].stop - window[1].start)
    given = np.ones(side, bool) if mask is None else np.array(mask[window], bool)
    valid, total = given.copy(), np.zeros(side)
    for frame in frames:
        seen = frame[window]
        valid &= ~flagged_pixels(seen, mask_negative=mask_negative, saturation=saturation)
        check_counts(seen, valid, name)
        total += np.where(valid, seen, 0)
    counts = np.where(valid, total, 0.0)
    if not counts.any():
        raise FrameError(f"{name} has no photon in its {int(valid.sum())} valid pixels of {valid.size}")
    return PreparedFrame(counts, valid, int((given & ~valid).sum()))


def flagged_pixels(
    frame: npt.NDArray[Any], *, mask_negative: bool = False, saturation: float | None = None
) -> BoolArray:
    """Find the pixels of a frame that a detector marks as not measured.

    These are NaN; in integers also negative numbers and the largest of an unsigned type (65535 of uint16).

    Parameters
    ----------
    frame : ndarray, shape (H, W), real
        As the detector gave it.
    mask_negative : bool
        Negative floating-point numbers are flags too. They are not by themselves: a background that was subtracted
        makes negative numbers that are measurements.
    saturation : float, optional
        Counts from which a pixel is saturated, which makes it not measured.

    Returns
    -------
    ndarray, shape (H, W), bool
    """
    if frame.dtype.kind == "f":
        flagged = np.isnan(frame) | ((frame < 0) if mask_negative else False)
    elif frame.dtype.kind == "u":
        flagged = frame == np.iinfo(frame.dtype).max
    else:
        flagged = frame < 0
    if saturation is not None:
        flagged = flagged | (frame >= saturation)
    return np.asarray(flagged, bool)


def check_counts(frame: npt.NDArray[Any], valid: BoolArray, name: str) -> None:
    """Refuse a frame whose valid pixels can't be counts.

    Parameters
    ----------
    frame : ndarray, shape (H, W), real
        As the detector gave it.
    valid : ndarray, shape (H, W), bool
        True where a pixel is valid.
    name : str
        How an error calls the frame.

    Raises
    ------
    FrameError
        If a valid pixel is infinite or negative.
    """
    counts = frame[valid]
    if not np.isfinite(counts).all():
        raise FrameError(f"{name} must be finite in its valid pixels; {int((~np.isfinite(counts)).sum())} are infinite")
    if (counts < 0).any():
        raise FrameError(
            f"{name} must hold counts, which are not negative; {int((counts < 0).sum())} valid pixels are. If they are "
            "flags, mask negative pixels. If a background was subtracted, give the frame as it was measured and "
            "state the background."
        )


def square_window(
    shape: tuple[int, int], centre: tuple[int, int] | None = None, size: int | None = None
) -> tuple[slice, slice]:
    """Find the square of a frame that has the direct beam in its middle, at ``[N // 2, N // 2]``.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the frame.
    centre : tuple of int, optional
        (row, column) of the direct beam; ``(H // 2, W // 2)`` if absent.
    size : int, optional
        N. If absent: all of a square frame whose direct beam is in the middle, else the largest even square around
        a stated centre.

    Returns
    -------
    tuple of slice
        Rows and columns.

    Raises
    ------
    GeometryError
        If the frame is not square and neither is given, or the square would leave the frame.
    """
    height, width = shape
    row, column = (height // 2, width // 2) if centre is None else centre
    if size is None:
        if height == width and (row, column) == (height // 2, width // 2):
            size = height
        elif centre is None:
            raise GeometryError(
                f"frames must be square; they are {height} x {width}. State the `centre`, where the direct beam is, or "
                f"crop them to at most {2 * min(row, column)} pixels."
            )
        else:
            size = 2 * min(row, column, height - row, width - column)
    first = (row - size // 2, column - size // 2)
    if size < 2 or min(first) < 0 or first[0] + size > height or first[1] + size > width:
        raise GeometryError(
            f"a square of {size} pixels around row {row} and column {column} must lie in the frame and hold 2 pixels "
            f"or more a side; the frame is {height} x {width}. Crop to fewer pixels, or correct the centre."
        )
    return slice(first[0], first[0] + size), slice(first[1], first[1] + size)
