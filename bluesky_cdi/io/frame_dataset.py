"""A dataset of frames in an HDF5 file, opened for each access."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import open_dataset

# Frames are read in blocks of this size: enough to run at a disk's speed, little beside a computer's memory.
BLOCK_BYTES = 2**24


class FrameView(Protocol):
    """What is read of each frame of a file, and what is made of it: a `DetectorPlan`, or a part of the frame."""

    @property
    def region(self) -> tuple[slice, slice]:
        """Rows and columns that are read."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of what is made of it."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel of what is made of it."""

    def of_region(self, parts: npt.NDArray[Any], first: int = 0) -> npt.NDArray[Any]:
        """Make frames (n, H, W) of what was read, (n, h, w); `first` is the number of the first, for messages."""


class FrameDataset:
    """Frames of an HDF5 file by their rows.

    The file is opened for each access (0.3 ms) and never stays open: it is not locked, and the object can be copied to
    another process.

    Parameters
    ----------
    path : Path
        The HDF5 file.
    place : str
        The dataset in the file, of shape (..., H, W): leading axes (a raster's rows and columns) are taken as one.

    Attributes
    ----------
    path : Path
        The HDF5 file.
    place : str
        Path of the frames inside the file.
    frame_shape : tuple of int
        (H, W).
    dtype : dtype
        Type of a pixel.

    Raises
    ------
    ScanFileError
        If the file can't be read or has no such dataset; on access, also if it has changed since.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.path, self.place = path.absolute(), place
        self._signature = self._sign()
        with self.open() as dataset:
            self._leading: tuple[int, ...] = tuple(dataset.shape[:-2])
            self.frame_shape: tuple[int, ...] = tuple(dataset.shape[-2:])
            self.dtype: np.dtype[Any] = np.dtype(dataset.dtype)
        if len(self.frame_shape) != 2:
            raise ScanFileError(f"{path} must hold frames (n, H, W) in `{place}`; they have {self.frame_shape}")

    def __len__(self) -> int:
        return math.prod(self._leading)

    def open(self) -> Any:
        """Open the dataset, as a context manager."""
        if self._sign() != self._signature:
            raise ScanFileError(f"{self.path} has changed since it was opened. Read the scan again.")
        return open_dataset(self.path, self.place)

    def read(self, rows: npt.NDArray[np.int64], view: FrameView | None = None) -> npt.NDArray[Any]:
        """Read frames.

        Parameters
        ----------
        rows : ndarray, shape (n,), int
            Which, in which order.
        view : FrameView, optional
            What is read of each frame, and made of it; absent, the frame as it is.

        Returns
        -------
        ndarray, shape (n, H, W)
            Of the view's shape and type.
        """
        like = self if view is None else view
        shape = self.frame_shape if view is None else view.shape
        frames = np.empty((len(rows), *shape), like.dtype)
        with self.open() as dataset:
            # A run of neighbours is one read; HDF5's own selection of scattered rows is far slower.
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                if len(run):
                    self._read_run(dataset, frames[run[0] : run[-1] + 1], int(rows[run[0]]), view)
        return frames

    def _read_run(self, dataset: Any, out: npt.NDArray[Any], start: int, view: FrameView | None) -> None:
        """Read neighbours, of a view only the region, in blocks."""
        rows, columns = (slice(None), slice(None)) if view is None else view.region
        size = math.prod(len(range(*s.indices(n))) for s, n in zip((rows, columns), self.frame_shape, strict=True))
        # Frames of a raster's row lie together, those of two rows do not. Without a view all comes in one piece.
        several = max(1, BLOCK_BYTES // max(1, size * dataset.dtype.itemsize)) if view is not None else len(out)
        step = several if len(self._leading) == 1 else 1
        for i in range(0, len(out), step):
            stop = min(i + step, len(out))
            if len(self._leading) == 1:
                parts = dataset[start + i : start + stop, rows, columns]
            else:
                place = tuple(int(k) for k in np.unravel_index(start + i, self._leading)) if self._leading else ()
                parts = dataset[(*place, rows, columns)][np.newaxis]
            out[i:stop] = parts if view is None else view.of_region(parts, start + i)

    def _sign(self) -> tuple[int, int] | None:
        if not self.path.is_file():
            return None
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns
