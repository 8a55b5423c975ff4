"""Frames by their chunks, in threads: the same as HDF5 gives, whatever was done to them."""

import h5py
import hdf5plugin
import numpy as np
import pytest

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io.chunk_reader import ChunkReader

FRAMES = np.random.default_rng(0).poisson(20.0, (23, 16, 24))
LZ4, ZSTD = (dict(hdf5plugin.Bitshuffle(cname=name)) for name in ("lz4", "zstd"))


def written(path, options, dtype=np.uint16, rows=1, frames=FRAMES):
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", data=frames.astype(dtype), chunks=(rows, *frames.shape[1:]), **options)
    return path


def read(path, start, stop, threads=3, dtype=np.uint16):
    out = np.empty((stop - start, *FRAMES.shape[1:]), dtype)
    with ChunkReader(path, "entry/data", threads) as reader:
        reader.read(start, stop, out)
        return out, reader.is_direct


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("options", "is_direct"), [(LZ4, True), (ZSTD, True), ({}, True), ({"compression": "gzip"}, False)]
)
def test_rows_are_those_of_hdf5(tmp_path, options, is_direct, rows, dtype):
    path = written(tmp_path / "a.h5", options, dtype, rows)
    for start, stop in ((0, 23), (5, 6), (3, 18)):
        found, direct = read(path, start, stop, dtype=dtype)
        np.testing.assert_array_equal(found, FRAMES[start:stop].astype(dtype))
        assert direct == is_direct


def test_frames_in_one_piece_or_in_parts_are_read_by_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/data"] = FRAMES.astype(np.uint16)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("entry/data", data=FRAMES.astype(np.uint16), chunks=(1, 8, 8), **LZ4)
    for name in ("a.h5", "b.h5"):
        found, is_direct = read(tmp_path / name, 2, 9)
        np.testing.assert_array_equal(found, FRAMES[2:9])
        assert not is_direct


def test_chunk_that_was_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("entry/data", FRAMES.shape, np.uint16, chunks=(1, 16, 24), **LZ4)
        data[:20] = FRAMES[:20]
    np.testing.assert_array_equal(read(tmp_path / "a.h5", 0, 20)[0], FRAMES[:20])
    with pytest.raises(ScanFileError, match=r"rows from 20 of `/entry/data` of .*a.h5 were never written"):
        read(tmp_path / "a.h5", 15, 23)


def test_damaged_chunk(tmp_path):
    path = written(tmp_path / "a.h5", LZ4)
    with h5py.File(path) as file:
        info = file["entry/data"].id.get_chunk_info(7)
    with path.open("r+b") as file:
        file.seek(info.byte_offset)
        file.write(b"\xff" * 8)
    with pytest.raises(ScanFileError, match="a chunk must hold 768 bytes; it says"):
        read(path, 0, 23)
    np.testing.assert_array_equal(read(path, 8, 23)[0], FRAMES[8:])


def test_what_is_no_stack_of_frames(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ScanFileError, match=r"`x` of .*a.h5 must be frames \(n, H, W\)"):
        ChunkReader(tmp_path / "a.h5", "x", 1)
    with pytest.raises(ScanFileError, match="no frames can be read from `y` of"):
        ChunkReader(tmp_path / "a.h5", "y", 1)
