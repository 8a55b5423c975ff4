"""Frames compressed in files: bit by bit as they were, or rounded as asked for, which the file says."""

import json
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest

from bluesky_cdi.cli import main
from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import COMPRESSIONS, ROUNDED, Rounding, Scan, read_scan, with_rounded_counts, write_scan
from bluesky_cdi.physics.geometry import Geometry

FAR = Geometry(9000.0, 1.9, 75e-6, 16)


def scan_of(counts) -> Scan:
    rng = np.random.default_rng(5)
    return Scan(
        counts=counts,
        positions_m=rng.uniform(-0.4, 0.4, (len(counts), 2)) * 16 * FAR.pixel_m,
        geometry=FAR,
        probe=np.full((1, 16, 16), np.sqrt(counts.sum() / len(counts) / 256), np.complex64),
        name="a",
        source={"propagation": "far field"},
    )


def stored(path) -> int:
    """Bytes that the frames of a file take."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as file:
            return file.getinfo("frames.npy").compress_size
    with h5py.File(path) as file:
        return file["entry_1/data_1/data"].id.get_storage_size()


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(300.0, (5, 16, 16)).astype(np.uint16)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("suffix", ["cxi", "h5"])
def test_without_loss(tmp_path, counts, name, suffix):
    path = tmp_path / f"a.{suffix}"
    write_scan(path, scan_of(counts), compression=name)
    read = np.asarray(read_scan(path).counts)
    assert read.dtype == counts.dtype and (read == counts).all()
    with h5py.File(path) as file:
        frames = file["entry_1/data_1/data" if suffix == "cxi" else "patterns"]
        bitshuffle = "32008" in frames._filters
        assert bitshuffle == (name != "gzip") and frames.chunks == (1, 16, 16)
        assert frames.id.get_storage_size() < counts.nbytes


def test_only_gzip_is_for_programs_without_plugins(tmp_path, counts):
    for name, known in (("gzip", {"gzip", "shuffle"}), ("bitshuffle-zstd", {"32008"})):
        write_scan(tmp_path / f"{name}.cxi", scan_of(counts), compression=name)
        with h5py.File(tmp_path / f"{name}.cxi") as file:
            assert set(file["entry_1/data_1/data"]._filters) == known


def test_no_such_compression(tmp_path, counts):
    with pytest.raises(ScanFileError, match=r"one of bitshuffle-zstd, .* got 'zip'"):
        write_scan(tmp_path / "a.cxi", scan_of(counts), compression="zip")
    with pytest.raises(ScanFileError, match=r"a\.npz is an NPZ file, which has a compression of its own"):
        write_scan(tmp_path / "a.npz", scan_of(counts), compression="gzip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [0.5, 1.0])
def test_rounding_is_within_its_step_and_unbiased(step):
    n = np.arange(60000)
    error = Rounding(step)(n).astype(float) - n
    assert (np.abs(error) <= step * np.sqrt(n) / 2).all()
    assert (error[n < (4 / step) ** 2] == 0).all() and (error[n > 1000] != 0).mean() > 0.8
    noisy = np.random.default_rng(3).poisson(np.geomspace(0.1, 5e4, 40)[:, None], (40, 20000))
    rounded = Rounding(step)(noisy).astype(float)
    # A twentieth of a deviation where the power changes; a mean of 20,000 is known to far less.
    bias = (rounded - noisy).mean(axis=1) / noisy.std(axis=1)
    assert np.abs(bias).max() < 0.05 and np.median(np.abs(bias)) < 0.003
    # Photon noise, a tenth of it, and what the variance of 20,000 is unsure of.
    assert (rounded.var(axis=1) <= (1 + 0.1 * step**2 + 0.05) * noisy.mean(axis=1)).all()


def test_flags_and_saturated_pixels_stay():
    top = np.iinfo(np.uint16).max
    values = np.array([top, top - 1, top - 2, 1000, 999, 990, 0, 1], np.uint16)
    rounded = Rounding(1.0, saturation=1000.0)(values)
    assert (rounded[:4] == values[:4]).all() and (rounded[4:] < 1000).all()
    assert Rounding(1.0)(values)[2] < top - 1
    flags = np.array([np.nan, -3.0, 0.4, 2.5], np.float32)
    np.testing.assert_array_equal(Rounding(1.0)(flags), flags)


@pytest.mark.parametrize("step", [0.0, 1.1, float("nan")])
def test_steps_that_lose_more_than_noise(step):
    with pytest.raises(ScanFileError, match="above 0 and up to 1 of their standard deviations"):
        Rounding(step)


@pytest.mark.parametrize("suffix", ["cxi", "npz"])
def test_a_rounded_scan_says_so_and_is_smaller(tmp_path, counts, suffix, caplog):
    scan, rounding = scan_of(counts), Rounding(1.0)
    for name, each in (("whole", scan), ("rounded", with_rounded_counts(scan, rounding))):
        write_scan(tmp_path / f"{name}.{suffix}", each)
    back = read_scan(tmp_path / f"rounded.{suffix}")
    assert (np.asarray(back.counts) == rounding(counts)).all() and back.counts.dtype == counts.dtype
    assert back.source[ROUNDED] == rounding.as_notes() and "not as measured" in caplog.text
    assert stored(tmp_path / f"rounded.{suffix}") < 0.8 * stored(tmp_path / f"whole.{suffix}")
    with pytest.raises(ScanFileError, match="were rounded before, in steps of 1"):
        with_rounded_counts(back, rounding)
    with pytest.raises(ScanFileError, match="pixels reached 320 counts can't be told any more"):
        back.saturation(320.0)


def test_saturation_that_was_stated_when_counts_were_rounded(counts):
    assert with_rounded_counts(scan_of(counts), Rounding(1.0, 320.0)).saturation(320.0) == 320.0


@pytest.mark.parametrize(("name", "form"), [("a.h5", "ptychodus"), ("a.npz", "ptychopinn")])
def test_forms_that_can_not_say_it_hold_no_rounded_counts(tmp_path, counts, name, form):
    with pytest.raises(ScanFileError, match="can't say that counts are rounded"):
        write_scan(tmp_path / name, with_rounded_counts(scan_of(counts), Rounding(1.0)), form)
    assert not list(tmp_path.iterdir())


def test_convert_rounds_only_when_it_is_told_to(tmp_path, counts, capsys):
    scan = replace(scan_of(counts), source={"propagation": "far field"})
    write_scan(tmp_path / "a.cxi", scan)
    command = ["convert", str(tmp_path / "a.cxi"), "--json"]
    assert main([*command, str(tmp_path / "same.cxi"), "--compression", "gzip"]) == 0
    assert ROUNDED not in json.loads(capsys.readouterr().out)
    assert (np.asarray(read_scan(tmp_path / "same.cxi").counts) == counts).all()
    assert main([*command, str(tmp_path / "less.cxi"), "--round-counts", "1", "--saturation", "320"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[ROUNDED] == Rounding(1.0, 320.0).as_notes() and found["not_kept"] == []
    assert (np.asarray(read_scan(tmp_path / "less.cxi").counts) == Rounding(1.0, 320.0)(counts)).all()


def test_a_result_has_no_frames_to_compress(tmp_path, capsys):
    assert main(["export", "1", str(tmp_path / "a.cxi"), "--compression", "gzip"]) == 1
    assert "--compression is that of frames, which --scan writes" in capsys.readouterr().err
