"""The suites on settings small enough for a test: what they measure, their tables, their commands."""

import contextlib
import itertools
import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.beamline import error_of, measured_frames
from bluesky_cdi.bench.cases import Case, scan_of, simulate
from bluesky_cdi.bench.explained import EXPLAINED, Explained
from bluesky_cdi.bench.faults import FAULTS, FaultyScan
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.reports import tables
from bluesky_cdi.bench.reports.figures import draw_phases, draw_single_shot
from bluesky_cdi.bench.suites import drift, faults, live, lsqml, memory, replay, single_shot, steps
from bluesky_cdi.bench.suites.fine_tuning import Options, fine_tuning
from bluesky_cdi.cli import main
from bluesky_cdi.cli.bench.images import TUNED
from bluesky_cdi.config import load_config
from bluesky_cdi.engines.ptychography import deviance_of
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights, save_weights
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.causes import CAUSES
from bluesky_cdi.sim_devices import SimulatedSource
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")


def is_plain(found):
    return json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_is_no_number_becomes_null():
    found = record([CPU], {"frames": 3}, rows={"a": [1.0, float("nan"), (2, float("inf"))]}, more=None)
    assert found["rows"] == {"a": [1.0, None, [2, None]]} and found["settings"] == {"frames": 3}
    assert found["machine"]["devices"] and is_plain(found)


def test_frames_state_their_flux_and_the_truth_has_no_error():
    config = load_config(overrides={"simulation": {"photons": 1e4}})
    source = SimulatedSource(config)
    positions_m = np.zeros((2, 2))
    frames = measured_frames(config, source, positions_m, np.array([1.0, 4.0]))
    assert [frame.seq_num for frame in frames] == [1, 2] and [frame.flux for frame in frames] == [1.0, 4.0]
    valid = ~(source.truth.dead | source.truth.hot)
    one, four = (frame.counts[valid].sum() - config.simulation.background * valid.sum() for frame in frames)
    assert four / one == pytest.approx(4, rel=0.1)
    image, none = source.truth.object, np.zeros(0)
    estimate = Estimate(
        n_frames=1, object=image[3:], origin_m=(source.truth.origin_m[0] + 3 * source.truth.pixel_m,
        source.truth.origin_m[1]), pixel_m=source.truth.pixel_m, probe=source.truth.probe,
        std_amplitude=np.ones(image[3:].shape), std_phase_rad=np.ones(image[3:].shape),
        coverage=np.ones(image[3:].shape), frame_seq_nums=none, positions_m=none, embedding=none,
        frame_uncertainty=none, residual=none, novelty=none,
    )  # fmt: skip
    assert error_of(estimate, source) < 1e-5


def test_live_by_dose(monkeypatch):
    monkeypatch.setattr(live, "DOSES", (1e4, 1e6))
    chosen = ("network alone", "5 rPIE from vacuum")
    monkeypatch.setattr(live, "METHODS", {name: live.METHODS[name] for name in chosen})
    said = []
    found = live.live(12, 1, said.append)
    assert is_plain(found) and len(said) == 4
    [run] = found["rows"]["network alone"]["1e+06"]
    assert 0 < run["complex_nrmse"] < 0.9 and run["seconds"] > 0
    text = tables.live(found)
    assert "12 frames of 64x64" in text and f"{run['complex_nrmse']:.3f}" in text


def test_steps_of_a_growing_scan_and_their_command(capsys, tmp_path):
    out = tmp_path / "new" / "steps.json"
    assert main(["bench", "steps", "--side", "4", "--window", "64", "--batch", "8", "--out", str(out)]) == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
    assert list(found["rows"]) == ["windows", "whole object"]
    for row in found["rows"].values():
        assert [frames for frames, _ in row["steps"]] == [8, 16]
        assert 0 < row["complex_nrmse"] <= 1.2
    assert "16 frames on" in text and "NRMSE at the end" in text


def test_both_ways_see_the_same_raster():
    options = steps.Options(side=4, step_px=10)
    config = steps._config(options, 64)
    frames = steps._raster_frames(config, SimulatedSource(config))
    y, x = np.array([frame.position_m for frame in frames]).T
    step_m = 10 * SimulatedSource(config).truth.pixel_m
    line = np.arange(4) - 1.5
    np.testing.assert_allclose(y.reshape(4, 4) / step_m, np.repeat(line[:, None], 4, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.sort(x.reshape(4, 4) / step_m, axis=1), np.repeat(line[None], 4, axis=0), atol=1e-6)


@pytest.fixture(scope="module")
def explained():
    """A simulated scan in which the reference is the truth."""
    batch = SceneStream(CPU, 32, (1e4, 1.001e4), pool=8, object_px=48).draw(
        SceneShape(16, 36, (40, 40), 1, 1.0), exact=True
    )
    with torch.no_grad():
        deviance = deviance_of(batch.truth, batch.probe, batch.data)
    return Explained(batch.data, batch.probe, batch.truth[0].numpy(), deviance)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=2)), path, {})
    return load_weights(path)


def test_fine_tuning_beside_an_engine(explained, trained, tmp_path):
    drawn = {}
    options = Options(seconds=0.5, epochs=30, cpu_time=True)
    found = fine_tuning({"made": explained}, trained, options, draw=lambda name, images: drawn.update({name: images}))
    assert is_plain(found)
    scan = found["scans"]["made"]
    assert scan["given_frames"] == 36 and scan["unseen_frames"] == 4
    rows = scan["rows"]
    assert list(rows) == [
        "reference (has seen all)",
        "network",
        "network, refined",
        "its probe alone",
        "its probe alone, refined",
        "fine-tuned",
        "fine-tuned, refined",
        "LSQ-ML, 30 epochs",
    ]
    # The truth explains frames to their noise, and the engine overfits those that it was given.
    engine, unseen = rows["LSQ-ML, 30 epochs"], rows["reference (has seen all)"]["unseen"]
    assert engine["given"] < engine["unseen"] and engine["unseen_ratio"] == pytest.approx(engine["unseen"] / unseen)
    assert rows["network, refined"]["given"] < rows["network"]["given"]
    assert rows["network"]["seconds"] > 0 and rows["fine-tuned"]["seconds"] > 0
    assert "36 frames given, 4 unseen" in tables.fine_tuning(found)
    draw_phases(drawn["made"], tmp_path / "phases.png")
    assert (tmp_path / "phases.png").read_bytes().startswith(b"\x89PNG")


def test_fine_tuning_needs_recorded_scans(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("BLUESKY_CDI_DATA", raising=False)
    assert main(["bench", "fine-tuning"]) == 1
    assert "name their folder with --data" in capsys.readouterr().err
    assert main(["bench", "fine-tuning", "--data", str(tmp_path / "none")]) == 1
    assert tuple(sorted(EXPLAINED)) == TUNED


def test_choices_inside_lsqml(monkeypatch):
    monkeypatch.setattr(lsqml, "DOSES", (1e3,))
    monkeypatch.setattr(lsqml, "KINDS", ("leaves",))
    monkeypatch.setattr(lsqml, "SIMULATED_EPOCHS", 4)
    found = lsqml.lsqml(None, CPU)
    assert is_plain(found) and found["phases"] == {}
    row = found["likelihood"]["leaves, 1e+03 photons"]
    assert set(row) == {"amplitude", "poisson"} and row["amplitude"] != row["poisson"]
    assert f"{row['poisson']:.4f}" in tables.lsqml(found)


def test_courses_of_lsqml_end_near_the_plain_one(monkeypatch):
    problem = simulate(Case(), 0, CPU)
    scan = Explained(problem.data, problem.probe, problem.truth, torch.zeros(len(problem.data)))
    monkeypatch.setattr(lsqml, "EXPLAINED", {"one": lambda folder, device: scan})
    monkeypatch.setattr(lsqml, "RECORDED_EPOCHS", 14)
    found = lsqml.courses(Path(), CPU)
    plain, own = found["one"][lsqml.PLAIN], found["one"][lsqml.OWN]
    assert is_plain(found)
    assert own["deviance"] <= (1 + lsqml.NEAR) * plain["deviance"]
    assert 1 < own["epochs"] <= 14 and 1 < plain["epochs"] <= 14 and own["seconds"] > 0
    shown = tables.lsqml({"likelihood": {"x": {"poisson": 1.0}}, "phases": {}, "courses": found})
    assert f"{own['deviance']:.3f}" in shown


def test_single_frames(monkeypatch, tmp_path):
    monkeypatch.setattr(single_shot, "DOSES", (1e8,))
    kinds = ("positive, constrained", "strong phase, curved beam")
    monkeypatch.setattr(single_shot, "CASES", {name: single_shot.CASES[name] for name in kinds})
    options = single_shot.Options(size=48, starts=2, seeds=1)
    found = single_shot.single_shot(options)
    assert is_plain(found) and [row["object"] for row in found["rows"]] == list(kinds)
    for row in found["rows"]:
        [run] = row["runs"]
        # With 1e8 photons the truth is nearly fixed, and what is chosen is no worse than the worst start.
        assert run["floor"] < 0.02 and run["best"] <= run["chosen"] <= max(run["errors"])
        assert run["frame_ok"] == float(run["chosen"] < single_shot.SUCCESS_NRMSE)
    assert "2 starts, 1 objects a row, 48 px" in tables.single_shot(found)
    draw_single_shot(options, 1e8, tmp_path / "shots.png")
    assert (tmp_path / "shots.png").read_bytes().startswith(b"\x89PNG")


def test_frames_for_other_programs(tmp_path, capsys):
    path = tmp_path / "new" / "frames.npz"
    assert main(["bench", "single-shot", "--size", "48", "--write", str(path), "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)["samples"]
    assert kinds == ["binary", "positive", "weak phase", "strong phase"]
    with np.load(path) as file:
        assert file["frames"].shape == (4, 48, 48) and json.loads(str(file["geometry"]))["energy_ev"] == 8000.0
        made = single_shot.measure(single_shot.CASES["positive"], 1e7, 48, 0)
        np.testing.assert_array_equal(file["frames"][1], made.counts.numpy())
        np.testing.assert_allclose(file["truth"][1], made.truth, atol=1e-6)


def test_a_frame_has_its_photons():
    for case in single_shot.CASES.values():
        made = single_shot.measure(case, 1e6, 48, 1)
        # The curved beam's sample absorbs some.
        assert float(made.counts.sum()) == pytest.approx(1e6, rel=0.3 if case.curved else 0.01)
        assert made.error(made.truth * (1.0 if case.curved else 2j)) < 1e-6


def test_a_replayed_scan_shows_images_as_frames_come(monkeypatch, tmp_path, capsys):
    scan = scan_of(Case(field=0.4), 1)
    config = load_config(
        overrides={"reconstructor": {"name": "rpie", "background": 0.0, "final_steps": 2}, "probe": {"trust": True}}
    )
    # A millisecond passes with each look at the clock.
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 1e-3).__next__)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "time", clock)
        shown = replay.replayed(scan, config, 1e3, 12)
    assert shown[0].estimate.n_frames == shown[0].arrived == 2
    assert all(a.seconds < b.seconds and a.arrived <= b.arrived for a, b in pairwise(shown))
    assert shown[-1].estimate.n_frames == 12 and np.mean(shown[-1].estimate.residual) < np.mean(
        shown[0].estimate.residual
    )

    def image(seconds, frames, nrmse):
        inside = {f"inside_{level}_percent_interval": level / 100 + 0.01 for level in (50, 90, 95)}
        numbers = {"complex_nrmse": nrmse, "deviance": 2.0, **inside}
        return {"seconds": seconds, "arrived": frames, "frames": frames, **numbers}

    images = [image(0.5, 1, 0.9), image(1.0, 2, 0.5), image(1.5, 2, 0.3), image(9.0, 2, 0.2)]
    row = {"images": images, "first_good_s": 9.0, "check_in": {"says": "The assumed probe stays."}}
    found = record([CPU], {"rate": 10.0, "weights": "x", "good_nrmse": 0.25}, rows={"with check-in": row})
    text = tables.replay(found)
    assert "51/91/96" in text
    assert "0.500" in text and "0.300" not in text and "after 9.0 s" in text and "The assumed probe stays." in text
    monkeypatch.delenv("BLUESKY_CDI_DATA", raising=False)
    assert main(["bench", "live", "--suite", "star"]) == 1
    assert "name their folder with --data" in capsys.readouterr().err


def test_alarms_are_false_late_or_in_time(monkeypatch, capsys, tmp_path):
    """A run that rings in its second half where that was measured elsewhere, and seed 1 all along."""
    given = {}

    def alarms(case, probe, frames, engine):
        first = given.setdefault(probe.tobytes(), frames)
        half = len(frames) // 2
        assert all(a.counts is b.counts for a, b in zip(first[:half], frames[:half], strict=True))
        is_moved = frames[half].counts is not first[half].counts
        return [half + 24, half + 40] if is_moved else [100] if len(given) == 2 else []

    monkeypatch.setattr(drift, "_alarms", alarms)
    monkeypatch.setattr(drift, "Case", lambda **settings: Case(**{**settings, "field": 0.3}))
    line = ["bench", "drift", "--engines", "rpie", "--doses", "1e4", "--errors", "0.8", "--seeds", "2"]
    assert main([*line, "--out", str(tmp_path / "new" / "drift.json")]) == 0
    found = json.loads((tmp_path / "new" / "drift.json").read_text())
    assert found["rows"] == [
        {"name": "rpie, 1e4 photons, 0.8 rad", "frames": 9, "scans": 2, "false": 1, "late": [24, 24]}
    ]
    assert "rpie, 1e4 photons, 0.8 rad  9       2      1" in capsys.readouterr().out


def test_a_focus_that_moves_changes_the_counts_and_not_their_sum():
    case = Case(dose=1e4, field=0.3)
    problem = simulate(case, 0, CPU)
    counts = problem.data.counts
    further, again = (drift._further(case, problem, 0, by_m) for by_m in (0.1e-3, 1e-12))
    assert abs(float(counts.mean() / further.mean()) - 1) < 0.01 < (counts != further).float().mean()
    assert (counts != again).float().mean() < 1e-3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_later_frames_only(fault):
    case = Case(dose=1e4, field=0.4)
    problem = simulate(case, 0, CPU)
    scan = FaultyScan(case, problem, 0, 10)
    made, well = FAULTS[fault][0](scan), scan.well
    assert torch.equal(made.counts[:10], well.counts[:10])
    assert np.array_equal(made.positions_m[:10], well.positions_m[:10])
    moved = np.abs(made.positions_m - well.positions_m)[10:] / problem.pixel_m
    if fault.startswith("places"):
        assert torch.equal(made.counts, well.counts) and 0.5 < moved.mean() < 9
    else:
        assert not moved.any() and not torch.equal(made.counts[10:], well.counts[10:])
    assert set(FAULTS[fault][1]) <= set(CAUSES)


def test_faults_are_named_and_clean_scans_name_none(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(faults, "Case", lambda **settings: Case(**{**settings, "frame_px": 32}))
    line = ["bench", "faults", "--engines", "rpie", "--doses", "1e5", "--samples", "star", "--seeds", "1"]
    line += ["--faults", "beam lost", "dead row", "--out", str(tmp_path / "new" / "faults.json")]
    assert main(line) == 0
    found = json.loads((tmp_path / "new" / "faults.json").read_text())
    assert found["clean"] == [{"name": "rpie, 1e5 photons", "checks": 10, "alarms": 0, "told": {}}]
    assert [(row["fault"], row["scans"], row["detected"], row["named"]) for row in found["rows"]] == [
        ("beam lost", 1, 1, 1), ("dead row", 1, 1, 1)
    ]  # fmt: skip
    assert "dead row                 1 / 1 / 1          detector 1" in capsys.readouterr().out
    assert main([*line[:2], "--faults", "rain"]) == 1
    assert "a fault is one of focus moved, places jitter" in capsys.readouterr().err


class Held(contextlib.nullcontext):
    """In place of a session: counts its runs."""

    def __init__(self, config, directory):
        super().__init__(self)
        self.live, self.frames_directory, self.did = None, directory / "frames", []
        self.RE = lambda plan: self.did.append(len([msg for msg in plan if msg.command == "create"]))

    def wait(self, timeout_s):
        self.did.append("waited")


def test_memory_is_measured_after_each_run_on_the_same_devices(monkeypatch, capsys):
    sessions, beamlines = [], []
    monkeypatch.setattr(memory, "Session", lambda *args: sessions.append(Held(*args)) or sessions[-1])
    monkeypatch.setattr(memory, "other_pids", lambda session: (os.getpid(), -1))
    make = memory.simulated_beamline
    monkeypatch.setattr(memory, "simulated_beamline", lambda *args: beamlines.append(make(*args)) or beamlines[-1])
    assert main(["bench", "memory", "--runs", "3", "--events", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sessions[0].did == [9, "waited"] * 3 and len(beamlines) == 1
    assert found["settings"] == {"runs": 3, "events": 9, "step_px": 12, "tidy": False}
    assert [each["run"] for each in found["own"]] == [2, 3] and found["own"][0]["objects"] > 1000
    assert [len(each) for each in found["resident_mib"]] == [3, 3, 3]
    assert found["resident_mib"][0][2] is None


def test_the_table_of_memory():
    own = [{"run": 2, "objects": 5, "blocks": 9, "resident_mib": None}]
    held = [[100.4 + run, 200.0, None] for run in range(30)]
    said = tables.memory({"settings": {"runs": 30, "events": 9}, "resident_mib": held, "own": own}).splitlines()
    assert said[0] == "30 runs of 9 events each" and said[2].split() == ["1", "100", "200", "-"]
    assert said[-2].split()[:2] == ["30", "129"] and len(said) == 13
    assert said[-1] == "own, after run 2: 5 objects and 9 blocks in use, - MiB when free memory is given back"


def test_latents_are_judged_by_scenes_that_move_and_by_those_that_are_unusual(monkeypatch, capsys):
    """Frames of `star` lie far from all known ones; each moves by sqrt(4) * 0.05, two differ by sqrt(8)."""
    from bluesky_cdi.bench.suites import latents as suite
    from bluesky_cdi.latents.fitting import SceneEmbeddings, fit_projection

    def scenes(seed, shift=0.0):
        rng = np.random.default_rng(seed)
        embedding = rng.normal(size=(2000, 4)) + shift
        moves = 0.05 * rng.normal(size=embedding.shape)
        return SceneEmbeddings(embedding, embedding + moves, np.repeat(np.arange(20), 100))

    projection = fit_projection(scenes(1), scenes(2), "of the weights")
    monkeypatch.setattr(suite, "find_projection", lambda source: projection)
    monkeypatch.setattr(suite, "draw_scenes", lambda *_: "null")
    monkeypatch.setattr(suite, "embed_scenes", lambda _, which, __: scenes(3, 0.0 if which == "null" else 9.0))
    assert main(["bench", "latents", "--samples", "star", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    null, star = found["rows"]
    assert null["embedding"] == pytest.approx(0.1 / np.sqrt(8), rel=0.05)
    assert null["unusual"] == pytest.approx(0.01, abs=0.01)
    assert (star["unusual"], star["scans_unusual"]) == (1.0, 1.0)
    assert tables.latents(found).splitlines()[-1].split()[-2:] == ["1.000", "1.000"]
    monkeypatch.setattr(suite, "find_projection", lambda source: None)
    assert main(["bench", "latents", "--device", "cpu"]) == 1
    assert "canvas-small has no projection: make it with" in capsys.readouterr().err
