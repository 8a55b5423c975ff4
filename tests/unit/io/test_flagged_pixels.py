"""Pixels that hold flags in place of counts: masked where a file says nothing of them."""

import numpy as np
import pytest

from bluesky_cdi.errors import FrameError
from bluesky_cdi.io import Scan, photons_of_frames, read_scan, write_cxi
from bluesky_cdi.io.frames import FLAG_FRAMES, blocks, flagged_pixels
from bluesky_cdi.physics.geometry import Geometry

FAR = Geometry(8000.0, 2.0, 172e-6, 16)
N = 40


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(9.0, (N, 16, 16))


@pytest.fixture
def gap():
    gap = np.zeros((16, 16), bool)
    gap[5:7] = True
    return gap


def flagged(counts, gap, kind, value, frames=slice(None)):
    found = counts.astype(kind)
    found[frames, gap] = value
    return found


FLAGS = [
    (np.uint32, 2**32 - 1), (np.uint32, 2**32 - 2), (np.uint16, 65535), (np.int32, -1), (np.int64, -2),
    (np.float32, np.nan), (np.float64, -1.0), (np.float32, -np.inf),
    # Written by a program that took the flags of a detector's type for counts.
    (np.int64, 2**32 - 1), (np.uint64, 2**32 - 2), (np.float64, 2**32 - 1), (np.float32, 2**32 - 1),
    (np.int32, 65535), (np.float32, 65534), (np.float64, 2**31 - 1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), FLAGS)
def test_the_gap_is_found(counts, gap, kind, value):
    np.testing.assert_array_equal(flagged_pixels(flagged(counts, gap, kind, value)), gap)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.uint32, np.float64])
def test_counts_are_no_flags(counts, kind):
    assert not flagged_pixels(counts.astype(kind)).any()


def test_what_is_saturated_in_some_frames_is_no_flag(counts, gap):
    assert not flagged_pixels(flagged(counts, gap, np.uint16, 65535, frames=slice(0, N, 2))).any()


def write(path, counts, **options):
    """Write a scan whose frames a `Scan` would refuse: the file is made with others."""
    import h5py

    positions = np.stack(np.divmod(np.arange(N), 8), axis=1) * 4 * FAR.pixel_m
    write_cxi(path, Scan(np.ones((N, 16, 16), np.uint16), positions, FAR, **options))
    with h5py.File(path, "a") as file:
        del file["entry_1/instrument_1/detector_1/data"]
        file["entry_1/instrument_1/detector_1/data"] = counts
    return path


@pytest.mark.parametrize(("kind", "value"), FLAGS)
def test_a_file_without_a_mask_gets_one(tmp_path, counts, gap, kind, value, caplog):
    scan = read_scan(write(tmp_path / "a.cxi", flagged(counts, gap, kind, value)))
    np.testing.assert_array_equal(scan.mask, ~gap)
    assert scan.source["flagged_pixels"] == 32 and "32 pixels hold a flag" in caplog.text
    assert scan.mean_photons == pytest.approx(counts[:, ~gap].sum() / N)


def test_its_mask_gets_more(tmp_path, counts, gap, caplog):
    known = np.ones((16, 16), bool)
    known[5], known[0] = False, False
    scan = read_scan(write(tmp_path / "a.cxi", flagged(counts, gap, np.int32, -1), mask=known))
    np.testing.assert_array_equal(scan.mask, known & ~gap)
    assert scan.source["flagged_pixels"] == 16
    whole = read_scan(write(tmp_path / "b.cxi", flagged(counts, gap, np.int32, -1), mask=~gap))
    np.testing.assert_array_equal(whole.mask, ~gap)
    assert "flagged_pixels" not in whole.source


@pytest.mark.parametrize(
    ("kind", "value", "match"), [(np.int32, -1, "not negative"), (np.float32, np.nan, "must be finite")]
)
def test_what_some_frames_hold_is_still_refused(tmp_path, counts, gap, kind, value, match):
    path = write(tmp_path / "a.cxi", flagged(counts, gap, kind, value, frames=[3]))
    with pytest.raises(FrameError, match=match):
        read_scan(path)


def test_frames_of_nothing_but_flags_are_refused(tmp_path, counts):
    path = write(tmp_path / "a.cxi", np.full((N, 16, 16), -1, np.int32))
    with pytest.raises(FrameError, match="not negative"):
        read_scan(path)


def test_few_frames_are_looked_at(counts):
    class Counting:
        shape, ndim, dtype, looked_at = counts.shape, 3, counts.dtype, 0

        def __len__(self):
            return len(counts)

        def __getitem__(self, key):
            self.looked_at += 1
            return counts[key]

    frames = Counting()
    assert not flagged_pixels(frames).any() and frames.looked_at == 1
    counts[:, 3, 3] = -1
    assert flagged_pixels(frames).sum() == 1 and frames.looked_at == 1 + FLAG_FRAMES < N


def test_photons_of_each_frame(counts, gap, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.io.frames.BLOCK_BYTES", 3 * 16 * 16 * 2)
    frames = counts.astype(np.uint16)
    assert len(list(blocks(frames))) == 14
    np.testing.assert_array_equal(photons_of_frames(frames), counts.sum(axis=(1, 2)))
    np.testing.assert_array_equal(photons_of_frames(frames, ~gap), counts[:, ~gap].sum(axis=1))
