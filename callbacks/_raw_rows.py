"""Rows of an HDF5 dataset on their way to another machine, compressed as they are in their file.

They travel as a small HDF5 file of their own, into which the chunks are copied as they lie on disk: whoever reads it
needs the same filters, and nothing is decompressed on the way.
"""

from __future__ import annotations

import itertools
from typing import Any

import h5py
import numpy as np

from bluesky_cdi.errors import ScanFileError

_NAME = b"rows"
# Bitshuffle writes what it finds out in front of its options when a dataset is made, and would do so again.
_FOUND_OUT = {32008: 3}


def raw_rows(dataset: h5py.Dataset, start: int, stop: int, limit: int) -> bytes | None:
    """Copy rows with their chunks as they are.

    Parameters
    ----------
    dataset : h5py.Dataset
        Frames, shape (n, ..., H, W).
    start, stop : int
        First row, and the row after the last.
    limit : int
        Most bytes that the chunks may have.

    Returns
    -------
    bytes or None
        An HDF5 file; None where a chunk holds more than one row, rows are not compressed, have more bytes, or their
        filters can't be stated in another file as they are in theirs.
    """
    if dataset.is_virtual or dataset.chunks is None or dataset.chunks[0] != 1 or dataset.ndim < 3:
        return None
    if not (filters := _filters(dataset.id)):
        return None
    rest = [range(0, size, step) for size, step in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)]
    offsets = list(itertools.product(range(start, stop), *rest))
    if sum(dataset.id.get_chunk_info_by_coord(offset).size for offset in offsets) >= limit:
        return None
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(dataset.chunks)
    for code, flags, values in filters:
        plist.set_filter(code, flags, values[_FOUND_OUT.get(code, 0) :])
    with h5py.File("rows.h5", "w", driver="core", backing_store=False) as file:
        shape = (stop - start, *dataset.shape[1:])
        rows = h5py.h5d.create(file.id, _NAME, dataset.id.get_type(), h5py.h5s.create_simple(shape), plist)
        if _filters(rows) != filters:
            return None
        for row, *at in offsets:
            skipped, chunk = dataset.id.read_direct_chunk((row, *at))
            rows.write_direct_chunk((row - start, *at), chunk, skipped)
        file.flush()
        return bytes(file.id.get_file_image())


def _filters(identifier: h5py.h5d.DatasetID) -> list[tuple[int, int, tuple[int, ...]]]:
    """List a dataset's filters: code, flags and values."""
    plist = identifier.get_create_plist()
    return [plist.get_filter(k)[:3] for k in range(plist.get_nfilters())]


def rows_of(data: bytes, region: tuple[slice, slice] | None) -> np.ndarray[Any, Any]:
    """Read what `raw_rows` copied.

    Parameters
    ----------
    data : bytes
        The file.
    region : pair of slice, optional
        Rows and columns of each frame; all if absent.

    Returns
    -------
    ndarray, shape (n, ..., H, W)

    Raises
    ------
    ScanFileError
        If it is another file, or its rows can't be decompressed here.
    """
    import hdf5plugin  # noqa: F401  # registers the compression filters of fast detectors

    try:
        with h5py.File(h5py.h5f.open_file_image(data)) as file:
            # A link or a dataset of another kind could lead to other files of this machine.
            if not isinstance(file.get("rows", getlink=True), h5py.HardLink):
                raise ScanFileError("rows that were sent must lie in the dataset 'rows' of their own file")
            dataset = file["rows"]
            if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.chunks is None:
                raise ScanFileError("rows that were sent must be a dataset of chunks")
            return np.asarray(dataset[(..., *region) if region else ...])
    except ScanFileError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as err:
        raise ScanFileError(f"rows that were sent can't be read: {err}. Is the filter of the file here too?") from err
