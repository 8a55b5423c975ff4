"""What `bench trust` counts, of errors that are known."""

from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.reports import trust as report
from bluesky_cdi.bench.suites import trust
from bluesky_cdi.bench.suites.trust_target import Options, stopped_at_target
from bluesky_cdi.cli.bench.trust import SCENES
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.protocols import Estimate

STD = 0.03


@pytest.fixture(scope="module")
def problem():
    return simulate(Case(field=0.4, sample="natural"), 3, trust.Options().device)


def estimate_with(problem, error, std, source):
    """The truth with an error of the phase, under which a deviation is predicted; both (Y, X)."""
    coverage = summed_illumination(problem.probe, problem.data)[0].numpy()
    grid, frames = trust.frames_of(problem)
    places = np.array([frame.position_m for frame in frames])
    squares = np.square(std)
    flat = np.full(len(frames), float(np.sqrt(squares.mean())), np.float32)
    return Estimate(
        n_frames=len(frames), object=(problem.truth * np.exp(1j * error)).astype(np.complex64),
        origin_m=grid.origin_m, pixel_m=grid.pixel_m, probe=problem.probe[0].numpy(),
        std_amplitude=std.astype(np.float32), std_phase_rad=std.astype(np.float32), coverage=coverage,
        frame_seq_nums=np.arange(len(frames)), positions_m=places, embedding=np.zeros((len(frames), 1)),
        frame_uncertainty=flat, residual=np.ones(len(frames)), novelty=np.zeros(len(frames)), source=source,
    )  # fmt: skip


def test_exact_deviations_have_nominal_shares_and_ranks(problem):
    rng = np.random.default_rng(4)
    std = STD * np.exp(0.6 * rng.standard_normal(problem.truth.shape))
    source = {"uncertainty": {"estimator": "critic"}}
    judged = trust.judge(estimate_with(problem, std * rng.standard_normal(std.shape), std, source), problem.truth)
    found = [judged.numbers[f"phase_inside_{level}"] for level in (50, 90, 95)]
    assert found == pytest.approx([0.5, 0.9, 0.95], abs=0.02)
    assert judged.numbers["phase_ratio"] == pytest.approx(1, rel=0.05)
    assert judged.numbers["phase_rank"] == pytest.approx(judged.numbers["phase_rank_if_exact"], abs=0.06)
    assert judged.numbers["phase_rank"] > 0.3 and judged.numbers["amplitude_inside_50"] > 0.99
    # Intervals that the estimate says are twice as wide.
    wide = {"uncertainty": {"intervals": {"phase": {"50": 2 * 0.6745, "90": 3.29}}}}
    wider = trust.judge(estimate_with(problem, std * rng.standard_normal(std.shape), std, wide), problem.truth)
    assert wider.numbers["phase_inside_50"] == pytest.approx(0.823, abs=0.02)


def test_the_error_of_a_frame_is_its_root_mean_square(problem):
    """An error in one half of the field, where only the frames of that half see it."""
    error = np.zeros(problem.truth.shape)
    error[: len(error) // 2] = 0.2
    estimate = estimate_with(problem, 0 * error, error + 0.1, {})
    found = trust.frame_rms(error, estimate)
    high = estimate.positions_m[:, 0].argmin(), estimate.positions_m[:, 0].argmax()
    assert found[high[0]] > 0.15 and found[high[1]] < 0.1 and found.max() <= 0.2 + 1e-6


def test_cells_average_what_belongs_together():
    row = {"weights": "w", "estimator": "critic", "iterations": 0, "checked": False, "dose": 1e4, "overlap": 0.5}
    rows = [
        {**row, "fault": "", "phase_inside_50": 0.4, "phase_ratio": 0.5},
        {**row, "fault": "", "phase_inside_50": 0.6, "phase_ratio": 2.0},
        {**row, "fault": "", "iterations": 30, "checked": True, "phase_inside_50": 0.1, "phase_ratio": 3.0},
    ]
    found = trust.cells(rows)
    [(once, both), (checked, _)] = found.items()
    assert once[2] == "one pass" and checked[2] == "30 iterations, checked" and both["scans"] == 2
    assert (both["phase_inside_50"], both["phase_ratio"]) == pytest.approx((0.5, 1.0))


def test_scans_are_run_judged_and_set_out(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "REFINED", (5,))
    monkeypatch.setattr(trust, "FIELD", 0.3)
    diagram, said = report.Reliability(), []
    options = trust.Options(("none",), (), ("zone plate, star",), (1e5,), (0.67,), 1)
    found = trust.trust(replace(options, faults=False), said.append, diagram)
    assert [(row["iterations"], row["checked"]) for row in found["rows"]] == [(5, False), (5, True)]
    assert all(0 <= row["phase_inside_90"] <= 1 and row["phase_rms"] > 0 for row in found["rows"])
    text = report.tables(found)
    assert "| none, photon noise, 5 iterations, checked | 1e5 | 0.67 | 1 |" in text and len(said) == 1
    diagram.draw(tmp_path / "trust.png")
    assert (tmp_path / "trust.png").read_bytes().startswith(b"\x89PNG")


def test_a_scan_stops_where_the_predicted_error_is_small_enough(monkeypatch):
    found = stopped_at_target(Options(target_rad=1e3, scans=1, batch=8))
    [row] = found["rows"]
    # Any error is small enough.
    assert row["reached"] and row["frames"] == 8 and 0 < row["actual_rad"] < 2
    text = report.stopped({"rows": [{**row, "actual_rad": 1100.0}], "settings": {"target_rad": 1e3}})
    assert "1.10 of the target" in text and "1 of 1 within 20 %" in text


def test_positions_are_wrong_by_what_is_asked_and_nothing_else():
    right, wrong = (simulate(Case(field=0.4, position_error_px=off), 3, trust.Options().device) for off in (0.0, 1.0))
    off = (wrong.data.corner + wrong.data.shift_px) - (right.data.corner + right.data.shift_px)
    assert float(off.std()) == pytest.approx(1, abs=0.3) and (wrong.data.counts == right.data.counts).all()
    assert (wrong.truth == right.truth).all()


def test_what_can_be_asked_for():
    assert tuple(trust.SCENES) == SCENES
    with pytest.raises(ConfigError, match="no other probe can be assumed of a pair of mirrors"):
        Case(optics="mirrors", probe_error_rad=0.4)
    with pytest.raises(ConfigError, match="position_error_px must be 0 or more"):
        Case(position_error_px=-1.0)
