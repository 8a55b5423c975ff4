import json
import subprocess
import sys

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
import pytest

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.sim_devices import OutOfRangeError, SimulatedSource, simulated_beamline

N = 64


def grid(beamline, num=3, order=None):
    devices = order or [beamline.detector, beamline.monitor]
    return bp.grid_scan(devices, beamline.stage.y, -1.5, 1.5, num, beamline.stage.x, -1.5, 1.5, num)


def test_same_seed_same_documents(make_config, tmp_path, RE, docs):
    config = make_config(
        seed=3, flux_fluctuation=0.05, position_error_m=3e-9, dead_pixels=5, hot_pixels=2, sample="cells", photons=1e4
    )
    other = make_config(**config.simulation.model_dump() | {"seed": 4})
    runs = []
    for i, each in enumerate((config, config, other)):
        docs.clear()
        RE(grid(simulated_beamline(each, tmp_path / str(i))))
        runs.append((docs.frames(), docs.column("i0")))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert (runs[0][1] != runs[2][1]).all()
    assert (runs[0][0] != runs[2][0]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("photons", [1e3, 1e5])
def test_vacuum_frame_holds_the_stated_photons(make_config, photons):
    source = SimulatedSource(make_config(sample="blank", photons=photons, background=0.1))
    mean = photons + 0.1 * N * N
    totals = [source.expose((1e-7, -3e-7), 0.0, 1.0).sum() for _ in range(40)]
    assert np.mean(totals) == pytest.approx(mean, abs=5 * np.sqrt(mean / 40))


def test_mean_counts_follow_photons_transmission_and_diffraction(make_config):
    """Against numpy: |FFT(probe x object)|^2 at a position on the pixel grid."""
    source = SimulatedSource(make_config(sample="star", background=0.05))
    truth = source.truth
    row, column = 70, 81
    patch = truth.object[row : row + N, column : column + N]
    waves = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(truth.probe * patch, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    mean = (np.abs(waves) ** 2).sum(axis=0) + 0.05
    transmitted = float((np.abs(truth.probe * patch) ** 2).sum())
    assert 0.8e5 < transmitted < 0.999e5
    position = tuple(np.add(truth.origin_m, np.multiply((row + N // 2, column + N // 2), truth.pixel_m)))
    frames = np.array([source.expose(position, 0.0, 1.0) for _ in range(60)], float)
    totals = frames.sum(axis=(1, 2))
    assert totals.mean() == pytest.approx(transmitted + 0.05 * N * N, abs=5 * np.sqrt(transmitted / 60))
    chi2 = (frames.mean(axis=0) - mean) ** 2 / (mean / 60)
    assert chi2.mean() == pytest.approx(1, abs=0.15)
    np.testing.assert_allclose(source.expected(position, 0.0, 0.7), 0.7 * (mean - 0.05) + 0.05, rtol=1e-3, atol=1e-3)


def test_repeated_exposures_have_poisson_statistics(make_config):
    source = SimulatedSource(make_config(photons=1e5))
    frames = np.array([source.expose((0.0, 0.0), 0.0, 1.0) for _ in range(200)], float)
    bright = frames.mean(axis=0) > 2
    assert bright.sum() > 300
    ratio = frames.var(axis=0, ddof=1)[bright] / frames.mean(axis=0)[bright]
    assert ratio.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / 200 / bright.sum()))


def test_dead_hot_and_saturated_pixels(make_config):
    source = SimulatedSource(make_config(dead_pixels=30, hot_pixels=20, saturation=90))
    frame = source.expose((0.0, 0.0), 0.0, 1.0)
    truth = source.truth
    assert (truth.dead.sum(), truth.hot.sum(), (truth.dead & truth.hot).sum()) == (30, 20, 0)
    assert (frame[truth.dead] == 0).all() and (frame[truth.hot] == 90).all()
    assert frame.max() == 90 and (frame[~truth.hot] == 90).sum() > 10
    assert frame.dtype == np.uint16


def test_saturation_chooses_the_type(make_config):
    source = SimulatedSource(make_config(saturation=70_000, hot_pixels=1))
    assert source.frame_dtype == np.uint32
    assert source.expose((0.0, 0.0), 0.0, 1.0).max() == 70_000
    with pytest.raises(ConfigError, match=r"saturation must be at most 4294967295 \(32 bits\)"):
        SimulatedSource(make_config(saturation=2**33))
    with pytest.raises(ConfigError, match="a frame has only 4096 pixels"):
        SimulatedSource(make_config(dead_pixels=4096, hot_pixels=1))


def test_documents_show_the_readback_and_nothing_of_the_truth(make_config, tmp_path, RE, docs):
    beamline = simulated_beamline(make_config(position_error_m=50e-9, frames="inline", photons=1e3), tmp_path)
    RE(grid(beamline, 5))
    readback = np.stack([docs.column("stage_y"), docs.column("stage_x")], axis=1)
    aimed = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 5)] * 2, indexing="ij"), -1).reshape(-1, 2)
    np.testing.assert_allclose(readback, aimed, atol=1e-12)
    error_m = np.array(beamline.truth.positions_m) - readback * 1e-6
    assert np.std(error_m) == pytest.approx(50e-9, rel=0.35) and (error_m != 0).all()
    reported = " ".join(json.dumps(doc, default=lambda a: a.tolist()) for _, doc in docs)
    numbers = {float(v) for doc in docs.of("event") for k, v in doc["data"].items() if k != "diff_image"}
    hidden = {float(v) * unit for p in beamline.truth.positions_m for v in p for unit in (1, 1e6)}
    assert not numbers & hidden
    assert not any(word in reported for word in ("truth", "probe", "seed", "position_error"))
    assert {key for doc in docs.of("descriptor") for key in doc["data_keys"]} == {
        "diff_total",
        "diff_image",
        "i0",
        "stage_y",
        "stage_x",
    }


@pytest.mark.parametrize("monitor_first", [True, False])
def test_monitor_follows_the_beam(make_config, tmp_path, RE, docs, monitor_first):
    beamline = simulated_beamline(make_config(flux_fluctuation=0.1, sample="blank", photons=1e6), tmp_path)
    order = [beamline.monitor, beamline.detector] if monitor_first else [beamline.detector, beamline.monitor]
    RE(grid(beamline, 6, order))
    total, i0 = docs.column("diff_total"), docs.column("i0")
    assert np.std(total) / np.mean(total) == pytest.approx(0.1, rel=0.5)
    assert np.corrcoef(total, i0)[0, 1] > 0.999
    # What is left of the ratio is the noise of both: sqrt(1e-6 + 1e-6) relative.
    assert np.std(total / i0) / np.mean(total / i0) == pytest.approx(np.sqrt(2e-6), rel=0.5)
    assert beamline.monitor.get() == beamline.monitor.get() == i0[-1]


def test_closed_shutter_leaves_the_background(make_config, tmp_path, RE, docs):
    beamline = simulated_beamline(make_config(background=0.5), tmp_path)

    def plan():
        for state in ("closed", "open", "closed"):
            yield from bps.mv(beamline.shutter, state)
            yield from bp.count([beamline.detector, beamline.monitor, beamline.shutter], 2)

    RE(plan())
    dark = docs.column("shutter") == "closed"
    assert dark.tolist() == [True, True, False, False, True, True]
    totals = docs.column("diff_total")
    np.testing.assert_allclose(totals[dark], 0.5 * N * N, atol=5 * np.sqrt(0.5 * N * N))
    assert (totals[~dark] > 5e4).all()
    assert (docs.column("i0")[dark] == 0).all() and (docs.column("i0")[~dark] > 9e5).all()


def test_counts_scale_with_the_exposure(make_config, tmp_path, RE, docs):
    beamline = simulated_beamline(make_config(exposure_s=0.01, sample="blank", background=0.0), tmp_path)

    def plan():
        for exposure_s in (0.01, 0.02):
            yield from bps.mv(beamline.detector.exposure_s, exposure_s)
            yield from bp.count([beamline.detector, beamline.monitor])

    RE(plan())
    np.testing.assert_allclose(docs.column("diff_total"), [1e5, 2e5], rtol=5 / np.sqrt(1e5))
    np.testing.assert_allclose(docs.column("i0"), [1e6, 2e6], rtol=5 / np.sqrt(1e6))
    configured = [doc["configuration"]["diff"]["data"]["diff_exposure_s"] for doc in docs.of("descriptor")]
    assert configured == [0.01, 0.02]


def test_the_whole_window_and_its_margin_can_be_measured(make_config, tmp_path, RE, docs):
    beamline = simulated_beamline(make_config(position_error_m=20e-9), tmp_path)
    low, high = beamline.stage.y.limits
    assert low < -1.8 and high > 1.8
    RE(bp.grid_scan([beamline.detector], beamline.stage.y, low, high, 2, beamline.stage.x, low, high, 2))
    assert len(docs.of("event")) == 4
    with pytest.raises(OutOfRangeError, match="stage_x moves between"):
        beamline.stage.x.set(high * 1.001)


def test_truth_is_the_configured_sample_and_probe(make_config, tmp_path):
    truth = simulated_beamline(make_config(coherent_share=0.9, photons=2e4), tmp_path).truth
    assert truth.object.dtype == truth.probe.dtype == np.complex64
    assert truth.object.shape == truth.grid.shape
    power = (np.abs(truth.probe) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(power, [0.9 * 2e4, 0.1 * 2e4], rtol=1e-4)
    assert simulated_beamline(make_config(coherent_share=1.0), tmp_path).truth.probe.shape == (1, N, N)


def test_import_loads_no_torch():
    code = "import sys, bluesky_cdi.sim_devices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
