"""Counts are kept once, in their own type, and beyond the limit in files."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.reconstruction import count_store
from bluesky_cdi.reconstruction.count_store import CountStore

N = 8
FRAME_BYTES = 2 * N * N


def frames(number, kind=np.uint16):
    return np.random.default_rng(0).integers(0, 60000, (number, N, N)).astype(kind)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(count_store, "BLOCK_BYTES", 3 * FRAME_BYTES)


@pytest.mark.parametrize("memory_bytes", [0, 7 * FRAME_BYTES, 10**9])
def test_frames_come_back(memory_bytes):
    store, counts = CountStore(N, memory_bytes), frames(20)
    for frame in counts:
        store.append(frame)
    assert len(store) == 20
    assert store.memory_held <= memory_bytes
    assert bool(store.file_held) == (memory_bytes < 20 * FRAME_BYTES)
    np.testing.assert_array_equal(store.read([19, 0, 7]), counts[[19, 0, 7]])
    assert store.read([1]).dtype == np.float32
    assert store[4].dtype == np.uint16


def test_files_have_no_name_and_grow(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = CountStore(N, 0)
    held = [0]
    for frame in frames(40):
        store.append(frame)
        if store.file_held != held[-1]:
            held.append(store.file_held)
    assert (np.diff(held) // FRAME_BYTES).tolist() == [3, 3, 6, 12, 24]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_a_frame_is_replaced_in_place(memory_bytes):
    store, counts = CountStore(N, memory_bytes), frames(4)
    for frame in counts[:3]:
        store.append(frame)
    held = store.memory_held + store.file_held
    store.replace(1, counts[3])
    np.testing.assert_array_equal(store.read(range(3)), counts[[0, 3, 2]])
    store.replace(1, counts[3].astype(np.uint8))
    assert store[1].dtype == np.uint16 and store.memory_held + store.file_held == held
    # A type that the old one can't hold goes elsewhere.
    store.replace(1, counts[3].astype(np.int32) + 100_000)
    np.testing.assert_array_equal(store[1], counts[3].astype(np.int32) + 100_000)
    np.testing.assert_array_equal(store[2], counts[2])


def test_types():
    store = CountStore(N, 10**9)
    kinds = [np.uint8, np.int16, np.uint32, np.int64, np.float64, ">u2"]
    for kind in kinds:
        store.append(np.full((N, N), 100, kind))
    assert [store[k].dtype for k in range(6)] == ["uint8", "int16", "uint32", "float32", "float32", "uint16"]
    np.testing.assert_array_equal(store.read(range(6)), 100)


def test_what_is_kept_is_a_copy():
    store, counts = CountStore(N, 10**9), frames(1)[0]
    store.append(counts)
    given = store[0]
    counts[:], given[:] = 0, 0
    assert store.read([0]).any()


def test_full_disk_is_an_error(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(Path("/nowhere")))
    with pytest.raises(WorkerError, match=r"no room .* in /nowhere.*memory_mb"):
        CountStore(N, 0).append(frames(1)[0])
