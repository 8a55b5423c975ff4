"""Frames that stay in their HDF5 file until they are asked for, and work on frames block by block."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError
from bluesky_cdi.io._files import naming
from bluesky_cdi.io.frame_dataset import BLOCK_BYTES, FrameDataset, FrameView
from bluesky_cdi.io.unwritten import Unwritten, unwritten_frames

# Frames, spread over the scan, of which each must hold a flag in a pixel before it is left out.
FLAG_FRAMES = 16
# What flags of a detector's type (uint16, int32, uint32) become where a program wrote them in a wider one: counts that
# never vary, which photons do.
DETECTOR_FLAGS = tuple(2**bits - less for bits in (16, 31, 32) for less in (1, 2))

_REMOVED = "Remove such frames, or mark the pixels in the mask."


class Frames(Protocol):
    """A stack of frames (n, H, W): a numpy array, or `LazyFrames`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W)."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""

    def __len__(self) -> int:
        """Return the number of frames."""

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]:
        """Read some frames as an array in memory."""

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> npt.NDArray[Any]:
        """Read all frames as an array in memory."""


@dataclass(frozen=True)
class _Part:
    """A `FrameView` that changes nothing."""

    region: tuple[slice, slice]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.region
        return rows.stop - rows.start, columns.stop - columns.start

    def of_region(self, parts: npt.NDArray[Any], first: int = 0) -> npt.NDArray[Any]:
        return parts


@dataclass(frozen=True)
class _Moved:
    """A `FrameView` that moves what another makes by whole pixels; what leaves on one side comes in on the other."""

    view: FrameView
    by_px: tuple[int, int]

    @property
    def region(self) -> tuple[slice, slice]:
        return self.view.region

    @property
    def shape(self) -> tuple[int, int]:
        return self.view.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.view.dtype

    def of_region(self, parts: npt.NDArray[Any], first: int = 0) -> npt.NDArray[Any]:
        return np.roll(self.view.of_region(parts, first), self.by_px, axis=(1, 2))


class LazyFrames:
    """Frames of an HDF5 file, read each time they are asked for.

    Indexing works as on an array of shape (n, H, W), with integers, slices, integer or bool arrays on the first axis
    and anything that numpy takes on the others; what it gives is an array in memory. ``numpy.asarray`` reads all.

    Parameters
    ----------
    dataset : FrameDataset
        All frames of the file.
    rows : ndarray, shape (n,), int, optional
        Which of them, in which order; absent, all.
    view : FrameView, optional
        What is read of each frame, and made of it; absent, the frame as it is.
    """

    def __init__(
        self, dataset: FrameDataset, rows: npt.NDArray[np.int64] | None = None, view: FrameView | None = None
    ) -> None:
        self._dataset, self._view = dataset, view
        # Absent for all of them: a damaged file may state more frames than there is memory to number.
        self._rows = rows
        self._mean_photons: dict[bytes | None, float] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W)."""
        return (len(self), *(self._dataset.frame_shape if self._view is None else self._view.shape))

    @property
    def ndim(self) -> int:
        """3."""
        return 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel, as in the file or as the view makes it."""
        return self._dataset.dtype if self._view is None else self._view.dtype

    @property
    def nbytes(self) -> int:
        """Size that the frames would have in memory, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._dataset) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        file = f"{self._dataset.path.name}:{self._dataset.place}"
        return f"LazyFrames({file}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis:
            return np.asarray(np.asarray(self)[key])
        if isinstance(first, (int, np.integer)) and not isinstance(first, (bool, np.bool_)):
            return np.asarray(self._dataset.read(self._chosen([operator.index(first)]), self._view)[(0, *rest)])
        frames = self._dataset.read(self._chosen(first), self._view)
        if not rest:
            return frames
        # Index arrays on several axes go together in numpy; here the frames are at hand, so numpy may do it.
        along = slice(None) if isinstance(first, slice) else np.arange(len(frames))
        return np.asarray(frames[(along, *rest)])

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("frames in a file can't become an array without a copy; leave out copy=False")
        frames = self._dataset.read(self._chosen(slice(None)), self._view)
        return frames if dtype is None else frames.astype(dtype, copy=False)

    def select(self, indices: Any) -> LazyFrames:
        """Select the frames at `indices` (slice, integers, or a bool array), still in the file."""
        with self._dataset.open():  # which finds out whether the file has changed
            return LazyFrames(self._dataset, self._chosen(indices), self._view)

    def seen(self, view: FrameView) -> LazyFrames:
        """Give the frames as a view makes them of the file's own, still in the file."""
        return LazyFrames(self._dataset, self._rows, view)

    def moved(self, by_px: tuple[int, int]) -> LazyFrames:
        """Give the frames moved by whole pixels (rows, columns), still in the file."""
        height, width = self._dataset.frame_shape
        whole = _Part((slice(0, height), slice(0, width)), self._dataset.dtype)
        return self.seen(_Moved(whole if self._view is None else self._view, by_px))

    def unwritten(self) -> Unwritten:
        """Find those of the frames whose values are in no file."""
        with self._dataset.open() as dataset:
            found = unwritten_frames(dataset)
        return found if self._rows is None else replace(found, frames=found.frames[self._rows])

    def mean_photons(self, mask: npt.NDArray[np.bool_] | None) -> float:
        """Compute the mean photons of a frame on valid pixels, checked; every frame is read at the first call."""
        key = None if mask is None else mask.tobytes()
        if key not in self._mean_photons:
            with naming(self._dataset.path, frames=f"`{self._dataset.place}`"):
                self._mean_photons[key] = _sum_checked(self, mask) / len(self)
        return self._mean_photons[key]

    def _chosen(self, first: Any) -> npt.NDArray[np.int64]:
        """Find the rows of the dataset that an index on the first axis means."""
        n = len(self)
        if isinstance(first, slice):
            picks = np.arange(*first.indices(n))
        else:
            picks = np.asarray(first)
            if picks.ndim != 1 or (picks.dtype.kind not in "biu" and picks.size):
                raise IndexError(f"frames are chosen by integers, a slice or a one-dimensional array; not by {first!r}")
            if picks.dtype.kind == "b":
                if len(picks) != n:
                    raise IndexError(f"a bool array must have an element for each of {n} frames; it has {len(picks)}")
                picks = np.flatnonzero(picks)
            picks = picks.astype(np.int64)
            if ((picks < -n) | (picks >= n)).any():
                raise IndexError(f"there are {n} frames; not all of {first!r} are among them")
            picks = np.where(picks < 0, picks + n, picks)
        return picks if self._rows is None else np.asarray(self._rows[picks])


def blocks(frames: Frames) -> Iterator[npt.NDArray[Any]]:
    """Yield frames in order, in arrays of at most `BLOCK_BYTES` (but at least one frame)."""
    bytes_a_frame = math.prod(frames.shape[1:]) * frames.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, bytes_a_frame))
    for start in range(0, len(frames), step):
        yield frames[start : start + step]


def taken(frames: Frames, indices: Any) -> Frames:
    """Take the frames at some indices; those of a file stay there.

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        All.
    indices : slice or array
        Integers, or bool of shape (n,).
    """
    return frames.select(indices) if isinstance(frames, LazyFrames) else frames[np.asarray(indices)]


def cut(frames: Frames, rows: slice, columns: slice) -> Frames:
    """Take a part of each frame; frames of a file stay there, and only that part is read.

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        As they are in the file or in memory.
    rows, columns : slice
        With their starts and stops.
    """
    if isinstance(frames, LazyFrames):
        return frames.seen(_Part((rows, columns), frames.dtype))
    return frames[:, rows, columns]


def moved(frames: Frames, by_px: tuple[int, int]) -> Frames:
    """Move frames by whole pixels, those of a file when they are read; what leaves on one side comes in on the other.

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        As they are in the file or in memory.
    by_px : tuple of int
        Rows, columns.
    """
    if isinstance(frames, LazyFrames):
        return frames.moved(by_px)
    return np.roll(np.asarray(frames), by_px, axis=(1, 2))


def mean_photons(frames: Frames, mask: npt.NDArray[np.bool_] | None = None) -> float:
    """Compute the mean photons of a frame on its valid pixels.

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        Counts; they are looked at block by block.
    mask : ndarray, shape (H, W), bool, or None
        True where valid.

    Raises
    ------
    FrameError
        If a valid pixel is no number, not finite or negative, or all are dark.
    """
    if isinstance(frames, LazyFrames):
        return frames.mean_photons(mask)
    return _sum_checked(frames, mask) / len(frames)


def flagged_pixels(frames: Frames) -> npt.NDArray[np.bool_]:
    """Find pixels that hold no count but a flag: NaN, a negative number, or nearly the largest of an integer type.

    The type is the frames' own, or the detector's, of which they were copied to a wider one (`DETECTOR_FLAGS`).

    Detectors write flags into gaps between modules and into bad pixels (Eiger: the largest number, and one below it).
    Pixels are flagged that hold one in each of up to `FLAG_FRAMES` frames; a pixel that does so in some only has been
    saturated, or damaged, there.

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        Counts.

    Returns
    -------
    ndarray, shape (H, W), bool
    """
    kind = frames.dtype.kind
    flagged = np.full(frames.shape[1:], kind in "iuf")
    for row in spread(len(frames)):
        if not flagged.any():
            break
        frame = frames[int(row)]
        own = ~(frame >= 0) if kind == "f" else (frame < 0) | (frame >= np.iinfo(frame.dtype).max - 1)
        flagged &= own | np.isin(frame, _held_as(frame.dtype))
    return flagged


def _held_as(dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Give the `DETECTOR_FLAGS` that a type can hold, as it holds them: float32 rounds the larger ones."""
    most = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    return np.array([flag for flag in DETECTOR_FLAGS if flag <= most], dtype)


def photons_of_frames(frames: Frames, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float64]:
    """Sum the valid pixels of each frame, shape (n,).

    Parameters
    ----------
    frames : Frames, shape (n, H, W)
        Counts; they are looked at block by block.
    mask : ndarray, shape (H, W), bool, or None
        True where valid.
    """
    sums = [
        (block.reshape(len(block), -1) if mask is None else block[:, mask]).sum(axis=1, dtype=np.float64)
        for block in blocks(frames)
    ]
    return np.concatenate(sums)


def spread(n: int) -> npt.NDArray[np.int64]:
    """Choose up to `FLAG_FRAMES` of n frames, spread over all."""
    return np.unique(np.linspace(0, n - 1, min(n, FLAG_FRAMES)).round().astype(np.int64))


def _sum_checked(frames: Frames, mask: npt.NDArray[np.bool_] | None) -> float:
    """Sum of all valid pixels of all frames, which must be counts; in blocks of bounded size."""
    if frames.dtype.kind not in "biuf":
        raise FrameError(f"frames must hold counts, real numbers; their type is {frames.dtype}")
    total, start = 0.0, 0
    for block in blocks(frames):
        valid = block if mask is None else block[:, mask]
        if valid.dtype.kind == "f" and not np.isfinite(valid).all():
            raise FrameError(f"frames must be finite; {_where(~np.isfinite(valid), start)} are not. {_REMOVED}")
        if valid.dtype.kind in "if" and valid.min(initial=0) < 0:
            raise FrameError(
                f"frames must hold counts, which are not negative; {_where(valid < 0, start)} are. {_REMOVED}"
            )
        # In float64: sums of small integers would overflow their own type.
        total += float(valid.sum(dtype=np.float64))
        start += len(block)
    if not total > 0:
        raise FrameError("frames must hold photons; every valid pixel of every frame is 0")
    if not np.isfinite(total):
        raise FrameError(f"frames must hold counts; their sum, {total}, is beyond any number of photons. {_REMOVED}")
    return total


def _where(bad: npt.NDArray[np.bool_], start: int) -> str:
    first = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
    return f"{int(bad[first].sum())} values of frame {start + first} (from 0)"
