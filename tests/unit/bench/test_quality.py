"""Scans of the quality benchmark, what its methods come to, and its report, on the CPU."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi import viz
from bluesky_cdi.bench import methods, recorded
from bluesky_cdi.bench.cases import Case, Wrong, grid_positions, simulate, true_probe
from bluesky_cdi.bench.checked import CHECKED, checked, overlap
from bluesky_cdi.bench.courses import Mark, first_near
from bluesky_cdi.bench.methods import Network
from bluesky_cdi.bench.problem import judge
from bluesky_cdi.bench.reports.quality import Figures, tables
from bluesky_cdi.bench.suites import quality
from bluesky_cdi.bench.suites import recorded as recorded_suite
from bluesky_cdi.bench.suites.acceptance import acceptance
from bluesky_cdi.cli import main
from bluesky_cdi.cli.bench import SUITES
from bluesky_cdi.engines.ptychography import Schedule, deviance_of
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.io import Scan, read_scan
from bluesky_cdi.models.ptychonn import PtychoNN, PtychoNNConfig
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights, save_weights
from bluesky_cdi.physics import forward
from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.probes import width_px

CPU = torch.device("cpu")
SMALL = Case(field=0.4, frame_px=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained tiny network in a file."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=2)), path, {})
    return path


@pytest.fixture(autouse=True)
def timed_once(monkeypatch):
    """No time is judged here, and what runs again gives the same."""
    monkeypatch.setattr(methods, "REPEATS", 1)


@pytest.fixture
def quick(monkeypatch):
    """Fewer cases and epochs."""
    monkeypatch.setattr(methods, "MOST_EPOCHS", 6)
    monkeypatch.setattr(quality, "DOSES", (1e4, 1e5))
    monkeypatch.setattr(quality, "COUNT_SCALES", (1.0, 40.0))
    monkeypatch.setattr(quality, "DOSE_FACTORS", ())


@pytest.mark.parametrize("size", [64, 128])
def test_the_scan_has_its_photons_and_its_probe(size):
    case = Case(dose=3e4, sample="phase", field=0.3, frame_px=size)
    problem = simulate(case, 1, CPU)
    # 'phase' absorbs nothing; what of the probe's light the window cuts off is not in the probe either.
    totals = problem.data.counts.sum(dim=(1, 2)).numpy()
    spread = np.sqrt(case.dose / len(totals))
    assert abs(totals.mean() - case.dose) < 5 * spread
    # Poisson: the variance is the mean. A variance of n samples is known to sqrt(2 / n) of itself.
    assert totals.var(ddof=1) / case.dose == pytest.approx(1, abs=5 * np.sqrt(2 / len(totals)))
    assert float(problem.probe.abs().square().sum()) == pytest.approx(case.dose, rel=1e-5)
    assert width_px(problem.probe[0]) / size == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.67, 0.8])
def test_the_scan_has_its_overlap(overlap):
    problem = simulate(replace(SMALL, overlap=overlap, field=1.0), 2, CPU)
    centre = (problem.data.corner + problem.data.shift_px.double()).numpy()
    number = round(len(centre) ** 0.5)
    assert number**2 == len(centre)
    rows = centre.reshape(number, number, 2)
    step = (rows[-1, :, 0].mean() - rows[0, :, 0].mean()) / (number - 1)
    width = width_px(problem.probe[0])
    # Each end is off by up to 0.2 steps, averaged over the frames of its row.
    assert 1 - step / width == pytest.approx(overlap, abs=0.5 * (1 - overlap) / (number - 1))


def test_positions_are_off_a_grid_in_the_middle():
    found = grid_positions(1.0, 0.3, np.random.default_rng(1)).reshape(4, 4, 2)
    grid = 0.05 + 0.3 * np.arange(4)
    assert np.abs(found[..., 0] - grid[:, None]).max() <= 0.06
    assert np.abs(found[..., 1] - grid).max() <= 0.06
    assert found.std(axis=1)[..., 0].min() > 0


def test_the_same_seed_is_the_same_scan():
    one, same, other = (simulate(SMALL, seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(one.data.counts, same.data.counts) and np.array_equal(one.truth, same.truth)
    assert one.data.counts.shape != other.data.counts.shape or not torch.equal(one.data.counts, other.data.counts)


@pytest.mark.parametrize("suffix", ["npz", "cxi"])
def test_a_scan_in_a_file_is_the_one_that_is_judged(tmp_path, capsys, suffix):
    path = tmp_path / "new" / f"scan.{suffix}"
    assert main(["bench", "scan", str(path), "--dose", "1e4", "--seed", "2", "--json"]) == 0
    said, scan = json.loads(capsys.readouterr().out), read_scan(path)
    case = Case(dose=1e4)
    problem = simulate(case, 2, CPU)
    assert said["frames"] == len(scan) == len(problem.data) and scan.source["propagation"] == "far field"
    np.testing.assert_array_equal(scan.counts[:], to_centre(problem.data.counts))
    reported = problem.probe[0].numpy()
    # A guess that is read has the photons of the frames, not those of the beam through vacuum.
    np.testing.assert_allclose(scan.probe / np.linalg.norm(scan.probe), reported / np.linalg.norm(reported), atol=1e-6)
    grid = ObjectGrid(problem.origin_m, problem.data.object_shape[1:], problem.pixel_m, 64)
    corner, shift = grid.place(scan.positions_m)
    place_px = torch.from_numpy(corner + shift)
    torch.testing.assert_close(place_px, problem.data.corner + problem.data.shift_px.double(), atol=1e-5, rtol=0)


def test_the_assumed_probe_is_wrong_by_what_is_stated():
    exact, wrong = (simulate(replace(SMALL, probe_error_rad=e), 1, CPU) for e in (0.0, 0.4))
    assert torch.equal(exact.data.counts, wrong.data.counts)
    true, reported = (to_centre(torch.fft.fft2(p.probe[0, 0])) for p in (exact, wrong))
    # The pupil is a ring of radius lambda / (2 * 80 nm), in detector pixels, without its hollow middle.
    bright = true.abs() > 0.5 * true.abs().max()
    phase = torch.angle((reported * true.conj())[bright])
    # Orthonormal on the full disc; on the ring it is a little less or more.
    assert float((phase - phase.mean()).square().mean().sqrt()) == pytest.approx(0.4, rel=0.35)
    assert float(reported.abs().square().sum()) == pytest.approx(float(true.abs().square().sum()), rel=1e-4)


def test_the_truth_has_no_error_and_vacuum_has_all():
    problem = simulate(Case(sample="natural"), 1, CPU)
    perfect = judge(torch.from_numpy(problem.truth)[None] * (0.5 - 0.3j), problem).numbers
    assert perfect["complex_nrmse"] < 1e-6 and perfect["phase_mae_rad"] < 1e-6
    assert perfect["ssim_phase"] == pytest.approx(1, abs=1e-6)
    # A ramp that is the truth's own is taken for the gauge's, so a little less than 1.
    assert 0.85 < judge(problem.vacuum, problem).numbers["complex_nrmse"] <= 1 + 1e-6


def test_counts_in_other_units_change_nothing_for_an_engine(monkeypatch):
    """But for the thousandth of a photon that keeps its divisions finite, which is taken out here."""
    monkeypatch.setattr(forward, "STEP_FLOOR", 0.0)
    plain, scaled = (simulate(replace(SMALL, count_scale=scale), 1, CPU) for scale in (1.0, 40.0))
    assert torch.equal(40 * plain.data.counts, scaled.data.counts)
    assert scaled.probe.abs().square().sum() / plain.probe.abs().square().sum() == pytest.approx(40, rel=1e-5)
    with torch.no_grad():
        for name in ("rpie", "lsqml"):
            found = (methods.engine(name, problem, Schedule(12), 0).object for problem in (plain, scaled))
            one, same = (judge(obj, plain).numbers["complex_nrmse"] for obj in found)
            assert same == pytest.approx(one, rel=1e-4)


def test_every_method_is_run_and_engines_gain_on_vacuum(weights, monkeypatch):
    monkeypatch.setattr(methods, "MOST_EPOCHS", 12)
    problem = simulate(SMALL, 1, CPU)
    net = load_weights(weights).net
    other = PtychoNN(PtychoNNConfig(channels=4)).eval()
    found = methods.solve(problem, [Network("tiny", net), Network("other", other)], 0)
    assert list(found) == [
        "tiny",
        "tiny, refined",
        "other",
        "5 rPIE",
        "10 rPIE",
        "50 rPIE",
        "LSQ-ML, as long",
        "LSQ-ML, converged",
    ]
    errors = {name: judge(each.object, problem).numbers["complex_nrmse"] for name, each in found.items()}
    assert errors["50 rPIE"] < errors["5 rPIE"] < 0.8 * judge(problem.vacuum, problem).numbers["complex_nrmse"]
    assert found["50 rPIE"].epochs == 50 and found["tiny, refined"].epochs == 5
    # The last epoch begins within the time.
    assert found["LSQ-ML, as long"].epochs in range(1, 13)
    assert all(each.seconds > 0 for each in found.values())
    # Nothing but the object is changed where the probe is known.
    assert all(each.probe is problem.probe for each in found.values())


def test_engines_refine_a_probe_that_may_be_wrong(monkeypatch):
    monkeypatch.setattr(methods, "MOST_EPOCHS", 12)
    problem = simulate(replace(SMALL, probe_error_rad=0.8, refine_probe=True), 1, CPU)
    found = methods.solve(problem, [], 0)
    assert list(found) == ["5 rPIE", "10 rPIE", "50 rPIE", "LSQ-ML, converged"]
    assert all(not torch.equal(each.probe, problem.probe) for each in found.values())


def test_a_network_for_several_passes_has_rows_for_one_and_from_an_engine(monkeypatch):
    monkeypatch.setattr(methods, "MOST_EPOCHS", 3)
    monkeypatch.setattr(methods, "RPIE_ITERATIONS", (2, 3))
    monkeypatch.setattr(methods, "WARM_FROM", (3,))
    torch.manual_seed(3)
    net = UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=2, passes=2)).eval()
    found = methods.solve(simulate(SMALL, 1, CPU), [Network("warm", net)], 0)
    assert list(found)[:3] == ["warm, one pass", "warm", "warm, refined"]
    both = found["3 rPIE, warm, refined"]
    assert both.epochs == 5
    assert both.seconds > found["3 rPIE"].seconds and found["warm, refined"].seconds > found["warm"].seconds
    assert not torch.equal(both.object, found["warm, refined"].object)


def test_what_is_assumed_wrongly():
    def assumed(**wrong):
        return simulate(replace(SMALL, modes=3, wrong=Wrong(**wrong)), 1, CPU)

    def pupil(problem):
        wave = to_centre(torch.fft.fft2(problem.probe[0, 0])).abs()
        return wave / wave.max()

    right = assumed()
    assert overlap(right.probe[0], true_probe(replace(SMALL, modes=3))) == pytest.approx(1, abs=1e-5)
    powers = right.probe[0].abs().square().sum(dim=(1, 2)) / SMALL.dose
    torch.testing.assert_close(powers, torch.tensor([0.85, 0.1, 0.05]))
    equal = assumed(powers="equal").probe[0].abs().square().sum(dim=(1, 2)) / SMALL.dose
    torch.testing.assert_close(equal, torch.full((3,), 1 / 3))
    assert assumed(powers="one").probe.shape[1] == 1
    # The ring's area grows with the square of its radius, and without a stop the middle is as bright as the rest.
    bright = [int((pupil(each) > 0.3).sum()) for each in (right, assumed(aperture=1.3))]
    assert bright[1] / bright[0] == pytest.approx(1.3**2, rel=0.15)
    assert pupil(right)[32, 32] < 0.2 < 0.5 < pupil(assumed(no_stop=True))[32, 32]
    moved = assumed(centre_px=(3, -2)).data.counts
    assert torch.equal(to_centre(moved), torch.roll(to_centre(right.data.counts), (3, -2), dims=(-2, -1)))
    places = [each.data.corner + each.data.shift_px.double() for each in (right, assumed(pixel=0.05))]
    about = [each - each.mean(dim=0) for each in places]
    torch.testing.assert_close(1.05 * about[1], about[0], atol=1e-5, rtol=0)


def test_a_thick_sample_is_the_thin_one_several_times():
    thin, thick = (simulate(replace(SMALL, sample="cells", thickness=n), 1, CPU).truth for n in (1.0, 3.0))
    np.testing.assert_allclose(thick, thin**3, atol=1e-5)
    case = quality.suites_of(Case())["thick"]["cells 1e5"]
    phase = -np.log(np.abs(simulate(case, 0, CPU).truth)) * 0.9 / 0.08
    assert np.ptp(phase) > 2 * np.pi


def test_a_check_in_moves_the_frames_back():
    case = replace(SMALL, field=0.6, wrong=Wrong(centre_px=(3, -2)), refine_probe=True)
    right, wrong = simulate(replace(case, wrong=Wrong()), 1, CPU), simulate(case, 1, CPU)
    held = replace(wrong, data=wrong.data[4:], held_out=wrong.data[:4])
    after = checked(held)
    assert after.check.trial.centre_px == (3, -2)
    assert "centre" in after.says and after.watch.seconds > 0
    for part, first, last in ((after.problem.data, 4, None), (after.problem.held_out, 0, 4)):
        assert torch.equal(part.counts * part.mask, right.data.counts[first:last] * part.mask)
        assert 0 < int((~part.mask).sum()) < 0.25 * part.mask.numel()
    photons = [float(each.probe.abs().square().sum()) for each in (held, after.problem)]
    assert photons[1] == pytest.approx(photons[0], rel=1e-4)


def test_the_first_mark_near_a_deviance():
    marks = [
        Mark(methods.Found(torch.ones(1), torch.ones(1), k, k), unseen) for k, unseen in enumerate((3, 1.021, 1.019))
    ]
    assert first_near(marks, 1.0) is marks[2] and first_near(marks, 0.9) is None


def test_recorded_scans_have_the_time_to_the_image_of_lsqml(weights, monkeypatch):
    monkeypatch.setattr(recorded_suite, "MOST_EPOCHS", 8)
    monkeypatch.setattr(recorded_suite, "MOST_REFINED", 6)
    monkeypatch.setattr(recorded_suite, "RPIE_ITERATIONS", (2, 30))
    made = simulate(replace(SMALL, field=0.6, probe_error_rad=0.8, refine_probe=True), 1, CPU)
    problem = replace(made, data=made.data[4:], held_out=made.data[:4])
    said, epochs = [], []
    real = recorded_suite.iterate

    def iterate(engine, start, schedule, course=None):
        epochs.append(None if course else schedule.epochs)
        return real(engine, start, schedule, course)

    monkeypatch.setattr(recorded_suite, "iterate", iterate)
    found, says = recorded_suite.solve_recorded(problem, [Network("tiny", load_weights(weights).net)], 0, said.append)
    names = ["LSQ-ML, converged", "2 rPIE", "30 rPIE", "tiny", "tiny, refined"]
    assert list(found) == [*names, "tiny, finding the probe", *(CHECKED + name for name in names)] and says.startswith(
        "Changed: "
    )
    assert len(said) == 1 + 2 * 3
    better = min((found[way + "LSQ-ML, converged"] for way in ("", CHECKED)), key=lambda each: each.unseen)
    for each in found.values():
        near = each.unseen <= 1.02 * better.unseen
        # A result that is near was so by its own time; who never was has no time.
        assert not near or each.image.seconds <= each.found.seconds
        torch.testing.assert_close(
            each.unseen, float(deviance_of(each.found.object, each.found.probe, problem.held_out).mean())
        )
    assert better.image is not None and found["2 rPIE"].image is None
    # Every engine has made an epoch before the clock runs.
    assert epochs == [1, None] * (len(epochs) // 2)
    # Few iterations end as they would alone.
    alone = methods.engine("rpie", problem, Schedule(2), 0)
    torch.testing.assert_close(found["2 rPIE"].found.object, alone.object)
    assert found["30 rPIE"].found.epochs == 30 and found["tiny, refined"].found.epochs == 5
    # The check-in's time counts.
    assert found[CHECKED + "tiny"].found.cpu_seconds > found["tiny"].found.cpu_seconds


def test_a_wrong_probe_is_measured_before_and_after_its_check_in(weights, monkeypatch):
    monkeypatch.setattr(methods, "MOST_EPOCHS", 2)
    monkeypatch.setattr(methods, "RPIE_ITERATIONS", (2,))
    networks = [Network("tiny", load_weights(weights).net)]
    base = replace(SMALL, field=0.6)
    found = quality.quality(networks, quality.Options(("probe",), 1, base, None, CPU, ("3 modes, equal",)))
    assert [row["label"] for rows in found["suites"].values() for row in rows] == ["3 modes, equal"]
    [row] = found["suites"]["probe"]
    [check] = row["check_ins"]
    assert check["overlap"]["found"] > check["overlap"]["assumed"]
    # A network that has learned nothing finds nothing; it is asked all the same, without any check-in.
    assert 0 < check["overlap"]["tiny, finding the probe"] <= 1 and "tiny, finding the probe" in row["methods"]
    assert "powers of the modes" in check["says"]
    assert row["methods"][CHECKED + "tiny"]["seconds"]["each"][0] > check["seconds"]
    text = tables(found)
    assert f"{row['methods']['tiny']['complex_nrmse']['median']:.3f}, " in text and check["says"] in text
    with pytest.raises(ConfigError, match="no case of dose is called '3e3'"):
        quality.quality(networks, quality.Options(("dose",), 1, base, None, CPU, ("3e3",)))


def test_the_report_has_every_suite(weights, quick, tmp_path, monkeypatch):
    # The figures are drawn by the command's test.
    monkeypatch.setattr(viz, "save_figure", lambda figure, path: path.touch())
    networks = [Network("tiny", load_weights(weights).net)]
    said = []
    options = quality.Options(("dose", "rate", "recorded"), 2, replace(SMALL, field=0.3), None, CPU)
    found = quality.quality(networks, options, said.append, Figures(tmp_path, networks))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["label"] for row in found["suites"]["dose"]] == ["1e4", "1e5"]
    # The default scan is in both suites and run once for each seed.
    assert len(said) == 2 * 3
    assert found["suites"]["dose"][1]["methods"] == found["suites"]["rate"][0]["methods"]
    number = found["suites"]["dose"][0]["methods"]["tiny"]["complex_nrmse"]
    assert len(number["each"]) == 2 and number["low"] <= number["median"] <= number["high"]
    assert set(found["skipped"]) == set(recorded.RECORDED) and found["suites"]["recorded"] == []
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["star-1e4.png", "star-1e5.png"]
    changes = {row["method"]: row["change"] for row in found["acceptance"] if row["goal"] == "no change"}
    # Nine frames hardly fix the object, so the least difference grows in fifty iterations.
    assert abs(changes["50 rPIE"]) < 0.1 and set(changes) == {"tiny", "tiny, refined", "50 rPIE", "LSQ-ML, converged"}
    text = tables(found)
    assert "Photons a frame" in text and "no folder of recorded scans" in text and "over 50 rPIE" in text


def test_ratios_are_of_the_same_scan():
    def method(errors):
        return {"complex_nrmse": {"each": errors}, "seconds": {"each": [1.0] * len(errors)}}

    found = {
        "net": method([0.1, 0.4, 0.3]),
        "net, refined": method([0.2, 0.2, None]),
        "50 rPIE": method([0.2, 0.2, 0.2]),
        "LSQ-ML, converged": method([0.1, 0.1, 0.1]),
    }
    net = UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=1))
    rows = acceptance({"dose": [{"label": "1e4", "methods": found}]}, [Network("net", net)])
    assert {row["method"]: row["error"] for row in rows} == {
        "net": pytest.approx(1.5),
        "net, refined": pytest.approx(1),
        "LSQ-ML, converged": pytest.approx(0.5),
    }


def test_a_recorded_scan_keeps_frames_from_the_methods(tmp_path, quick):
    """A simulated scan in a file, with its truth as the reference."""
    made = simulate(replace(SMALL, sample="natural"), 1, CPU)
    geometry = Geometry(8000.0, 1.0, 1.0, 64)
    centre = (made.data.corner + 32 + made.data.shift_px.double()).numpy()
    scan = Scan(
        to_centre(made.data.counts).numpy().astype(np.uint32),
        centre * geometry.pixel_m,
        geometry,
        made.probe[0].numpy(),
        name="made",
    )
    problem = recorded.problem_of(recorded.RecordedScan("made", scan, made.truth, (0.0, 0.0), 1), CPU)
    assert len(problem.held_out) == len(range(4, len(scan), 8))
    assert len(problem.data) + len(problem.held_out) == len(scan)
    assert judge(torch.from_numpy(problem.truth)[None], problem).numbers["complex_nrmse"] < 1e-6
    with torch.no_grad():
        found = methods.engine("lsqml", problem, Schedule(30), 0)
    # The reference lies where the object does.
    assert judge(found.object, problem).numbers["complex_nrmse"] < 0.6
    fitted, held_out, of_vacuum = (
        float(deviance_of(obj, probe, data).mean())
        for obj, probe, data in (
            (found.object, found.probe, problem.data),
            (found.object, found.probe, problem.held_out),
            (problem.vacuum, problem.probe, problem.held_out),
        )
    )
    # What was fitted fits better, and what was not fits far better than without an object.
    assert fitted < held_out < 0.5 * of_vacuum


def test_the_command_line_knows_the_suites():
    assert SUITES == quality.SUITES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dose": 0.0}, "dose must be a finite positive number"),
        ({"overlap": 1.0}, "overlap must be at least 0 and below 1"),
        ({"sample": "stones"}, "a sample is one of star"),
    ],
)
def test_a_case_that_is_no_scan_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Case(**change)


def test_the_command_prints_and_writes_the_numbers(weights, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("BLUESKY_CDI_DATA", raising=False)
    monkeypatch.setattr(quality, "DOSES", (1e4,))
    out, other = tmp_path / "new" / "quality.json", tmp_path / "other.safetensors"
    save_weights(PtychoNN(PtychoNNConfig(channels=4)), other, {})
    line = ["bench", "quality", "--weights", str(weights), "--baseline", str(other), "--suites", "dose", "recorded"]
    line += ["--seeds", "1", "--field", "0.3", "--device", "cpu", "--out", str(out), "--figure", str(tmp_path / "fig")]
    assert main([*line, "--json"]) == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert printed == json.loads(out.read_text(encoding="utf-8"))
    assert "Siemens star is not measured" in said.err
    found = printed["suites"]["dose"][0]["methods"]
    assert "tiny, refined" in found and "other" in found and "other, refined" not in found
    assert (tmp_path / "fig" / "star-1e4.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wrong", [["--suites", "speed"], ["--seeds", "0"], ["--frame-px", "100"], ["--field", "none"], ["--field", "0"]]
)
def test_a_wrong_argument_is_a_usage_error(wrong):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "quality", *wrong])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--weights", "nonsense"], "no weights at"),
        (["--weights", "canvas-small", "canvas-small"], "names, which must differ"),
        (["--device", "gpu!"], "--device must be auto"),
    ],
)
def test_the_command_says_what_is_wrong(wrong, message, capsys):
    assert main(["bench", "quality", "--device", "cpu", *wrong]) == 1
    assert message in capsys.readouterr().err
