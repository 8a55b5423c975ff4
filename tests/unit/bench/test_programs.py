"""Scans as arrays that programs exchange, and what our own program makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_cdi.bench import with_ours
from bluesky_cdi.bench.engine_cases import EngineCase, cases_of, simulated_case, speed_case
from bluesky_cdi.bench.exchange import diffraction, place_on, read_arrays, recorded_arrays
from bluesky_cdi.bench.recorded import RecordedScan
from bluesky_cdi.bench.suites import engines as suite
from bluesky_cdi.bench.suites.engines import Options, engines, errors
from bluesky_cdi.cli.bench import engines as command
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid

CPU = torch.device("cpu")
COMMON = {"epochs": 3, "device": "cpu", "threads": 1, "seed": 0}


@pytest.fixture(scope="module")
def case():
    return simulated_case("leaves", frames=25)


def test_a_file_gives_the_arrays_back(tmp_path, case):
    np.savez(tmp_path / "problem.npz", **case.problem, propagation="far", epochs=3)
    back = read_arrays(tmp_path / "problem.npz")
    assert back["propagation"] == "far" and back["epochs"] == 3
    np.testing.assert_array_equal(back["counts"], case.problem["counts"])


def test_frames_lie_where_their_positions_are():
    grid = ObjectGrid((-3e-8, 2e-8), (60, 70), 1e-8, 16)
    positions_px = np.array([[10.25, 20.0], [19.6, 30.5]])
    problem = {**place_on(grid, positions_px), "counts": np.zeros((2, 16, 16))}
    data = diffraction(problem, "cpu")
    centre = data.corner.numpy() + 8 + data.shift_px.numpy()
    np.testing.assert_allclose(centre, positions_px - [-3, 2], atol=1e-6)
    assert data.object_shape == (1, 60, 70) and np.abs(data.shift_px.numpy()).max() <= 0.5
    other = diffraction(problem, "cpu", positions_px + 2)
    np.testing.assert_array_equal(other.corner.numpy(), data.corner.numpy() + 2)


def recorded(image, first, mask=None):
    """Two dark frames of 16x16 whose grid begins at pixel `first` of a reference."""
    geometry = Geometry(8000.0, 2.0, 172e-6, 16)
    pixel_m = geometry.pixel_m
    positions_m = np.array([[100.0, 50.0], [103.0, 54.0]]) * pixel_m
    counts = np.full((2, 16, 16), 5, np.uint16)
    scan = Scan(counts, positions_m, geometry, np.ones((1, 16, 16), np.complex64), mask)
    made = RecordedScan("made", scan, image, (0.0, 0.0), 2)
    origin = np.array(made.grid.origin_m) - np.array(first) * pixel_m
    return RecordedScan("made", scan, image, (float(origin[0]), float(origin[1])), 2)


def test_a_reference_goes_on_beyond_its_border():
    image = np.arange(30.0 * 25).reshape(30, 25) + 0j
    made = recorded(image, (4, 2))
    rows, columns = made.grid.shape
    cut = made.reference_on_grid
    assert cut.shape == (rows, columns) and rows > 26 and columns > 23
    np.testing.assert_array_equal(cut[:26, :23], image[4:, 2:])
    np.testing.assert_array_equal(cut[26:, :23], np.repeat(image[-1:, 2:], rows - 26, axis=0))


def test_a_recorded_scans_probe_has_the_photons_of_the_valid_pixels():
    mask = np.ones((16, 16), bool)
    mask[:4] = False
    made = recorded(np.ones((40, 40), complex), (0, 0), mask)
    for valid, photons in ((None, 5 * 256), (mask, 5 * 192)):
        probe = made.first_probe(valid)
        assert probe.shape == (2, 16, 16)
        assert float(probe.abs().square().sum()) == pytest.approx(photons, rel=1e-5)
    problem = recorded_arrays(made)
    np.testing.assert_array_equal(problem["mask"], mask)
    assert problem["propagation"] == "far" and "distance_m" not in problem


def test_our_program_is_the_engine(case):
    problem = {**case.problem, **COMMON, "algorithm": "rpie", "batch_size": 7}
    found = with_ours.run(problem)
    data, probe = diffraction(problem, "cpu"), torch.from_numpy(problem["probe"])[None]
    start = Solution.start(torch.ones(data.object_shape, dtype=torch.complex64), probe, data)
    expected = iterate(make_engine("rpie", 0, 7), start, Schedule(3)).solution
    np.testing.assert_allclose(found["object"], expected.object[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["positions_px"], problem["positions_px"], atol=1e-4)
    assert len(found["seconds_per_epoch"]) == len(found["loss"]) == 3 and found["peak_memory_bytes"] > 0


def test_the_network_is_better_than_vacuum_and_gains_from_epochs(case):
    alone, more = (
        with_ours.run({**case.problem, **COMMON, "algorithm": "pinn", "batch_size": 0, "epochs": epochs})
        for epochs in (0, 12)
    )
    found = [errors(case, result["object"], result["probe"])["complex_nrmse"] for result in (alone, more)]
    assert found[1] < found[0] < 0.9
    assert len(more["loss"]) == 12 and len(alone["loss"]) == 0


def test_the_truth_is_right_and_what_diverged_is_no_number(case):
    probe = case.problem["probe"]
    right = errors(case, 0.3j * case.reference, probe)
    assert right["complex_nrmse"] < 1e-4 and right["frc"] > 0.9999
    assert np.isnan(list(errors(case, np.full_like(case.reference, np.nan), probe).values())).all()


def test_rows_run_in_processes_and_are_plain_values(monkeypatch, case):
    monkeypatch.setattr(suite, "cases_of", lambda names, data: [EngineCase(*names, case.problem, case.reference)])
    said = []
    found = engines(["leaves"], None, Options(rows=("rPIE",), epochs=2, threads=1), said.append)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert said == ["leaves, rPIE"]
    row = found["cases"]["leaves"]["rPIE"]
    assert 0 < row["complex_nrmse"] < 1.1 and row["seconds_per_epoch"] > 0 and row["version"].startswith("bluesky_cdi ")
    assert "halves" not in row


def test_a_program_that_fails_says_why(monkeypatch, case, tmp_path):
    monkeypatch.setattr(suite, "cases_of", lambda names, data: [case])
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no pty-chi at $1 >&2\nexit 3\n")
    python.chmod(0o700)
    with pytest.raises(BlueskyCDIError, match=r"pty-chi rPIE failed .* no pty-chi at .*with_ptychi.py"):
        engines(["leaves"], None, Options(ptychi=str(python), rows=("pty-chi rPIE",)))
    assert Path(suite.WITH_PTYCHI).is_file()


def test_halves_that_agree_and_halves_that_do_not(monkeypatch, case):
    """Of two halves with one object the correlation is 1, and of two noises 0 to within the rings' scatter."""
    rng = np.random.default_rng(1)

    def noise():
        return rng.normal(size=case.reference.shape) + 1j * rng.normal(size=case.reference.shape)

    given = []

    def solved(bench, scan, row):
        given.append(len(scan["counts"]))
        return {"object": case.reference if alike else noise(), "probe": case.problem["probe"]}

    monkeypatch.setattr(suite._Bench, "_solved", solved)
    with suite._Bench(Options()) as bench:
        alike = True
        assert bench._halves(case, suite.ROWS[2]) == pytest.approx(1)
        alike = False
        assert abs(bench._halves(case, suite.ROWS[2])) < 0.2
    assert given == [13, 12, 13, 12]


def test_recorded_scans_are_left_out_without_a_folder():
    assert [each.name for each in cases_of(["p25", "star_recorded"], None)] == []


def test_many_frames_for_timing():
    made = speed_case(32, 9, CPU)
    assert made.problem["counts"].shape == (9, 32, 32)
    assert made.problem["counts"].sum(axis=(1, 2)).max() == pytest.approx(1e6, rel=0.2)


def test_the_command_line_knows_rows_and_cases():
    assert command.CASES == suite.CASES and tuple(row.label for row in suite.ROWS) == command.ROWS
