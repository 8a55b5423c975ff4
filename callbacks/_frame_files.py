"""Reading HDF5 files while their writer is still appending."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.request import url2pathname

import h5py
import numpy as np

from bluesky_cdi.callbacks._raw_rows import raw_rows
from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io.hdf5 import CheckedFile
from bluesky_cdi.io.unwritten import unwritten_frames

# What h5py raises for a damaged, locked or differently laid out file.
_H5PY_ERRORS = (OSError, KeyError, ValueError, RuntimeError, TypeError)
# How often a file that is late is looked for, seconds.
LOOK_S = 0.1
# HDF5 crashes where a dataset is refreshed while another handle of it is open: in one thread at a time there is one.
_ONE_HANDLE = threading.RLock()
# Frames are read together up to this size: enough to run at a disk's speed, little beside a computer's memory.
BLOCK_BYTES = 2**24
# More than any detector's frame: what states more is damaged, or would fill the memory.
ROW_BYTES_MAX = 2**30


def path_of(uri: str) -> str:
    """Give the local path of a ``file`` URI: percent-encoding undone, host left out.

    Some producers don't encode: a character that a URI can't hold is taken as it is, and so is
    the whole path where only that exists.

    Raises
    ------
    ScanFileError
        If the URI has another scheme.
    """
    scheme, _, path = uri.partition(":")
    if scheme != "file":
        raise ScanFileError(
            f"frames must lie in a file that can be opened here (file://...); the resource is at "
            f"{uri}. Let the detector write to a disk that this process sees."
        )
    if path.startswith("//"):
        path = path[path.find("/", 2) :]
    decoded = url2pathname(path)
    return path if os.path.exists(path) and not os.path.exists(decoded) else decoded


@dataclass(frozen=True)
class Part:
    """Rows and columns, `region`, of frames of one `shape`, (H, W)."""

    region: tuple[slice, slice]
    shape: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the region."""
        rows, columns = self.region
        return rows.stop - rows.start, columns.stop - columns.start


class Elsewhere(Protocol):
    """Knows files that documents name and that lie on another machine."""

    def path(self, resource: Mapping[str, Any]) -> str | None:
        """Give the path that a resource's file has here; None: it is not seen from here."""

    def rows(self, resource: Mapping[str, Any], start: int, stop: int, part: Part | None) -> np.ndarray[Any, Any]:
        """Get rows of a file that is not seen from here; raises `ScanFileError` where they can't be had."""


# File, dataset, and what of its rows.
_Rows = tuple[str, Any, Part | None]


@dataclass(frozen=True, eq=False)
class _Ahead:
    """Rows of a dataset that were read together."""

    place: _Rows
    rows: range
    block: np.ndarray[Any, Any]

    def row(self, index: int) -> np.ndarray[Any, Any]:
        return self.block[index - self.rows.start :][:1]


class FrameFiles:
    """The HDF5 files of one run, opened for reading at their first use.

    Every method raises `ScanFileError` if a file is absent, truncated, of another layout or of
    another form than HDF5, or holds less than its documents announce.

    Parameters
    ----------
    timeout_s : float
        How long to wait for a file or rows that are not there yet, seconds. Each time in vain halves it for what
        follows in that file, so that one that never comes is waited for no longer than twice that; what comes
        restores it.
    elsewhere : Elsewhere, optional
        Of documents of another machine; without it, files lie where documents say.
    """

    def __init__(self, timeout_s: float = 0.0, elsewhere: Elsewhere | None = None) -> None:
        self._elsewhere = elsewhere
        self._files: dict[str, CheckedFile] = {}
        self._datasets: dict[tuple[str, str], h5py.Dataset] = {}
        self._timeout_s = timeout_s
        self._patience_s: dict[str, float] = {}
        self._paths: dict[str, str] = {}
        self._ahead: _Ahead | None = None
        self._row_bytes: dict[tuple[str, Any], int] = {}

    def images(
        self, resource: Mapping[str, Any], index: int, n: int = 1, part: Part | None = None, stop: int = 0
    ) -> np.ndarray[Any, Any]:
        """Read the images of one event from a dataset of shape (events, n, H, W) or (events * n, H, W).

        Parameters
        ----------
        resource : Mapping
            The StreamResource document, which names file and dataset.
        index : int
            Which event of the dataset, from 0.
        n : int
            Images an event.
        part : Part, optional
            What of them is read, if they have the shape that it is a part of; all otherwise.
        stop : int
            The row after the last that documents announce: rows from `index` to it are read together.

        Returns
        -------
        ndarray, shape (n, H, W)
            Counts, of the dataset's type.
        """
        block = self._read(resource, index, index + 1, part) if n > 1 else self._read_ahead(resource, index, stop, part)
        if block.ndim == 3 and n > 1:
            block = self._read(resource, index * n, (index + 1) * n, part)
        if block.ndim == 4 and block.shape[1] == n:
            block = block[0]  # (1, n, H, W) -> (n, H, W)
        if block.ndim != 3:
            raise ScanFileError(
                f"{_place(resource)} must have the shape ({'n' if n == 1 else f'n * {n}'}, H, W) or (n, {n}, H, W), "
                f"{n} frame(s) an event as its descriptor announces; it is (n, {', '.join(map(str, block.shape[1:]))})."
                " Write, or describe, the other number of them."
            )
        return block

    def column(self, resource: Mapping[str, Any], start: int, stop: int) -> list[float]:
        """Read a range of a dataset of one number an event, shape (n,) or (n, 1).

        Parameters
        ----------
        resource : Mapping
            The StreamResource document, which names file and dataset.
        start, stop : int
            First row, from 0, and the row after the last.

        Returns
        -------
        list of float
            In the unit of the resource's data key.
        """
        block = self._read(resource, start, stop)
        if block.size != stop - start or block.dtype.kind not in "iuf":
            raise ScanFileError(
                f"{_place(resource)} must hold one number an event; "
                f"{stop - start} events gave {block.dtype} {block.shape}. Write one row of one number for each event."
            )
        return [float(value) for value in block.ravel()]

    def raw(
        self, resource: Mapping[str, Any], start: int, stop: int, part: Part | None
    ) -> bytes | np.ndarray[Any, Any]:
        """Read rows for another machine, as they are: compressed ones stay so where that is less.

        Parameters
        ----------
        resource : Mapping
            The StreamResource document, which names file and dataset.
        start, stop : int
            First row, from 0, and the row after the last.
        part : Part, optional
            As for `images`.

        Returns
        -------
        bytes or ndarray
            For `rows_of`, or as they are.
        """
        path = self._path(resource)
        with _ONE_HANDLE:
            dataset = self._checked(path, resource, start, stop)
            cut = part.size if part and dataset.shape[-2:] == part.shape else dataset.shape[-2:]
            limit = (stop - start) * math.prod((*dataset.shape[1:-2], *cut)) * dataset.dtype.itemsize
            raw = None
            with suppress(*_H5PY_ERRORS):  # where that fails, reading them tells
                raw = raw_rows(dataset, start, stop, limit)
            return self._read_now(path, resource, start, stop, part) if raw is None else raw

    def close(self) -> None:
        """Close every file."""
        for path in list(self._files):
            self._close(path)

    @contextmanager
    def apart(self) -> Iterator[FrameFiles]:
        """Give the files to another thread, for a moment: opened by itself, closed afterwards, and never waited for."""
        with _ONE_HANDLE:
            files = FrameFiles(0.0, self._elsewhere)
            try:
                yield files
            finally:
                files.close()

    def _read_ahead(
        self, resource: Mapping[str, Any], index: int, stop: int, part: Part | None
    ) -> np.ndarray[Any, Any]:
        """Read a row, and keep those after it that will be asked for next."""
        place = (self._path(resource), resource["parameters"].get("dataset"), part)
        if self._ahead is not None and self._ahead.place == place and index in self._ahead.rows:
            return self._ahead.row(index)
        block = None
        if index + 1 < stop and place[:2] in self._row_bytes:
            stop = min(stop, index + max(1, BLOCK_BYTES // self._row_bytes[place[:2]]))
            with suppress(ScanFileError), _ONE_HANDLE:
                # Of rows of which one is late or bad each is read by itself.
                block = self._read_now(place[0], resource, index, stop, part)
        if block is None:
            block = self._read(resource, index, index + 1, part)
            self._row_bytes[place[:2]] = max(1, block.nbytes)
        self._ahead = _Ahead(place, range(index, index + len(block)), block)
        return self._ahead.row(index)

    def _read(
        self, resource: Mapping[str, Any], start: int, stop: int, part: Part | None = None
    ) -> np.ndarray[Any, Any]:
        """Read rows, and wait for them where they are late."""
        path = self._path(resource)
        patience_s = self._patience_s.get(path, self._timeout_s)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with _ONE_HANDLE:
                    block = self._read_now(path, resource, start, stop, part)
            except ScanFileError:
                if time.monotonic() >= deadline:
                    self._patience_s[path] = patience_s / 2 if patience_s > LOOK_S else 0.0
                    raise
            else:
                self._patience_s.pop(path, None)
                return block
            # Opened anew: what a file held is not looked up again where its writer is no SWMR writer.
            self._close(path)
            time.sleep(LOOK_S)

    def _path(self, resource: Mapping[str, Any]) -> str:
        """Give the path of a resource's file, which is looked for until it is there."""
        uri = str(resource.get("uri"))
        if (path := self._paths.get(uri)) is None:
            path = local_path(resource) if self._elsewhere is None else self._elsewhere.path(resource) or uri
            if os.path.exists(path):
                self._paths[uri] = path
        return path

    def _read_now(
        self, path: str, resource: Mapping[str, Any], start: int, stop: int, part: Part | None
    ) -> np.ndarray[Any, Any]:
        if self._elsewhere is not None and path == str(resource.get("uri")):
            return self._elsewhere.rows(resource, start, stop, part)
        dataset = self._checked(path, resource, start, stop)
        cut = part is not None and dataset.ndim > 2 and dataset.shape[-2:] == part.shape
        try:
            return np.asarray(dataset[(slice(start, stop), ..., *part.region) if part and cut else slice(start, stop)])
        except _H5PY_ERRORS as err:
            raise _unreadable(resource, err) from err

    def _checked(self, path: str, resource: Mapping[str, Any], start: int, stop: int) -> h5py.Dataset:
        """Give a dataset that holds these rows."""
        try:
            dataset = self._dataset(path, resource)
            held = dataset.shape[0]
            if dataset.size and dataset.nbytes // held > ROW_BYTES_MAX:
                raise ScanFileError(
                    f"a row of {_place(resource)} must have at most {ROW_BYTES_MAX / 2**30:g} GiB; its shape is "
                    f"{dataset.shape} of {dataset.dtype}. Write one frame for each event."
                )
            images = math.prod(dataset.shape[1:-2])
            unwritten = unwritten_frames(dataset, start * images, stop * images)
        except ScanFileError:
            raise
        except _H5PY_ERRORS as err:
            raise _unreadable(resource, err) from err
        if start < 0 or held < stop:
            raise ScanFileError(
                f"the documents announce rows {start} to {stop - 1} of {_place(resource)}, which holds {held}. "
                "The writer must flush a frame before it announces it."
            )
        if unwritten.frames.any():
            raise ScanFileError(
                f"the documents announce rows {start} to {stop - 1} of {_place(resource)}, and not all are written: "
                f"{unwritten.why}. The writer must flush a frame before it announces it."
            )
        return dataset

    def _dataset(self, path: str, resource: Mapping[str, Any]) -> h5py.Dataset:
        # One handle a dataset: HDF5 crashes where one is refreshed while another one of the same dataset is open.
        name = resource["parameters"]["dataset"]
        dataset = self._datasets.get((path, name))
        if dataset is None:
            dataset = self._open(path)[name]
            if not isinstance(dataset, h5py.Dataset):
                raise ScanFileError(
                    f"{_place(resource)} must be a dataset; it is a {type(dataset).__name__}. "
                    "Name the dataset itself in the stream_resource's parameters."
                )
            self._datasets[path, name] = dataset
        if self._files[path].swmr_mode:
            dataset.id.refresh()
        return dataset

    def _close(self, path: str) -> None:
        self._datasets = {key: dataset for key, dataset in self._datasets.items() if key[0] != path}
        if path in self._files:
            self._files.pop(path).close()

    def _open(self, path: str) -> CheckedFile:
        if path not in self._files:
            import hdf5plugin  # noqa: F401  # registers the compression filters of fast detectors

            try:
                self._files[path] = CheckedFile(path, libver="latest", swmr=True)
            except OSError:
                # A finished file, or one whose format doesn't know single writer, multiple readers.
                self._files[path] = CheckedFile(path)
        return self._files[path]


def local_path(resource: Mapping[str, Any]) -> str:
    """Give the path of a resource's file.

    Parameters
    ----------
    resource : Mapping
        The StreamResource document.

    Raises
    ------
    ScanFileError
        If it is no HDF5 file that can be opened here.
    """
    if resource["mimetype"] != "application/x-hdf5":
        raise ScanFileError(
            f"frames must come as HDF5 or inside the events; {resource['uri']} is {resource['mimetype']}. "
            "Set the detector's file writer to HDF5."
        )
    return path_of(resource["uri"])


def _unreadable(resource: Mapping[str, Any], err: Exception) -> ScanFileError:
    return ScanFileError(
        f"can't read {_place(resource)}: {err}. Is the file whole, written in SWMR mode, and visible from here?"
    )


def _place(resource: Mapping[str, Any]) -> str:
    return f"{resource['parameters'].get('dataset', '(no dataset named)')} of {resource['uri']}"
