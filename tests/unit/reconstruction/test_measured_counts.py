"""Counts on their way to the device: no copy more than is needed, whatever is read at a time."""

import numpy as np
import pytest
import torch

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.propagators import FAR_FIELD
from bluesky_cdi.reconstruction import measured_counts
from bluesky_cdi.reconstruction.measured_counts import MeasuredCounts

N, SIDE = 7, 8
FRAMES = np.random.default_rng(0).poisson(20, (N, SIDE, SIDE)).astype(np.uint16)


def measured(memory_bytes=10**9, mask=None):
    counts = MeasuredCounts(SIDE, torch.device("cpu"), FAR_FIELD, memory_bytes, mask)
    for row, frame in enumerate(FRAMES):
        counts.put(row, frame)
    return counts


@pytest.mark.parametrize("frames_at_a_time", [1, 3, 100])
def test_what_is_read_at_a_time_changes_nothing(monkeypatch, frames_at_a_time):
    monkeypatch.setattr(measured_counts, "CHUNK_BYTES", frames_at_a_time * 4 * SIDE**2)
    counts, rows, sizes = measured(), np.array([6, 0, 1, 5]), []
    read = counts._store.read
    monkeypatch.setattr(counts._store, "read", lambda some: sizes.append(len(some)) or read(some))
    shifted = np.fft.ifftshift(FRAMES[rows].astype(np.float32), axes=(1, 2))
    np.testing.assert_array_equal(counts.working(rows).numpy(), shifted)
    assert max(sizes) <= frames_at_a_time
    np.testing.assert_array_equal(counts.photons(), FRAMES.sum(axis=(1, 2)))
    assert max(sizes) <= frames_at_a_time


@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_frames_are_kept_where_there_is_room_until_one_changes(memory_bytes):
    counts, rows = measured(memory_bytes), np.arange(N)
    first = counts.working(rows)
    assert (counts.working(rows) is first) == bool(memory_bytes)
    counts.put(2, FRAMES[3])
    np.testing.assert_array_equal(counts.working(rows)[2], counts.working(rows)[3])
    assert counts.photons()[2] == FRAMES[3].sum()


def test_pixels_that_are_not_valid_are_gone_before_anything_is_summed():
    mask = np.ones((SIDE, SIDE), bool)
    mask[0, 3] = False
    counts = measured(mask=mask)
    np.testing.assert_array_equal(counts.photons(), FRAMES[:, mask].sum(axis=1))
    counts.use_mask(np.eye(SIDE, dtype=bool))
    np.testing.assert_array_equal(counts.photons(), np.trace(FRAMES, axis1=1, axis2=2))


def test_all_frames_or_some_in_a_row_are_no_copy():
    counts = torch.from_numpy(FRAMES.astype(np.float32))
    data = Diffraction(counts, torch.zeros(N, 2, dtype=torch.int64), torch.zeros(N, 2), (1, SIDE, SIDE))
    every = torch.ones(N, dtype=torch.bool)
    assert data[every].counts.data_ptr() == data[:3].counts.data_ptr() == counts.data_ptr()
    every[2] = False
    some = data[every]
    np.testing.assert_array_equal(some.counts, np.delete(FRAMES, 2, axis=0))
    assert len(some.corner) == N - 1
