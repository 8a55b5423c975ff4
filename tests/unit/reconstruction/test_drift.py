"""Frames that ask for another probe than those before, and what a run does then."""

import numpy as np
import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_checkin import LiveCheckIn
from bluesky_cdi.reconstruction.probe_checkin.drift import (
    BEFORE,
    EVERY,
    LATELY,
    MOST_IN_VAIN,
    Drift,
    DriftAlarm,
    drift_between,
)
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.trial import ABERRATIONS, Trial
from tests.unit.reconstruction.star_scans import FAR, lens, measure, overlap

SIDE = (8, 8)
STEP_S = 60.0


def scene(probe, seed=0, side=SIDE):
    """Frames of a probe, and the object that they were made of."""
    made = measure(probe, seed=seed, side=side)
    return made, torch.from_numpy(make_sample("star", made.data.object_shape[1:], seed))[None]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("size_rad", [-0.2, 0.15])
def test_an_aberration_comes_back_with_its_sign(index, size_rad):
    made, obj = scene(lens())
    trial = Trial(aberrations_rad=tuple(size_rad if k == index else 0.0 for k in range(len(ABERRATIONS))))
    other, _ = scene(Pupil(made.probe, made.data).turned(trial))
    found = drift_between(obj, made.probe[None], made.data[:32], other.data[32:])
    assert found.aberration == ABERRATIONS[index]
    assert found.change_rad == pytest.approx(size_rad, abs=0.15 * abs(size_rad))
    assert found.is_sure and f"{found.change_rad:+.2f} rad rms more {ABERRATIONS[index]}" in str(found)


@pytest.mark.parametrize("photons", [1e3, 1e5])
def test_frames_of_one_probe_raise_no_alarm(photons):
    """Also where the probe that they are explained with is wrong for all of them, and the object is."""
    for seed in range(12):
        made, obj = scene(lens(photons=photons), seed)
        # A lens whose focus lies elsewhere, and an object that absorbs and shifts less than the true one.
        for probe, seen in ((made.probe, obj), (lens(photons=photons, defocus_m=0.33e-3), obj.abs() ** 0.5 * obj**0.5)):
            found = drift_between(seen, probe[None], made.data[:32], made.data[32:])
            assert not found.is_sure, (seed, found)


def test_few_frames_and_small_changes_are_no_alarm():
    assert Drift("defocus", 0.5, 0.05, 32).is_sure
    assert not Drift("defocus", 0.5, 0.05, 5).is_sure
    assert not Drift("defocus", 0.05, 0.001, 32).is_sure


def test_when_frames_are_compared():
    alarm, rows = DriftAlarm(), np.arange(400)
    assert alarm.rows_due(rows[: 2 * LATELY - 1]) is None
    before, lately = alarm.rows_due(rows[: 2 * LATELY])
    assert before.tolist() == list(range(LATELY)) and lately.tolist() == list(range(LATELY, 2 * LATELY))
    assert alarm.rows_due(rows[: 2 * LATELY + EVERY - 1]) is None
    before, lately = alarm.rows_due(rows)
    assert len(before) == BEFORE and before[0] == 0 and before[-1] == 400 - LATELY - 1 and lately[-1] == 399
    alarm.begin_anew()
    more = np.arange(500)
    assert alarm.rows_due(more[: 400 + EVERY - 1]) is None
    before, _ = alarm.rows_due(more)
    assert before[0] == 400 - LATELY
    for k in range(MOST_IN_VAIN):
        assert alarm.rows_due(np.arange(600 + EVERY * k)) is not None
        alarm.rang()
    assert alarm.rows_due(np.arange(2000)) is None


def replayed(step_m, window_px):
    """A raster whose focus moves at half of it."""
    side = (12, 12)
    first, second = (measure(lens(defocus_m=0.25e-3 + each), side=side).scan for each in (0.0, step_m))
    low, high = first.positions_m.min(axis=0), first.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, FAR.pixel_m, FAR.frame_px)
    config = ReconstructorConfig(
        name="rpie", refine_iterations=2, background=0.0, refine_probe=False, window_px=window_px
    )
    ours = PtychoReconstructor(grid, lens().numpy(), config, check_in=LiveCheckIn(FAR))
    half = len(first) // 2
    counts = np.concatenate([first.counts[:half], second.counts[half:]])
    frames = [Frame(k + 1, p, c) for k, (p, c) in enumerate(zip(first.positions_m, counts, strict=True))]
    for k in range(0, len(frames), 24):
        ours.add(frames[k : k + 24])
        assert ours._watch.check_in.wait(240.0)
        ours.step(STEP_S)
    while ours.step(STEP_S) is not None:
        pass
    return ours.estimate()


def test_a_focus_that_moves_is_found_and_the_run_goes_on_with_the_new_probe(caplog):
    estimate = replayed(0.2e-3, 64)
    notes = estimate.source["probe_check_in"]
    again = notes["again"][-1]
    assert "the beam has changed during the run" in caplog.text
    assert "more defocus" in again["drift"] and again["frames"] > 60
    assert again["taken"] and "goes on with the new probe" in caplog.text
    # The first guess was right, and stays noted so.
    assert not notes["taken"]
    true = lens(defocus_m=0.45e-3)
    assert overlap(torch.from_numpy(estimate.probe), true) > 0.97 > overlap(lens(), true)


def test_one_region_has_one_probe_and_keeps_it(caplog):
    estimate = replayed(0.2e-3, None)
    *_, again = estimate.source["probe_check_in"]["again"]
    assert again["changed"] and not again["taken"]
    assert "begin a new run" in caplog.text
    assert overlap(torch.from_numpy(estimate.probe), lens()) == pytest.approx(1, abs=1e-4)
