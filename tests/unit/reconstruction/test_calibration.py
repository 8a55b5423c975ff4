"""Predicted errors made true to size: errors of known distributions, known conditions, records, checks by halves."""

import contextlib
import dataclasses
import json
import math
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.errors import ConfigError, WeightsError
from bluesky_cdi.evaluation import interval_widths, rank_correlation, share_inside
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.calibration import (
    Calibration,
    Conditions,
    HalfPixels,
    Uncalibrated,
    calibration_of,
    checked_estimate,
    conditions_of,
    files,
    make,
)
from bluesky_cdi.reconstruction.calibration.fit import LEAST_SCENES, fitted, size_of, weighted_quantiles
from bluesky_cdi.reconstruction.calibration.record import NORMAL
from bluesky_cdi.reconstruction.calibration.samples import Sample
from bluesky_cdi.reconstruction.calibration.scenes import draw_scene
from bluesky_cdi.reconstruction.uncertainty import UNKNOWN_STD_RAD, UncertaintyEstimate
from bluesky_cdi.signals import EndingSignals

PIXELS = 600


def normal(rng, n):
    return rng.standard_normal(n)


def student(rng, n):
    """Student's t with 4 degrees of freedom, of unit variance: much heavier tails."""
    return rng.standard_t(4, n) / math.sqrt(2)


def true_std(photons, misfit):
    """What errors are drawn with: twice the photon noise, raised by the misfit."""
    return np.sqrt(1 + 4 * photons * misfit) / np.sqrt(photons)


def drawn_sample(scene, draw, iterations=0, halves_like=1.0):
    """A scan whose errors are known; what is predicted of them is five times too large, and half noise."""
    rng = np.random.default_rng([scene, iterations])
    decades = rng.uniform(0, 5)
    photons = 10 ** (decades + rng.uniform(0, 1, PIXELS))
    misfit = np.full(PIXELS, 10 ** rng.uniform(-7, -3))
    std = true_std(photons, misfit)
    covariates = np.stack(
        [
            -np.log(2 * np.sqrt(photons)),
            np.log1p(4 * photons * misfit) / 2,
            np.full(PIXELS, math.log(5)),
            np.full(PIXELS, math.log1p(iterations)),
        ]
    )
    predicted = 5 * std * np.exp(0.5 * rng.standard_normal(PIXELS))
    unit = {part: draw(rng, PIXELS) for part in ("amplitude", "phase")}
    return Sample(scene, covariates, {part: each * std for part, each in unit.items()}, dict.fromkeys(unit, predicted))


def as_tensors(sample):
    photons = torch.from_numpy(np.exp(-2 * sample.covariates[0]) / 4)
    misfit = torch.from_numpy(np.expm1(2 * sample.covariates[1])) / (4 * photons)
    conditions = Conditions(photons, torch.full_like(photons, 5.0), misfit, sample.iterations)
    raw = torch.from_numpy(sample.predicted["phase"])
    return UncertaintyEstimate(raw, raw, torch.zeros(1, 2)), conditions


@pytest.mark.parametrize("draw", [normal, student])
def test_intervals_hold_as_many_errors_as_they_say(draw):
    """Fitted on some scans, tested on others: sizes within 5 %, shares within 3 points, whatever the distribution."""
    calibration = fitted([drawn_sample(k, draw) for k in range(80)], "critic", None)
    shares, sizes = [], []
    for sample in (drawn_sample(k, draw) for k in range(1000, 1040)):
        found, conditions = as_tensors(sample)
        std = calibration(found, conditions).std_phase_rad.numpy()
        source = {"uncertainty": {"intervals": calibration.intervals(conditions.photons, 0)}}
        inside = (std < UNKNOWN_STD_RAD) & (sample.errors["phase"] < np.pi)
        error = sample.errors["phase"][inside]
        shares.append(list(share_inside(error, std[inside], interval_widths(source)).values()))
        sizes.append(np.log(np.sqrt(np.mean(std[inside] ** 2) / np.mean(error**2))))
    assert np.mean(shares, axis=0) == pytest.approx([0.5, 0.9, 0.95], abs=0.03)
    assert np.mean(sizes) == pytest.approx(0, abs=0.06)
    # What was predicted is five times too large.
    assert np.log(np.mean(sample.predicted["phase"]) / np.sqrt(np.mean(sample.errors["phase"] ** 2))) > 1.4


def test_intervals_are_the_mean_of_those_of_the_pixels():
    calibration = fitted([drawn_sample(k, student) for k in range(80)], "critic", None)
    photons = torch.tensor([[0.0, 3.0, 30.0, 4e2], [5e3, 5e3, 5e3, 2e9]])
    decades = [0, 1, 2, 3, 3, 3, 9]
    for part, found in calibration.intervals(photons, 0).items():
        widths = [calibration.group_of("predicted", decade).of(part).intervals for decade in decades]
        assert list(found.values()) == pytest.approx(np.mean(widths, axis=0).tolist())
    assert list(calibration.intervals(torch.zeros(2, 2), 0)["phase"].values()) == pytest.approx(NORMAL)
    # An image that has run away is told by others.
    wild = torch.tensor([[3.0, torch.nan], [torch.inf, 1e-30]])
    assert np.isfinite(list(calibration.intervals(wild, 0)["phase"].values())).all()
    raw = UncertaintyEstimate(torch.ones(2, 2), torch.ones(2, 2), torch.zeros(1, 2))
    assert calibration(raw, Conditions(wild, wild, wild, 0)).std_phase_rad[0, 0].isfinite()


def test_a_second_opinion_tells_where_errors_are_and_leaves_their_size():
    """One estimator knows how large the errors of a scan are on the whole, the other where; each is wrong otherwise."""

    def drawn(scene):
        sample = drawn_sample(scene, normal)
        rng = np.random.default_rng([scene, 7])
        where = rng.standard_normal(PIXELS)
        std = 0.01 * np.exp(where + rng.standard_normal())
        size = np.full(PIXELS, np.sqrt(np.mean(std**2)))
        # As `relative_shape` leaves it, of an opinion that is wrong by another factor for each scan.
        unit = {part: normal(rng, PIXELS) for part in ("amplitude", "phase")}
        return dataclasses.replace(
            sample,
            errors={part: each * std for part, each in unit.items()},
            predicted=dict.fromkeys(unit, size),
            shapes=dict.fromkeys(unit, where - where.mean()),
        )

    samples = [drawn(k) for k in range(80)]
    both = fitted(samples, "halves", None)
    alone = fitted([dataclasses.replace(each, shapes=None) for each in samples], "halves", None)
    assert both.models["predicted"]["phase"][6] == pytest.approx(1.0, abs=0.1)
    sizes, ranks = {True: [], False: []}, {True: [], False: []}
    for sample in (drawn(k) for k in range(1000, 1020)):
        found, conditions = as_tensors(sample)
        # Wrong on the whole by a hundred times: only where it is large and small counts.
        opinion = 100 * torch.from_numpy(np.exp(sample.shapes["phase"]))
        found = dataclasses.replace(found, shape_amplitude=opinion, shape_phase_rad=opinion)
        for calibration, has_shape in ((both, True), (alone, False)):
            std = calibration(found, dataclasses.replace(conditions, photons=torch.ones(PIXELS))).std_phase_rad.numpy()
            sizes[has_shape].append(np.sqrt(np.mean(std**2)) / np.sqrt(np.mean(sample.errors["phase"] ** 2)))
            ranks[has_shape].append(rank_correlation(sample.errors["phase"], std) if has_shape else 0.0)
    # Each size within a third, and the same with and without it; exact deviations as spread as these rank at 0.5.
    assert np.std(np.log(sizes[True])) < 0.3
    assert np.mean(np.log(sizes[True])) == pytest.approx(np.mean(np.log(sizes[False])), abs=0.15)
    assert np.mean(ranks[True]) > 0.4


def test_heavy_tails_have_other_intervals_than_normal_ones():
    """Of Student's t with 4 degrees of freedom and unit variance: 0.524, 1.507 and 1.963, in deviations."""
    rng = np.random.default_rng(3)
    size = size_of([student(rng, 60_000) for _ in range(4)], [np.ones(60_000)] * 4)
    assert size.scale == pytest.approx(1, abs=0.03)
    assert size.intervals == pytest.approx((0.524, 1.507, 1.963), rel=0.04)


def test_quantiles_have_their_weights():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert weighted_quantiles(values, weights, [0.5, 0.51, 0.75, 1.0]).tolist() == [1, 2, 2, 3]


def test_a_group_of_few_scans_is_like_its_parent_and_says_so():
    samples = [drawn_sample(k, normal) for k in range(40)]
    bright = drawn_sample(41, normal)
    bright.covariates[0] -= 10.0
    calibration = fitted([*samples, bright], "critic", None)
    alone = [group for name, group in calibration.groups.items() if group.like]
    assert alone and all(each.scenes < LEAST_SCENES and each.like == "predicted" for each in alone)
    assert all(each.phase == calibration.groups["predicted"].phase for each in alone)
    own = [group for name, group in calibration.groups.items() if not group.like and name != "predicted"]
    assert own and all(each.scenes >= LEAST_SCENES for each in own)


def test_errors_stay_monotone_beyond_what_was_met():
    calibration = fitted([drawn_sample(k, normal) for k in range(40)], "critic", None)
    photons = torch.logspace(-2, 9, 23, dtype=torch.float64)
    std = [
        calibration.modelled("phase", torch.tensor(0.1), Conditions(p, torch.tensor(5.0), torch.tensor(0.0), 0)).item()
        for p in photons
    ]
    assert all(np.diff(std) < 0)
    better, worse = (
        calibration.modelled(
            "phase", torch.tensor(raw), Conditions(photons[9], torch.tensor(5.0), torch.tensor(0.0), 0)
        )
        for raw in (0.01, 0.3)
    )
    assert better <= worse


def test_what_is_not_known_stays_so_and_both_parts_grow_alike():
    calibration = fitted([drawn_sample(k, normal) for k in range(40)], "critic", None)
    photons = torch.tensor([0.0, 1e3, 1e-3])
    raw = torch.tensor([UNKNOWN_STD_RAD, 0.2, UNKNOWN_STD_RAD])
    found = UncertaintyEstimate(raw, raw, torch.zeros(1, 2), None, raw / 2)
    made = calibration(found, Conditions(photons, torch.ones(3), torch.zeros(3), 0))
    assert made.std_phase_rad[0] == np.float32(UNKNOWN_STD_RAD) and made.std_phase_rad.max() <= np.float32(
        UNKNOWN_STD_RAD
    )
    assert made.std_amplitude[1:].max() <= 1.0
    assert made.epistemic_amplitude is None
    assert torch.allclose(made.epistemic_phase_rad[1], made.std_phase_rad[1] / 2)


def test_the_misfit_is_the_error_that_it_speaks_of():
    """A relative error e of exit waves of P photons adds 4 e^2 P to the deviance of a frame; here e = 0.1."""
    size, side, photons = 16, 24, 1e6
    probe = torch.full((1, 1, size, size), (photons / size**2) ** 0.5, dtype=torch.complex64)
    corner = torch.tensor([[0, 0], [0, 8], [8, 0]])
    data = Diffraction(torch.ones(3, size, size), corner, torch.zeros(3, 2), (1, side, side))
    deviance = torch.full((3,), 1 + 4 * photons * 0.01 / size**2)
    illumination = torch.ones(1, side, side)
    found = conditions_of(probe, data, illumination, deviance, torch.ones(3), 5)
    lit = found.frames > 0
    assert found.misfit[lit].numpy() == pytest.approx(0.01, rel=1e-4) and (found.misfit[~lit] == 0).all()
    assert (found.frames[0, 0].item(), found.frames[10, 10].item()) == pytest.approx((1, 3))
    assert found.covariates()[3].unique().item() == pytest.approx(math.log(6))
    # Frames of which the noise is not known say nothing.
    assert conditions_of(probe, data, illumination, deviance, deviance * np.nan, 0).misfit.abs().max() == 0


class OfSomeWeights:
    def __init__(self, path, sha256):
        self.path, self.name, self.sha256 = path, path.stem, sha256


def test_a_record_is_found_by_the_weights_that_it_is_of(tmp_path):
    calibration = fitted([drawn_sample(k, normal) for k in range(20)], "critic", "abc", {"scenes": 20})
    weights = tmp_path / "net.safetensors"
    assert (
        calibration_of(OfSomeWeights(weights, "abc"), "critic").source["why"].startswith("not calibrated: there is no")
    )
    files.write_record(files.record_of(weights), "abc", [calibration])
    assert calibration_of(OfSomeWeights(weights, "abc"), "critic") == calibration
    other = calibration_of(OfSomeWeights(weights, "abd"), "critic")
    assert isinstance(other, Uncalibrated) and "is of other weights" in other.source["why"]
    why = calibration_of(OfSomeWeights(weights, "abc"), "halves").source["why"]
    assert "does not have it" in why and why.endswith(f"bluesky-cdi calibrate {weights} --estimators 'halves'")
    # A second estimator goes beside the first, but not beside those of other weights.
    halves = dataclasses.replace(calibration, estimator="halves")
    files.write_record(files.record_of(weights), "abc", [halves])
    assert set(json.loads(files.record_of(weights).read_text())["estimators"]) == {"critic", "halves"}
    files.write_record(files.record_of(weights), "abd", [halves])
    assert set(json.loads(files.record_of(weights).read_text())["estimators"]) == {"halves"}


@pytest.mark.parametrize("text", ["{", "[]", '{"weights_sha256": "abc", "estimators": {"critic": {"version": 7}}}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    weights = tmp_path / "net.safetensors"
    files.record_of(weights).write_text(text)
    with pytest.raises(WeightsError, match=r"Make it again: bluesky-cdi calibrate"):
        calibration_of(OfSomeWeights(weights, "abc"), "critic")


def halves_of(sample, wide):
    """Two halves of a scan, each with half of its light and so with sqrt(2) times its errors, or `wide` times that."""
    rng = np.random.default_rng(sample.scene)
    light = sample.covariates - np.array([-math.log(2) / 2, 0, 0, 0])[:, None]
    predicted = {part: each * math.sqrt(2) for part, each in sample.predicted.items()}
    std = np.exp(light[0]) * 2 * np.exp(sample.covariates[1]) * math.sqrt(2)
    differences = {part: wide * std * rng.standard_normal(PIXELS) for part in predicted}
    photons = np.exp(-2 * sample.covariates[0]) / 4
    return HalfPixels(differences, (predicted, predicted), (light, light), photons)


def with_halves(scene):
    """A scan whose errors are larger or smaller than its conditions tell, which its halves show."""
    sample, wide = drawn_sample(scene, normal), math.exp(np.random.default_rng([7, scene]).normal(0, 0.5))
    errors = {part: wide * each for part, each in sample.errors.items()}
    return dataclasses.replace(sample, errors=errors, halves=halves_of(sample, wide))


def estimate_of(std, source):
    image, none = np.ones(std.shape, np.complex64), np.zeros((0, 2))
    return Estimate(
        n_frames=0, object=image, origin_m=(0.0, 0.0), pixel_m=1e-8, probe=image[None], std_amplitude=std,
        std_phase_rad=std, coverage=np.ones(std.shape), frame_seq_nums=np.zeros(0, int), positions_m=none,
        embedding=none, frame_uncertainty=np.array([0.2], np.float32), residual=none, novelty=none, source=source,
    )  # fmt: skip


@pytest.mark.parametrize("wide", [3.0, 1.0])
def test_errors_are_widened_where_the_halves_differ_by_more_than_predicted(wide, caplog):
    calibration = fitted([with_halves(k) for k in range(80)], "critic", None)
    sample = drawn_sample(2000, normal)
    std = np.array([[0.2, UNKNOWN_STD_RAD]], np.float32)
    source = {"uncertainty": {**calibration.source, "intervals": {}}}
    with caplog.at_level("INFO", "bluesky_cdi"):
        checked = checked_estimate(estimate_of(std, source), calibration, halves_of(sample, wide))
    check = checked.source["uncertainty"]["check"]
    factor = check["factors"]["phase"]
    assert checked.std_phase_rad[0] == pytest.approx([min(0.2 * factor, UNKNOWN_STD_RAD), UNKNOWN_STD_RAD], rel=1e-5)
    assert checked.frame_uncertainty[0] == pytest.approx(0.2 * factor, rel=1e-5)
    if wide == 1:
        assert factor == pytest.approx(1, abs=0.25) and not check["says"] and not caplog.records
        assert check["inside"]["phase"]["90"] > 0.8
    else:
        assert 2.0 < factor < 3.3
        assert check["says"].startswith("widened by") and check["says"] in caplog.text
        assert check["inside"]["phase"]["90"] < 0.6


def test_without_halves_or_a_record_nothing_is_changed():
    calibration = fitted([drawn_sample(k, normal) for k in range(20)], "critic", None)
    std = np.array([[0.2, 0.3]], np.float32)
    for each, pixels in ((calibration, None), (Uncalibrated("critic"), halves_of(drawn_sample(1, normal), 1.0))):
        given = estimate_of(std, {"uncertainty": dict(each.source)})
        checked = checked_estimate(given, each, pixels)
        assert (checked.std_phase_rad == std).all()
        assert checked.source["uncertainty"]["check"]["says"].startswith("not checked")


def test_scenes_are_drawn_by_their_number():
    one, same, other = draw_scene(4), draw_scene(4), draw_scene(5)
    assert (one.truth == same.truth).all() and (one.frames[3].counts == same.frames[3].counts).all()
    assert one.truth.shape != other.truth.shape or (one.truth != other.truth).any()
    assert all(one.grid.contains(np.array([frame.position_m for frame in one.frames])))
    assert np.abs(one.truth).max() <= 1 + 1e-6


def test_the_command_writes_a_record_that_is_found(tmp_path, monkeypatch, capsys):
    """Of engines alone; the scans are replaced by ones whose errors are known."""
    path = tmp_path / "engines.calibration.json"
    for module in (make, files):
        monkeypatch.setattr(module, "ENGINES", path)
    monkeypatch.setattr(make, "draw_scene", lambda number: number)
    monkeypatch.setattr(make, "samples_of", lambda scene, number, *_: [drawn_sample(number, normal, 30)])
    assert main(["calibrate", "none", "--scenes", "12", "--jobs", "1", "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["record"] == str(path) and [each["estimator"] for each in said["estimators"]] == [
        "photon noise",
        "halves",
    ]
    found = calibration_of(None, "photon noise")
    assert isinstance(found, Calibration) and found.made["scenes"] == 12 and set(found.models) == {"refined"}
    # Only refined objects were met: predictions are taken like them.
    assert found.kind_of(0) == found.kind_of(5) == "refined"
    assert main(["calibrate", "none", "--scenes", "4", "--estimators", "dice"]) == 1
    assert "no uncertainty estimator is called 'dice'" in capsys.readouterr().err
    assert main(["calibrate", "none", "--scenes", "3"]) == 1
    assert "needs 4 scans or more, and 96 for use; there would be 3" in capsys.readouterr().err


def test_ended_in_its_middle_a_calibration_does_not_go_through_all_scans_first(monkeypatch):
    begun, goes_on = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def __init__(self, jobs, **options):
            super().__init__(jobs)

        def shutdown(self, **options):
            goes_on.set()
            super().shutdown(**options)

    def looked(number, name):
        begun.append(number)
        if number:
            assert goes_on.wait(60)
        return []

    monkeypatch.setattr(make, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(make, "_at_work", looked)
    means = make._Means(None, "cpu", ())
    with contextlib.closing(make._collected(means, ["halves"], 1000, 2)) as collected:
        next(collected)
    # The two that were being looked at, and that which was asked for before the others were called off.
    assert len(begun) <= 4


def test_the_command_hears_of_signals(monkeypatch):
    """So that it ends in order, and its processes with it."""
    before, heard = signal.getsignal(signal.SIGTERM), []

    def calibrate(*_, **options):
        heard.append(signal.getsignal(signal.SIGTERM))
        raise ConfigError("enough")

    monkeypatch.setattr(make, "calibrate", calibrate)
    assert main(["calibrate", "none", "--device", "cpu"]) == 1
    assert isinstance(heard[0].__self__, EndingSignals) and signal.getsignal(signal.SIGTERM) == before


def test_scans_that_tell_nothing_make_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "ENGINES", tmp_path / "engines.calibration.json")
    monkeypatch.setattr(make, "_collected", lambda *_: iter([("halves", []), ("photon noise", [])]))
    with pytest.raises(ConfigError, match="told nothing of the errors by photon noise: ask for more"):
        make.calibrate(None, scenes=4, device="cpu", jobs=1)
    assert not list(tmp_path.iterdir())


def test_what_an_estimate_says_fits_into_documents():
    """Keys of documents hold neither dots nor slashes, nor begin with a dollar: the catalog refuses others."""

    def keys(values):
        for key, value in values.items():
            yield key
            if isinstance(value, dict):
                yield from keys(value)

    calibration = fitted([with_halves(k) for k in range(20)], "critic", None)
    widths = calibration.intervals(torch.ones(2, 2), 0)
    said = {"uncertainty": {**calibration.source, "intervals": widths}}
    std = np.array([[0.2, 0.3]], np.float32)
    checked = checked_estimate(estimate_of(std, said), calibration, halves_of(drawn_sample(9, normal), 1.0))
    found = list(keys(checked.source))
    assert {"50", "90", "95", "check"} <= set(found) and not [key for key in found if set(key) & set("./$")]
    assert interval_widths(checked.source)[0.9] == pytest.approx(widths["phase"]["90"])
