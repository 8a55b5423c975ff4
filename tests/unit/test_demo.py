"""What a demonstration runs on and what it tells, without running it."""

from types import SimpleNamespace

import numpy as np
import pytest

from bluesky_cdi.config import load_config
from bluesky_cdi.demo import Target, replayed, simulated
from bluesky_cdi.demo.report import Finished, report
from bluesky_cdi.errors import BlueskyCDIError, ScanFileError
from bluesky_cdi.io import Scan, write_scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate

SIDE, PIXEL_M = 80, 2e-8


@pytest.fixture
def truth():
    y, x = np.indices((SIDE, SIDE))
    return np.exp(0.3j * np.sin(y / 5) * np.cos(x / 7)).astype(np.complex64)


def finished(image):
    positions_m = np.array([[4e-7, 4e-7], [8e-7, 8e-7], [6e-7, 1e-6]])
    coverage = np.zeros((SIDE, SIDE))
    coverage[10:-10, 10:-10] = 1e4
    estimate = Estimate(
        n_frames=3, object=image, origin_m=(0.0, 0.0), pixel_m=PIXEL_M, probe=np.ones((1, 16, 16), np.complex64),
        std_amplitude=np.full(image.shape, 0.01), std_phase_rad=np.full(image.shape, 0.02), coverage=coverage,
        frame_seq_nums=np.arange(1, 4), positions_m=positions_m, embedding=np.zeros((3, 2)),
        frame_uncertainty=np.full(3, 0.02), residual=np.ones(3), novelty=np.ones(3),
    )  # fmt: skip
    decisions = {
        "agent_y": [[1e-6, 0]],
        "agent_x": [[1e-6, 0]],
        "agent_expected_gain": [[1.0, 0]],
        "agent_n_proposed": [1],
        "agent_n_pending": [0],
        "agent_n_ingested": [0],
        "agent_acquisition": ["gain"],
        "agent_reason": ["decision late"],
        "agent_decision_s": [0.25],
    }
    return Finished(estimate, {k: np.array(v) for k, v in decisions.items()}, "budget", "uid", 3.0, 2.0, 1)


def test_the_report_tells_the_comparison(truth, tmp_path):
    rng = np.random.default_rng(1)
    found = (2j * truth * np.exp(0.02j * rng.normal(size=truth.shape))).astype(np.complex64)
    setting = simulated(load_config())
    outcome = report(finished(found), setting, Target("truth", truth, (0.0, 0.0)), tmp_path)
    numbers = outcome.numbers
    # The mean of the absolute value of a normal error.
    assert numbers["phase_mae_rad"] == pytest.approx(0.02 * np.sqrt(2 / np.pi), rel=0.05)
    assert numbers["inside_90_percent_interval"] == pytest.approx(0.9, abs=0.03)
    assert numbers["late_decisions"] == 1 and numbers["stopped_by"] == "budget" and numbers["photons"] == 3600 * 1e4
    assert outcome.table["complex NRMSE to truth"] == f"{numbers['complex_nrmse']:.3f} (vacuum: 1.00)"
    assert outcome.figure.read_bytes().startswith(b"\x89PNG")


def test_without_a_target_nothing_is_compared(truth, tmp_path):
    outcome = report(finished(truth), simulated(load_config()), None, tmp_path)
    assert "complex_nrmse" not in outcome.numbers and not any("NRMSE" in key for key in outcome.table)


def test_a_result_no_better_than_vacuum_fails(truth, tmp_path):
    phase = np.random.default_rng(2).uniform(-np.pi, np.pi, truth.shape)
    with pytest.raises(BlueskyCDIError, match=r"no better than vacuum; see .*demo.png"):
        report(
            finished(np.exp(1j * phase).astype(np.complex64)),
            simulated(load_config()),
            Target("truth", truth, (0.0, 0.0)),
            tmp_path,
        )
    assert (tmp_path / "demo.png").is_file()


def test_the_simulations_truth_is_the_target(truth):
    setting = simulated(load_config())
    beamline = SimpleNamespace(truth=SimpleNamespace(object=truth, origin_m=(1e-6, 2e-6)))
    target = setting.make_target(beamline)
    assert target.name == "truth" and target.object is truth and target.origin_m == (1e-6, 2e-6)
    assert setting.make_target(SimpleNamespace(truth=None)) is None


def test_a_replay_takes_at_most_half_of_the_frames(tmp_path):
    geometry = Geometry(8000.0, 2.0, 172e-6, 32)
    grid = np.stack(np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij"), axis=-1).reshape(-1, 2)
    scan = Scan(np.full((20, 32, 32), 3, np.uint16), grid * 1e-7, geometry, name="made")
    path = tmp_path / "scan.npz"
    write_scan(path, scan)
    setting = replayed(load_config(), path)
    assert setting.full_scan_frames == 20 and setting.config.scan.budget == 10 and setting.config.scan.batch <= 10
    np.testing.assert_allclose(setting.config.scan.extent_um, (0.3, 0.4), rtol=1e-6)
    assert setting.make_target(None) is None and setting.title.endswith("(made)")
    # One of another form is no reason to fail, unless it was asked for.
    (tmp_path / "reference.npz").write_bytes(b"nothing")
    assert replayed(load_config(), path).make_target(None) is None
    with pytest.raises(ScanFileError):
        replayed(load_config(), path, tmp_path / "reference.npz")
