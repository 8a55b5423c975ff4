"""Writing frames block by block, so that a scan larger than memory can be written."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.io._files import written_whole
from bluesky_cdi.io.compression import DEFAULT, filter_options
from bluesky_cdi.io.frames import Frames, blocks


def write_npz(path: Path, arrays: Mapping[str, Frames | npt.NDArray[Any]]) -> None:
    """Write a compressed NPZ file: all of it, or nothing. Frames pass block by block, not as a whole.

    Parameters
    ----------
    path : Path
        The file to write.
    arrays : Mapping
        Arrays by key; those of three axes are taken for frames (n, H, W).

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    with written_whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {
                    "shape": tuple(values.shape),
                    "fortran_order": False,
                    "descr": np.lib.format.dtype_to_descr(values.dtype),
                }
                np.lib.format.write_array_header_1_0(member, header)
                for block in blocks(values) if values.ndim == 3 else [np.asarray(values)]:
                    member.write(np.ascontiguousarray(block).tobytes())


def fixed_text(value: str) -> npt.NDArray[Any]:
    """Encode a text as HDF5 stores it in place, for attributes and datasets.

    Python strings would go to the file's global heap, whose damage can make the HDF5 library loop for ever.
    """
    encoded = value.encode() or b"\0"
    return np.array(encoded, h5py.string_dtype("utf-8", len(encoded)))


def write_frames(group: h5py.Group, name: str, frames: Frames, compression: str | None = None) -> h5py.Dataset:
    """Make a dataset of frames, one frame a chunk, block by block.

    Parameters
    ----------
    group : h5py.Group
        Where the dataset goes.
    name : str
        Its path from there.
    frames : Frames, shape (n, H, W)
        What it holds, in their own type.
    compression : str, optional
        Of `compression.COMPRESSIONS`; its default if absent.
    """
    options = filter_options(compression or DEFAULT)
    dataset = group.create_dataset(name, frames.shape, frames.dtype, chunks=(1, *frames.shape[1:]), **options)
    start = 0
    for block in blocks(frames):
        dataset[start : start + len(block)] = block
        start += len(block)
    return dataset
