"""Causes of misfit: each alone is named as itself, and frames that are as they were name none."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.evaluation.causes import causes_of
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.causes.detector import detector_findings, saturation_findings
from bluesky_cdi.reconstruction.causes.finding import Finding
from bluesky_cdi.reconstruction.causes.misfit import are_far, explained
from bluesky_cdi.reconstruction.causes.model import model_findings
from bluesky_cdi.reconstruction.causes.watch import EVERY, LATELY, LEAST_BEFORE, CauseWatch
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.trial import Trial
from bluesky_cdi.reconstruction.probe_watch import Taken
from bluesky_cdi.reconstruction.scores import Scores, scores_of
from tests.unit.reconstruction.star_scans import FAR, lens, measure

SIDE, STEP = (10, 10), 3.0
HALF = 60


@pytest.fixture(scope="module")
def scene():
    made = measure(lens(photons=1e4), side=SIDE, step=STEP)
    return made, torch.from_numpy(make_sample("star", made.data.object_shape[1:], 0))[None]


def rate_of(made, obj, probe=None):
    return made.data.rate(made.data.probes((made.probe if probe is None else probe)[None]), made.data.patches(obj))


def focus(made, obj):
    return rate_of(made, obj, Pupil(made.probe, made.data).turned(Trial(aberrations_rad=(0.3, 0, 0, 0, 0, 0))))


def smeared(made, obj):
    rate = rate_of(made, obj)
    return rate + 0.15 * sum((torch.roll(rate, step, axis) for axis in (-2, -1) for step in (-1, 1)), -4 * rate)


def others(made, obj):
    return rate_of(made, torch.from_numpy(make_sample("gold", made.data.object_shape[1:], 5))[None])


RATES = {
    "nothing": rate_of,
    "probe": focus,
    "background": lambda made, obj: rate_of(made, obj) + 0.3,
    "coherence": smeared,
}


def told(made, obj, rate, seed=0, shift_px=0.0):
    """The causes of the later frames of a rate, under the true object and the assumed probe."""
    counts = made.data.counts.clone()
    counts[HALF:] = torch.poisson(rate[HALF:], generator=torch.Generator().manual_seed(seed))
    data = replace(made.data, counts=counts, shift_px=made.data.shift_px + shift_px)
    changes = Pupil(made.probe, data).derivatives(3)
    before, lately = (scores_of(obj, made.probe[None], part, changes)[0] for part in (data[:HALF], data[HALF:]))
    found = model_findings(before, lately, float(counts.sum() / len(counts)), 40 * 40)
    features = np.random.default_rng(0).normal(size=(len(counts), 4))
    return [each.cause for each in explained(found, before, lately, 40 * 40, (features[:HALF], features[HALF:] + 50))]


@pytest.mark.parametrize("cause", RATES)
def test_each_change_of_the_model_alone_is_named_as_itself(scene, cause):
    for seed in range(3):
        assert told(*scene, RATES[cause](*scene), seed) == ([] if cause == "nothing" else [cause])


def test_a_probe_that_has_become_better_is_no_other_beam(scene):
    """Frames before asked for much of a probe that was wrong, the newest for nothing of the one found since."""
    made, obj = scene
    counts = torch.poisson(rate_of(made, obj), generator=torch.Generator().manual_seed(0))
    data, pupil = replace(made.data, counts=counts), Pupil(made.probe, made.data)
    wrong = pupil.turned(Trial(aberrations_rad=(0.3, 0, 0, 0, 0, 0)))
    scores = [
        scores_of(obj, probe[None], part, pupil.derivatives(3))[0]
        for probe, part in ((wrong, data[:HALF]), (made.probe, data[HALF:]))
    ]
    photons = float(counts.sum() / len(counts))
    assert not any(each.is_sure for each in model_findings(*scores, photons, 40 * 40))
    assert [each.cause for each in model_findings(*scores[::-1], photons, 40 * 40) if each.is_sure][:1] == ["probe"]


def test_frames_that_are_off_their_places_are_named_so(scene):
    made, obj = scene
    off = torch.zeros(len(made.data), 2)
    off[HALF:] = 0.6 * torch.randn(len(off) - HALF, 2, generator=torch.Generator().manual_seed(1))
    assert told(made, obj, rate_of(made, obj), shift_px=off) == ["positions"]


def test_what_nothing_explains_is_an_unknown_object_only_where_it_looks_unlike_those_before(scene):
    made, obj = scene
    counts = made.data.counts.clone()
    counts[HALF:] = torch.poisson(others(made, obj)[HALF:], generator=torch.Generator().manual_seed(0))
    before, lately = (
        scores_of(obj, made.probe[None], replace(made.data, counts=counts)[part], {})[0]
        for part in (slice(0, HALF), slice(HALF, None))
    )
    alike = np.random.default_rng(0).normal(size=(len(counts), 4))
    (found,) = explained([Finding("probe", "", 0.0)], before, lately, 1600, (alike[:HALF], alike[HALF:]))
    # A finding that is beyond doubt is told even if it isn't all.
    assert found.cause == "probe"
    none = [Finding("probe", "", 0.0, is_sure=False)]
    (found,) = explained(none, before, lately, 1600, (alike[:HALF], alike[HALF:]))
    assert found.cause == "unexplained" and "fit worse than before" in found.says
    (found,) = explained(none, before, lately, 1600, (alike[:HALF], alike[HALF:] + 50))
    assert found.cause == "object"
    # The detector needs no model, and what it does isn't blamed on the object.
    dead = Finding("detector", "row 3 is dead")
    assert explained([dead, *none], before, lately, 1600, (alike[:HALF], alike[HALF:] + 50)) == [dead]


def test_features_are_far_only_beyond_their_own_distances():
    rng = np.random.default_rng(0)
    before, same = rng.normal(size=(48, 8)), rng.normal(size=(24, 8))
    assert not are_far(before, same) and are_far(before, same + 20)


def pattern(size=64, photons=2e4):
    y, x = np.mgrid[:size, :size] - size // 2
    shape = np.exp(-np.hypot(y, x) / 12) * (1 + 0.5 * np.cos(y) * np.cos(x))
    return photons * shape / shape.sum()


def counted(rate, seed):
    return np.random.default_rng(seed).poisson(rate).astype(float)


def broken(change):
    """Sixteen frames after forty-eight, whose pattern the model knows to a fifth."""
    rate, wrong = pattern(), 1 + 0.2 * np.sin(np.arange(64) / 5)[:, None] * np.ones(64)
    now = 16 * rate
    change(now)
    return list(detector_findings(counted(now, 0), 16 * rate * wrong, counted(48 * rate, 1), 48 * rate * wrong))


def dead(now):
    now[37] = 0


def hot(now):
    now[5, 60] += 900


def gain(now):
    now[:16, :16] *= 0.6


@pytest.mark.parametrize(
    ("change", "said"),
    [(dead, "row 37 counts 0 photons"), (hot, "pixel (5, 60) counts"), (gain, "rows 0 to 15, columns 0 to 15 count 6")],
)
def test_parts_of_the_detector_are_named(change, said):
    (found,) = broken(change)
    assert found.cause == "detector" and said in found.says


def test_a_detector_that_counts_as_before_is_not_named():
    rate, brighter = pattern(), pattern() * (1 + 0.3 * np.cos(np.arange(64) / 9))
    for seed in range(100):
        now, before = counted(16 * brighter, seed), counted(48 * rate, seed + 1000)
        assert not list(detector_findings(now, 16 * brighter, before, 48 * rate)), seed
    # Where hardly any light falls, an object that scatters more than the model has counts twice as much.
    lens = np.where(np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 10, 1e3, 0.02)
    scattering = lens.copy()
    scattering[48:, 32:48] *= 2
    assert not list(detector_findings(counted(24 * scattering, 0), 24 * lens, counted(200 * lens, 1), 200 * lens))
    # Masked parts count nothing and are expected to.
    masked = np.where(np.arange(64) == 37, 0.0, pattern())
    assert not list(detector_findings(counted(16 * masked, 0), 16 * masked, counted(48 * masked, 1), 48 * masked))


@pytest.mark.parametrize("photons", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("step", [1.0, 0.25])
def test_a_ceiling_is_named_and_the_highest_counts_of_noise_are_none(photons, step):
    rate = pattern(photons=photons)
    for seed in range(30):
        frames = step * np.random.default_rng(seed).poisson(rate, (16, 64, 64))
        highest = frames.max(axis=(1, 2))
        brightest = np.sort(frames.ravel())[-4096:]
        assert not list(saturation_findings(brightest, int((highest == highest.max()).sum()), 16)), seed
    ceiling = step * max(1, round(0.5 * rate.max()))
    clipped = np.minimum(frames, ceiling)
    (found,) = saturation_findings(np.sort(clipped.ravel())[-4096:], 16, 16)
    assert found.cause == "saturation" and f"stop at {ceiling:g} counts" in found.says


def test_dark_frames_have_no_ceiling():
    assert not list(saturation_findings(np.zeros(4096), 16, 16)) and not list(saturation_findings(np.zeros(0), 0, 0))


def frames_of(made, counts=None):
    counts = made.scan.counts if counts is None else counts
    return [Frame(k + 1, p, c) for k, (p, c) in enumerate(zip(made.scan.positions_m, counts, strict=True))]


def run_of(made, **options):
    low, high = made.scan.positions_m.min(axis=0), made.scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, FAR.pixel_m, FAR.frame_px)
    config = ReconstructorConfig(name="rpie", refine_iterations=2, background=0.0, window_px=None)
    return PtychoReconstructor(grid, made.probe.numpy(), config, **options)


def live(ours, frames):
    estimate = None
    for first in range(0, len(frames), 20):
        ours.add(frames[first : first + 20])
        estimate = ours.step(600.0) or estimate
    return estimate


def test_a_run_names_a_row_that_dies_and_the_end_of_it(scene, caplog):
    """Once in the log when it begins, once when it ends; after a resumption too."""
    made, _ = scene
    counts = made.scan.counts.copy()
    counts[50:80, 23] = 0
    frames, ours = frames_of(made, counts), run_of(made)
    caplog.set_level(logging.INFO)
    estimate = live(ours, frames[:80])
    (cause,) = estimate.source["causes"]
    assert cause["cause"] == "detector" and cause["says"].startswith("row 23 counts") and cause["goes_on"]
    assert 33 <= cause["frames"][0] <= 51 and cause["frames"][1] == 80 and 0.2 < cause["share"] <= 0.6
    again = run_of(made)
    again.restore(ours.checkpoint(), frames[:80])
    assert again._causes.notes(80) == ours._causes.notes(80)
    estimate = live(ours, frames[80:])
    (cause,) = estimate.source["causes"]
    assert not cause["goes_on"] and next(iter(causes_of(estimate.source))).startswith("frames ")
    began, ended = (text for text in caplog.messages if text.startswith("detector: "))
    assert "row 23" in began and ended == "detector: over, the newest frames are as those before"


def test_a_clean_run_and_a_masked_row_name_nothing(scene):
    made, _ = scene
    mask = np.ones((40, 40), bool)
    mask[23] = False
    counts = made.scan.counts.copy()
    counts[50:, 23] = 65535
    assert live(run_of(made, mask=mask), frames_of(made, counts)).source["causes"] == []


def test_frames_without_light_are_told_at_once_and_the_light_that_comes_back(scene):
    made, _ = scene
    counts = made.scan.counts.copy()
    counts[30:40] = 0
    frames, ours = frames_of(made, counts), run_of(made)
    estimate = live(ours, frames[:40])
    (cause,) = estimate.source["causes"]
    assert cause["cause"] == "beam" and cause["frames"] == [31, 40] and cause["goes_on"]
    assert "10 of the newest 24 frames hold no light" in cause["says"]
    (cause,) = live(ours, frames[40:80]).source["causes"]
    assert not cause["goes_on"] and cause["share"] == pytest.approx(10 / 80)


def test_a_scan_of_one_frame_names_nothing(scene):
    made, _ = scene
    assert live(run_of(made), frames_of(made)[:1]).source["causes"] == []


def test_an_image_that_has_run_away_is_no_reason_to_fail(scene):
    made, obj = scene
    ours = run_of(made)
    live(ours, frames_of(made)[:20])
    watch, rows = CauseWatch(), np.arange(16)
    watch.look(ours._frames, rows, np.zeros((16, 4)), torch.full_like(obj, torch.nan), made.probe[None])
    assert watch.notes(16) == [] and not watch._lately


def test_a_look_needs_frames_before(scene):
    """No comparison before there are enough frames of before, and none is looked at twice."""
    made, _ = scene
    ours = run_of(made)
    live(ours, frames_of(made)[:60])
    watch = ours._causes
    assert isinstance(watch, CauseWatch)
    assert len(watch._looked_at) == 60 // EVERY * EVERY
    assert len(watch._lately) == LATELY and len(watch._before) == 60 // EVERY - LATELY >= LEAST_BEFORE
    assert all(isinstance(block.scores, Scores) and len(block.scores) == EVERY for block in watch._before)


def test_a_look_that_fails_is_told_once_and_ends_no_run(scene, monkeypatch, caplog):
    made, _ = scene
    ours, clean = run_of(made), run_of(made)

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(ours._causes, "look", fail)
    estimate, wanted = (live(each, frames_of(made)[:60]) for each in (ours, clean))
    assert (estimate.object == wanted.object).all() and estimate.source["causes"] == []
    assert len([text for text in caplog.messages if text.startswith("the look for causes failed")]) == 1


def test_an_interrupted_look_goes_on_the_next_time(scene):
    made, _ = scene
    ours, frames = run_of(made), frames_of(made)
    ours.add(frames[:40])
    ours.step(600.0)
    ours._causes._looked_at.clear()
    ours._causes.begin()
    rows = ours._frames.light.newest
    given = ours._frames, rows, ours._metrics.embedding[rows], ours._tiled.map.object, ours._probe.modes
    asked = iter([False, False, True])
    ours._causes.look(*given, lambda: next(asked))
    assert sorted(ours._causes._looked_at) == [frame.seq_num for frame in frames[:16]]
    ours._causes.look(*given)
    assert len(ours._causes._looked_at) == 40


def test_under_a_probe_that_was_taken_nothing_is_compared_with_frames_under_the_one_before(scene):
    made, _ = scene
    ours = run_of(made)
    live(ours, frames_of(made)[:60])
    assert ours._causes._lately
    ours._watch.take = lambda: Taken.GUESS
    ours._take_checked()
    assert not ours._causes._lately and not ours._causes._before


def test_checkpoints_of_before_have_another_name_for_what_was_reported():
    report = {"cause": "flux", "says": "half of it", "frames": [3, 4], "from_start": False, "goes_on": True}
    watch, again = CauseWatch(), CauseWatch()
    watch.restore({"told": np.array(json.dumps([report])), "looked_at": np.array([3, 4])})
    again.restore(watch.checkpoint())
    for each in (watch, again):
        (note,) = each.notes(10)
        assert (note["cause"], note["frames"], note["share"], note["goes_on"]) == ("flux", [3, 4], 0.2, True)
    CauseWatch().restore({})
