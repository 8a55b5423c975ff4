"""Counts on their way to the device: no copy more than is needed, whatever is read at a time."""

import numpy as np
import pytest
import torch

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction import frames as frames_module
from bluesky_cdi.reconstruction.frames import MeasuredFrames

N, SIDE = 7, 8
FRAMES = np.random.default_rng(0).poisson(20, (N, SIDE, SIDE)).astype(np.uint16)


@pytest.mark.parametrize("frames_at_a_time", [1, 3, 100])
def test_what_is_read_at_a_time_changes_nothing(monkeypatch, frames_at_a_time):
    monkeypatch.setattr(frames_module, "READ_BYTES", frames_at_a_time * 4 * SIDE**2)
    measured = MeasuredFrames(ObjectGrid.covering((0.0, 0.0), (1e-8, 1e-8), 1e-8, SIDE, 1), torch.device("cpu"))
    measured.add([Frame(k + 1, np.zeros(2), frame) for k, frame in enumerate(FRAMES)])
    rows, sizes, read = np.array([6, 0, 1, 5]), [], measured._counts.read
    monkeypatch.setattr(measured._counts, "read", lambda some: sizes.append(len(some)) or read(some))
    shifted = np.fft.ifftshift(FRAMES[rows].astype(np.float32), axes=(1, 2))
    np.testing.assert_array_equal(measured.diffraction(rows).counts, shifted)
    assert max(sizes) <= frames_at_a_time
    assert len(measured.diffraction(rows[:0])) == 0


def test_all_frames_or_some_in_a_row_are_no_copy():
    counts = torch.from_numpy(FRAMES.astype(np.float32))
    data = Diffraction(counts, torch.zeros(N, 2, dtype=torch.int64), torch.zeros(N, 2), (1, SIDE, SIDE))
    every, order = torch.ones(N, dtype=torch.bool), torch.arange(N)
    for index in (every, order, slice(3)):
        assert data[index].counts.data_ptr() == counts.data_ptr()
    every[2] = False
    some = data[every]
    np.testing.assert_array_equal(some.counts, np.delete(FRAMES, 2, axis=0))
    assert len(some.corner) == N - 1
    np.testing.assert_array_equal(data[order.flip(0)].counts, FRAMES[::-1])
