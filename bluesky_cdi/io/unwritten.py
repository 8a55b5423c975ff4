"""Frames that an HDF5 file announces and doesn't hold: HDF5 gives their fill value, which is no measured zero.

A scan that was aborted leaves the rest of its dataset without storage; a virtual dataset shows nothing where its
sources are missing; and a writer may announce a frame before it is in the file.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.io.hdf5 import places_of, prefix_of

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Unwritten:
    """What of a dataset's frames was never written.

    Attributes
    ----------
    frames : ndarray, shape (n,), bool
        True where at least a part of a frame is in no file.
    why : str
        Which files are missing, or that the dataset has no storage there; empty where all frames are written.
    """

    frames: BoolArray
    why: str


def unwritten_frames(dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> Unwritten:
    """Find the frames of a dataset whose values are in no file.

    Parameters
    ----------
    dataset : h5py.Dataset
        Frames (..., H, W), the leading axes taken as one, or rows (n,) of other values.
    start, stop : int, optional
        The frames to look at, as of a slice; all if absent.

    Returns
    -------
    Unwritten
        Of these frames.
    """
    leading = dataset.shape[:-2] if dataset.ndim > 2 else dataset.shape[:1]
    rows = range(math.prod(leading))[start:stop]
    if dataset.is_virtual:
        return _without_source(dataset, rows)
    missing = np.zeros(len(rows), bool)
    if dataset.chunks is not None:
        missing = _without_chunk(dataset, leading, rows)
    elif dataset.size and not dataset.external and not dataset.id.get_storage_size():
        missing[:] = True
    # Names are asked for where they are told: HDF5 takes longer to find them than to look for a chunk.
    name = f"`{dataset.name}` of {dataset.file.filename}" if missing.any() else ""
    return Unwritten(missing, f"{name} has no values there: its writer did not come so far" if name else "")


def _without_chunk(dataset: h5py.Dataset, leading: tuple[int, ...], rows: range) -> BoolArray:
    """Tell which rows lack one of the chunks that they lie in."""
    chunks = dataset.chunks
    within = [range(0, size, step) for size, step in zip(dataset.shape[len(leading) :], chunks[len(leading) :])]  # noqa: B905
    known: dict[tuple[int, ...], bool] = {}
    missing = np.zeros(len(rows), bool)
    for number, row in enumerate(rows):
        place = tuple(int(k) for k in np.unravel_index(row, leading))
        first = tuple(k - k % step for k, step in zip(place, chunks, strict=False))
        if first not in known:
            known[first] = any(
                dataset.id.get_chunk_info_by_coord((*first, *rest)).byte_offset is None
                for rest in itertools.product(*within)
            )
        missing[number] = known[first]
    return missing


def _without_source(dataset: h5py.Dataset, rows: range) -> Unwritten:
    """Tell which rows of a virtual dataset have a source that is missing or lacks them, or have none."""
    covered, missing = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    absent: dict[str, None] = {}
    for source in dataset.virtual_sources():
        here = _rows_of(source.vspace, dataset)
        lacking = _lacking(dataset, source, len(here))
        inside = (here >= rows.start) & (here < rows.stop)
        covered[here[inside] - rows.start] = True
        missing[here[inside & lacking] - rows.start] = True
        if (inside & lacking).any():
            absent[f"{source.file_name}:{source.dset_name}"] = None
    bad = missing | ~covered
    named = ", ".join(itertools.islice(absent, 3)) + ", ..." * (len(absent) > 3)
    sources = f"these sources are missing or incomplete: {named}" if absent else "no source is named for them"
    name = f"`{dataset.name}` of {dataset.file.filename}"
    return Unwritten(bad, f"{name} is made of other datasets, and {sources}" if bad.any() else "")


def _rows_of(space: Any, dataset: h5py.Dataset) -> npt.NDArray[np.int64]:
    """List the rows of a virtual dataset (its leading axes as one) that a source fills, at least in part."""
    n_leading = max(1, dataset.ndim - 2)
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS:  # all of it
        return np.arange(math.prod(dataset.shape[:n_leading]))
    if space.is_regular_hyperslab():
        parts = list(zip(*space.get_regular_hyperslab(), strict=True))
    else:
        parts = [(first, 1, last - first + 1, 1) for first, last in zip(*space.get_select_bounds(), strict=True)]
    axes = []
    for size, (first, stride, count, block) in list(zip(dataset.shape, parts, strict=True))[:n_leading]:
        steps = np.arange(first, size, stride)[: min(int(count), size)]
        picks = (steps[:, None] + np.arange(min(int(block), size))).ravel()
        axes.append(picks[picks < size])
    grids = np.meshgrid(*axes, indexing="ij")
    places = tuple(grid.ravel() for grid in grids)
    return np.asarray(np.ravel_multi_index(places, dataset.shape[:n_leading]))


def _lacking(dataset: h5py.Dataset, source: Any, number: int) -> BoolArray:
    """Tell which of the rows that a source fills it doesn't have; all, where it is not there."""
    if "%b" in source.file_name:
        # A file for each block of frames: HDF5 states only as many frames as there are files.
        return np.zeros(number, bool)
    name = source.file_name.replace("%%", "%")
    if name == ".":
        return _lacking_in(dataset.file, source.dset_name, number)
    places = places_of(Path(dataset.file.filename), name, prefix=prefix_of(dataset))
    path = next((each for each in places if each.is_file()), None)
    if path is None:
        return np.ones(number, bool)
    try:
        with h5py.File(path, "r") as file:
            return _lacking_in(file, source.dset_name, number)
    except BlockingIOError:
        # Its writer has it: what is in it can be read through the virtual dataset alone.
        return np.zeros(number, bool)
    except OSError:
        return np.ones(number, bool)


def _lacking_in(file: h5py.File, name: str, number: int) -> BoolArray:
    there = file.get(name)
    if not isinstance(there, h5py.Dataset):
        return np.ones(number, bool)
    found = unwritten_frames(there).frames
    # Where rows don't match one to one, only a source without any values is known to lack them.
    return found if len(found) == number else np.full(number, bool(found.all()))
