"""Reading HDF5 files while their writer is still appending."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.request import url2pathname

import h5py
import numpy as np

from bluesky_cdi.errors import ScanFileError

# What h5py raises for a damaged, locked or differently laid out file.
_H5PY_ERRORS = (OSError, KeyError, ValueError, RuntimeError, TypeError)


def path_of(uri: str) -> str:
    """The local path of a ``file`` URI: percent-encoding undone, host left out.

    Some producers don't encode: a character that a URI can't hold is taken as it is, and so is
    the whole path where only that exists.

    Raises
    ------
    ScanFileError
        If the URI has another scheme.
    """
    scheme, _, path = uri.partition(":")
    if scheme != "file":
        raise ScanFileError(f"frames must lie in a file that can be opened here (file://...); the resource is at {uri}")
    if path.startswith("//"):
        path = path[path.find("/", 2) :]
    decoded = url2pathname(path)
    return path if os.path.exists(path) and not os.path.exists(decoded) else decoded


class FrameFiles:
    """The HDF5 files of one run, opened for reading at their first use.

    Every method raises `ScanFileError` if a file is absent, truncated, of another layout or of
    another form than HDF5, or holds less than its documents announce.
    """

    def __init__(self) -> None:
        self._files: dict[str, h5py.File] = {}

    def frame(self, resource: Mapping[str, Any], index: int) -> np.ndarray[Any, Any]:
        """Read one frame of a dataset of shape (n, H, W) or (n, 1, H, W); returns (H, W)."""
        block = self._read(resource, index, index + 1)
        if block.ndim == 4 and block.shape[1] == 1:
            block = block[:, 0]  # (1, 1, H, W) -> (1, H, W)
        if block.ndim != 3:
            raise ScanFileError(
                f"{_place(resource)} must have the shape (n, H, W) or (n, 1, H, W), one frame an event; "
                f"it is (n, {', '.join(map(str, block.shape[1:]))}). Write one frame for each event."
            )
        frame: np.ndarray[Any, Any] = block[0]
        return frame

    def column(self, resource: Mapping[str, Any], start: int, stop: int) -> list[float]:
        """Read a range of a dataset of one number an event, shape (n,) or (n, 1)."""
        block = self._read(resource, start, stop)
        if block.size != stop - start or block.dtype.kind not in "iuf":
            raise ScanFileError(
                f"{_place(resource)} must hold one number an event; "
                f"{stop - start} events gave {block.dtype} {block.shape}"
            )
        return [float(value) for value in block.ravel()]

    def close(self) -> None:
        """Close every file."""
        while self._files:
            self._files.popitem()[1].close()

    def _read(self, resource: Mapping[str, Any], start: int, stop: int) -> np.ndarray[Any, Any]:
        try:
            dataset = self._dataset(resource)
            held = dataset.shape[0]
            block = np.asarray(dataset[start:stop])
        except ScanFileError:
            raise
        except _H5PY_ERRORS as err:
            raise ScanFileError(
                f"can't read {_place(resource)}: {err}. Is the file whole, written in SWMR mode, and visible from here?"
            ) from err
        if start < 0 or held < stop:
            raise ScanFileError(
                f"the documents announce rows {start} to {stop - 1} of {_place(resource)}, which holds {held}. "
                "The writer must flush a frame before it announces it."
            )
        return block

    def _dataset(self, resource: Mapping[str, Any]) -> h5py.Dataset:
        if resource["mimetype"] != "application/x-hdf5":
            raise ScanFileError(
                f"frames must come as HDF5 or inside the events; {resource['uri']} is {resource['mimetype']}. "
                "Set the detector's file writer to HDF5."
            )
        dataset = self._open(path_of(resource["uri"]))[resource["parameters"]["dataset"]]
        if not isinstance(dataset, h5py.Dataset):
            raise ScanFileError(f"{_place(resource)} must be a dataset; it is a {type(dataset).__name__}")
        if dataset.file.swmr_mode:
            dataset.id.refresh()
        return dataset

    def _open(self, path: str) -> h5py.File:
        if path not in self._files:
            import hdf5plugin  # noqa: F401  # registers the compression filters of fast detectors

            try:
                self._files[path] = h5py.File(path, "r", libver="latest", swmr=True)
            except OSError:
                # A finished file, or one whose format doesn't know single writer, multiple readers.
                self._files[path] = h5py.File(path, "r")
        return self._files[path]


def _place(resource: Mapping[str, Any]) -> str:
    return f"{resource['parameters'].get('dataset', '(no dataset named)')} of {resource['uri']}"
