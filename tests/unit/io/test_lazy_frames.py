"""Frames that stay in their file: the same as the array in memory, read in bounded pieces."""

import pickle
import resource
import subprocess
import sys

import h5py
import hdf5plugin
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from bluesky_cdi.errors import FrameError, ScanFileError
from bluesky_cdi.io import FrameDataset, LazyFrames, Scan, read_cxi, read_scan, write_cxi
from bluesky_cdi.io import frames as frames_module
from bluesky_cdi.io.frames import blocks, cut, mean_photons, moved
from bluesky_cdi.physics.geometry import Geometry


@pytest.fixture
def counts():
    return np.random.default_rng(3).poisson(7.0, (11, 8, 8)).astype(np.uint32)


@pytest.fixture
def lazy(tmp_path, counts):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("d", data=counts, chunks=(4, 8, 8), compression="gzip")
    return LazyFrames(FrameDataset(tmp_path / "f.h5", "d"))


KEYS = [
    0, -1, np.int64(3), slice(None), slice(2, 9), slice(9, 2, -3), slice(5, 5), slice(-4, None), [4, 1, 1, 10],
    np.array([], int), [], np.array([-1, 0]), np.arange(11) % 3 == 0, ..., (..., 2), (3, 2, 5), (3, slice(1, 4)),
    (slice(1, 4), 3), ([2, 5], slice(None), 1), ([2, 5], [1, 3]), (slice(None), np.eye(8, dtype=bool)),
    (slice(2, 3), ...),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_as_numpy(lazy, counts, key):
    expected = counts[np.asarray(key, int) if isinstance(key, list) and not key else key]
    found = lazy[key]
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("by_px", [(2, -3), (0, 1), (-1, 0)])
def test_moved_frames_stay_in_their_file(lazy, counts, by_px):
    for ours, array in ((lazy, counts), (lazy.select([4, 1, 9]), counts[[4, 1, 9]])):
        found = moved(ours, by_px)
        assert isinstance(found, LazyFrames) and found.dtype == counts.dtype
        np.testing.assert_array_equal(found, np.roll(array, by_px, axis=(1, 2)))
        np.testing.assert_array_equal(moved(array, by_px), found)
    part = cut(lazy, slice(1, 7), slice(2, 8))
    np.testing.assert_array_equal(moved(part, by_px), np.roll(counts[:, 1:7, 2:8], by_px, axis=(1, 2)))


@pytest.mark.parametrize("key", [11, -12, [0, 11], np.ones(5, bool), "d", 1.5, np.ones((2, 2), int), None, True])
def test_bad_index(lazy, key):
    with pytest.raises(IndexError):
        lazy[key]


def test_as_an_array(lazy, counts):
    assert (lazy.shape, lazy.ndim, len(lazy), lazy.dtype) == (counts.shape, 3, 11, counts.dtype)
    assert lazy.nbytes == counts.nbytes
    np.testing.assert_array_equal(np.asarray(lazy), counts)
    assert np.asarray(lazy, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.stack(list(lazy)), counts)
    with pytest.raises(ValueError, match="without a copy"):
        np.array(lazy, copy=False)


def test_selection_stays_in_the_file(lazy, counts):
    part = lazy.select([7, 2, 2]).select(np.array([True, False, True]))
    assert isinstance(part, LazyFrames)
    np.testing.assert_array_equal(part, counts[[7, 2]])


def test_goes_to_another_process(lazy, counts):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)), counts)


def test_raster_of_frames(tmp_path, counts):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["d"], file["one"] = counts[:6].reshape(2, 3, 8, 8), counts[0]
    lazy = LazyFrames(FrameDataset(tmp_path / "f.h5", "d"))
    assert lazy.shape == (6, 8, 8)
    np.testing.assert_array_equal(lazy[[5, 0, 1]], counts[[5, 0, 1]])
    np.testing.assert_array_equal(LazyFrames(FrameDataset(tmp_path / "f.h5", "one")), counts[:1])


def test_file_is_not_kept_open(lazy, tmp_path):
    lazy[0]
    with h5py.File(tmp_path / "f.h5", "a") as file:
        file["other"] = np.zeros(1000)
    with pytest.raises(ScanFileError, match="has changed since"):
        lazy[0]
    with pytest.raises(ScanFileError, match="has changed since"):
        lazy.select([0])


def test_file_gone(lazy, tmp_path):
    (tmp_path / "f.h5").unlink()
    with pytest.raises(ScanFileError, match="has changed since"):
        lazy[0]


def test_blocks_are_bounded_and_complete(lazy, counts, monkeypatch):
    monkeypatch.setattr(frames_module, "BLOCK_BYTES", 3 * 8 * 8 * 4)
    parts = list(blocks(lazy))
    assert [len(p) for p in parts] == [3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(parts), counts)
    monkeypatch.setattr(frames_module, "BLOCK_BYTES", 1)
    assert {len(p) for p in blocks(lazy)} == {1}


def test_mean_photons_in_blocks(lazy, counts, monkeypatch):
    monkeypatch.setattr(frames_module, "BLOCK_BYTES", 600)
    mask = np.random.default_rng(0).random((8, 8)) > 0.3
    assert mean_photons(lazy, mask) == mean_photons(counts, mask) == counts[:, mask].sum() / 11
    assert mean_photons(lazy) == counts.sum() / 11


def test_fault_in_a_late_block_names_its_frame(monkeypatch):
    monkeypatch.setattr(frames_module, "BLOCK_BYTES", 8 * 8 * 8)
    counts = np.ones((11, 8, 8))
    counts[9, 1, :3] = np.nan
    with pytest.raises(FrameError, match=r"3 values of frame 9 \(from 0\) are not"):
        mean_photons(counts)


def scan_of(counts) -> Scan:
    y, x = np.divmod(np.arange(len(counts)), 40)
    return Scan(counts, np.stack([y, x], axis=1) * 4e-7, Geometry(8000.0, 2.0, 172e-6, counts.shape[-1]))


def test_scan_and_subset_read_only_blocks(tmp_path, monkeypatch):
    """The largest read of opening, averaging, choosing and copying is a block."""
    counts = np.random.default_rng(1).poisson(3.0, (40, 16, 16)).astype(np.uint16)
    write_cxi(tmp_path / "a.cxi", scan_of(counts))
    monkeypatch.setattr(frames_module, "BLOCK_BYTES", 5 * 16 * 16 * 2)
    sizes = []
    read = FrameDataset.read
    monkeypatch.setattr(
        FrameDataset, "read", lambda self, rows, view: sizes.append(len(rows)) or read(self, rows, view)
    )
    scan = read_scan(tmp_path / "a.cxi")
    # One frame shows that no pixel holds a flag; then all, once, although they are checked and averaged.
    assert sizes == [1] + [5] * 8
    part = scan.subset(np.arange(40) % 2 == 0)
    assert isinstance(part.counts, LazyFrames) and part.mean_photons == counts[::2].sum() / 20
    write_cxi(tmp_path / "b.cxi", part)
    assert max(sizes) == 5
    np.testing.assert_array_equal(read_scan(tmp_path / "b.cxi").counts, counts[::2])


def test_rewriting_the_file_that_is_read(tmp_path):
    counts = np.random.default_rng(1).poisson(3.0, (9, 16, 16)).astype(np.float32)
    write_cxi(tmp_path / "a.cxi", scan_of(counts))
    write_cxi(tmp_path / "a.cxi", read_scan(tmp_path / "a.cxi").subset([3, 1]))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.cxi").counts, counts[[3, 1]])


MEASURE = """
import resource, sys
from bluesky_cdi.io import read_scan
read_scan(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan = read_scan(sys.argv[1])
frame = scan.counts[len(scan) // 2]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(scan), int(frame.sum()))
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="this system doesn't report memory")
def test_memory(tmp_path):
    """A file of 192 MiB is opened, checked and read from with far less than that."""
    for name, n in (("small.cxi", 2), ("large.cxi", 1536)):
        with h5py.File(tmp_path / name, "w") as file:
            detector = file.create_group("entry_1/instrument_1/detector_1")
            detector["x_pixel_size"] = detector["y_pixel_size"] = 75e-6
            detector["distance"] = 2.0
            file["entry_1/instrument_1/source_1/energy"] = 8000 * 1.602176634e-19
            data = detector.create_dataset("data", (n, 256, 256), np.uint16, chunks=(1, 256, 256), compression="lzf")
            data[0] = 1
            _, packed = data.id.read_direct_chunk((0, 0, 0))
            for k in range(1, n):
                data.id.write_direct_chunk((k, 0, 0), packed)
            detector["translation"] = np.column_stack([np.arange(n), np.zeros(n), np.zeros(n)]) * 1e-7
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.cxi"), str(tmp_path / "small.cxi")]
    kib, n, photons = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert (n, photons) == (1536, 256 * 256)
    assert kib < 90 * 1024


@pytest.mark.parametrize(
    "options",
    [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4(), hdf5plugin.Zstd(), {"compression": "lzf"}],
    ids=["bitshuffle-lz4", "lz4", "zstd", "lzf"],
)
def test_compressed(tmp_path, options):
    counts = np.random.default_rng(1).poisson(3.0, (9, 16, 16)).astype(np.uint32)
    write_cxi(tmp_path / "a.cxi", scan_of(counts))
    with h5py.File(tmp_path / "a.cxi", "a") as file:
        del file["entry_1/instrument_1/detector_1/data"]
        file.create_dataset("entry_1/instrument_1/detector_1/data", data=counts, chunks=(3, 16, 16), **options)
    np.testing.assert_array_equal(read_cxi(tmp_path / "a.cxi").counts, counts)


def test_unknown_filter(tmp_path):
    counts = np.ones((9, 16, 16), np.uint16)
    write_cxi(tmp_path / "a.cxi", scan_of(counts))
    with h5py.File(tmp_path / "a.cxi", "a") as file:
        detector = file["entry_1/instrument_1/detector_1"]
        del detector["data"]
        made = h5p.create(h5p.DATASET_CREATE)
        made.set_chunk((9, 16, 16))
        made.set_filter(50000, 1)  # 1: optional, or HDF5 would refuse to make it
        dataset = h5d.create(detector.id, b"data", h5t.NATIVE_UINT16, h5s.create_simple(counts.shape), made)
        dataset.write_direct_chunk((0, 0, 0), counts.tobytes(), 0)
    with pytest.raises(ScanFileError, match=r"filter 50000 .* Upgrade hdf5plugin"):
        read_cxi(tmp_path / "a.cxi")
