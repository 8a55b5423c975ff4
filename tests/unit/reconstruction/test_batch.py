"""Recorded scans of all kinds of frames: odd sizes, masked flags, dark frames, wrong units."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.config import load_config
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation import align, complex_nrmse
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.reconstruction import batch
from bluesky_cdi.reconstruction.batch import DARK_SHARE, reconstruct, without_dark

STEP = 5


def make_scan(side=64, n=7, photons=1e5):
    """Simulate frames of whole-pixel positions with NumPy alone; a scan, and its object from pixel [0, 0] on."""
    rng = np.random.default_rng(0)
    geometry = Geometry(8000.0, 2.0, 172e-6, side)
    y, x = np.indices((side, side)) - side // 2
    probe = np.exp(-(y**2 + x**2) / (2 * (side / 8) ** 2) + 0.02j * (y**2 + x**2))
    probe *= np.sqrt(photons / (abs(probe) ** 2).sum())
    at = np.stack(np.meshgrid(*(np.arange(n) * STEP,) * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    at = at + rng.integers(-1, 2, at.shape)
    at -= at.min(axis=0)
    f = np.hypot(*np.meshgrid(*(np.fft.fftfreq(at.max() + side),) * 2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=f.shape)) * np.exp(-((f / 0.08) ** 2))).real
    sample = np.exp(0.5j * smooth / smooth.std())
    waves = np.array([probe * sample[r : r + side, c : c + side] for r, c in at])
    far = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(waves, axes=(1, 2))), axes=(1, 2)) / side
    counts = rng.poisson(abs(far) ** 2)
    return Scan(counts, at * geometry.pixel_m, geometry, probe[None].astype(np.complex64)), sample


def settings(engine="rpie"):
    return load_config(
        overrides={"reconstructor": {"name": engine, "background": 0.0, "threads": 1}, "probe": {"modes": 1}}
    )


def error(found, sample, side):
    """Complex NRMSE where all frames overlap; the grid has a margin around the first frame."""
    margin = (found.shape[0] - len(sample)) // 2
    inner = found[margin : margin + len(sample), margin : margin + len(sample)]
    mask = np.zeros(sample.shape)
    mask[side // 2 : -(side // 2), side // 2 : -(side // 2)] = 1
    moved = align(inner, sample[: len(inner), : len(inner)], mask)
    return complex_nrmse(moved.object, moved.truth, mask)


@pytest.mark.parametrize("engine", ["rpie", "pinn"])
@pytest.mark.parametrize("side", [45, 65])
def test_frames_of_an_odd_size(side, engine):
    scan, sample = make_scan(side)
    assert error(reconstruct(scan, settings(engine), 10).object, sample, side) < 0.35


@pytest.fixture(scope="module")
def masked():
    """Reconstruct a scan with masked pixels that hold a value."""
    scan, _ = make_scan(32, n=4)
    gap = np.zeros((32, 32), bool)
    gap[10:12], gap[:, 20] = True, True

    def found(engine, kind, value):
        counts = scan.counts.astype(kind)
        counts[:, gap] = value
        return reconstruct(replace(scan, counts=counts, mask=~gap), settings(engine), 4)

    return found


@pytest.fixture(scope="module")
def clean(masked):
    return functools.cache(lambda engine: masked(engine, np.int32, 0))


@pytest.mark.parametrize("engine", ["rpie", "lsqml", "dm", "pinn"])
@pytest.mark.parametrize(("kind", "flag"), [(np.int32, -1), (np.float32, np.nan), (np.uint32, 2**32 - 1)])
def test_what_masked_pixels_hold_changes_nothing(masked, clean, engine, kind, flag):
    dirty = masked(engine, kind, flag)
    np.testing.assert_array_equal(dirty.object, clean(engine).object)
    np.testing.assert_array_equal(dirty.probe, clean(engine).probe)
    assert np.isfinite(dirty.object).all() and np.isfinite(dirty.residual).all()


def test_dark_frames_are_left_out_and_listed(caplog):
    scan, _ = make_scan(32, n=4)
    counts = scan.counts.copy()
    dark = [2, 7, 8]
    counts[dark] = 0
    counts[7, 16, 16] = 3
    lit = np.delete(np.arange(16), dark)
    found = reconstruct(replace(scan, counts=counts), settings(), 3)
    wanted = reconstruct(scan.subset(lit), settings(), 3, numbers=(lit + 1).tolist())
    assert found.source["dark_frames"] == [3, 8, 9] and "dark_frames" not in wanted.source
    assert list(found.frame_seq_nums) == (lit + 1).tolist()
    np.testing.assert_array_equal(found.object, wanted.object)
    assert "3 of 16 frames have less than 2 % of a bright one's photons and are left out: 3, 8, 9" in caplog.text


def test_frames_under_a_weak_beam_do_not_spoil_the_image():
    scan, sample = make_scan(n=8)
    rng = np.random.default_rng(3)
    dim, flux = rng.choice(64, 6, replace=False), rng.uniform(0.1, 0.5, 6)
    counts = scan.counts.copy()
    for frame, share in zip(dim, flux, strict=True):
        counts[frame] = rng.binomial(counts[frame], share)
    clean, spoiled = (reconstruct(each, settings(), 40) for each in (scan, replace(scan, counts=counts)))
    assert "other_flux" not in clean.source
    assert spoiled.source["other_flux"] == pytest.approx(dict(zip(map(str, dim + 1), flux, strict=True)), rel=0.1)
    assert error(spoiled.object, sample, 64) < 1.3 * error(clean.object, sample, 64)


def test_an_absorbing_sample_is_no_dark_frame():
    scan, _ = make_scan(32, n=4)
    counts = scan.counts.copy()
    counts[3] = np.random.default_rng(2).binomial(counts[3], 2 * DARK_SHARE)
    kept, numbers = without_dark(replace(scan, counts=counts), range(11, 27))
    assert kept.counts is counts and numbers == list(range(11, 27))


@pytest.mark.parametrize("change", [{"distance_m": 2000.0}, {"energy_ev": 8.0}])
def test_a_scan_within_a_pixel_is_refused(change):
    scan, _ = make_scan(32, n=4)
    wrong = replace(scan, geometry=replace(scan.geometry, **change))
    with pytest.raises(GeometryError, match="larger than half a sample pixel"):
        reconstruct(wrong, settings(), 1)


def test_results_are_judged():
    scan, _ = make_scan()
    shuffled = replace(scan, positions_m=scan.positions_m[np.random.default_rng(0).permutation(len(scan))])
    nothing = replace(scan, counts=np.random.default_rng(0).poisson(1e-3, scan.counts.shape))
    words = [reconstruct(each, settings(), 30).source["verdict"]["word"] for each in (scan, shuffled, nothing)]
    assert words == ["good", "failed", "failed"]


def test_an_interrupted_reconstruction_keeps_what_it_has():
    scan, _ = make_scan(32, n=4)
    news = []
    found = reconstruct(scan, settings(), 50, lambda *each: news.append(each), interrupted=lambda: len(news) >= 3)
    assert found.source["iterations"] == 3 and found.source["ended"] == "interrupted"
    assert "it was interrupted after 3 iterations" in found.source["verdict"]["reasons"]
    np.testing.assert_array_equal(found.object, reconstruct(scan, settings(), 3).object)


def test_the_flux_that_was_monitored_is_not_taken_for_the_sample():
    scan, sample = make_scan()
    flux = np.random.default_rng(1).uniform(0.6, 1.0, len(scan))
    counts = np.random.default_rng(2).binomial(scan.counts, flux[:, None, None])
    found = [reconstruct(replace(scan, counts=counts, flux=each), settings(), 10) for each in (None, flux)]
    without, with_it = (error(each.object, sample, 64) for each in found)
    assert with_it < 0.75 * without
    assert replace(scan, flux=flux).subset([3, 1]).flux.tolist() == flux[[3, 1]].tolist()


@pytest.mark.parametrize(("most", "kept"), [(500, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (4, [1, 3, 5, 7])])
def test_the_losses_of_a_reconstruction_are_kept(monkeypatch, most, kept):
    monkeypatch.setattr(batch, "LOSSES_MAX", most)
    told = {}
    scan, _ = make_scan(32, n=3)
    losses = reconstruct(scan, settings(), 7, told.__setitem__).source["loss_history"]
    assert list(told) == [1, 2, 3, 4, 5, 6, 7] and told[7] < told[1]
    assert losses["iteration"] == kept
    assert losses["deviance"] == pytest.approx([told[k] for k in kept], rel=1e-5)
