"""Frames that ask for another probe than those before, and what a run does then."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction import probe_watch
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_checkin import LiveCheckIn, live
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
from bluesky_cdi.reconstruction.probe_watch import ProbeWatch
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
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
    more = np.arange(400 - LATELY, 500)
    assert alarm.rows_due(more[: 2 * LATELY - 1]) is None
    before, _ = alarm.rows_due(more)
    assert before[0] == 400 - LATELY
    for k in range(MOST_IN_VAIN):
        assert alarm.rows_due(np.arange(600 + EVERY * k)) is not None
        alarm.rang()
    assert alarm.rows_due(np.arange(2000)) is None


def test_an_alarm_goes_on_from_a_checkpoint():
    """What was looked at is not looked at again, and alarms in vain stay counted."""
    watches = [ProbeWatch(SharedProbe(lens().numpy(), torch.device("cpu")), LiveCheckIn(FAR)) for _ in range(2)]
    ours, again = (watch._alarm for watch in watches)
    for k in range(MOST_IN_VAIN):
        rows = np.arange(100 + EVERY * k)
        assert ours.rows_due(rows) is not None
        ours.rang()
        watches[1].restore(watches[0].checkpoint())
        assert again.rows_due(rows) is None
    assert again.rows_due(np.arange(1000)) is None


def test_frames_that_wait_at_an_alarm_had_the_probe_of_those_around_them(monkeypatch):
    """Frame 7, in row 3, is the only one whose region was left for the next step."""
    monkeypatch.setattr(probe_watch, "drift_between", lambda *_: Drift("defocus", 0.5, 0.01, LATELY))
    watch = ProbeWatch(
        SharedProbe(lens().numpy(), torch.device("cpu")),
        SimpleNamespace(is_running=False, begin_again=lambda *_: None),
    )
    newest = np.arange(100)
    frames = SimpleNamespace(
        light=SimpleNamespace(newest=newest), table=SimpleNamespace(seq_nums=newest + 4), diffraction=lambda rows: rows
    )
    watch.look(frames, np.delete(newest, 3), None, True)
    assert watch.before.tolist() == list(range(100 - LATELY))


def four_frames():
    made = measure(lens(), side=(2, 2))
    low, high = made.scan.positions_m.min(axis=0), made.scan.positions_m.max(axis=0)
    held = MeasuredFrames(ObjectGrid.covering(low, high, FAR.pixel_m, FAR.frame_px), torch.device("cpu"))
    return held, [Frame(k, p, c) for k, (p, c) in enumerate(zip(made.scan.positions_m, made.scan.counts, strict=True))]


def test_frames_belong_to_the_epoch_in_which_they_were_measured():
    held, frames = four_frames()
    held.add(frames[:3])
    held.table.begin_epoch(np.array([0, 1]))
    assert held.light.newest.tolist() == [2]
    again, _ = four_frames()
    again.restore(held.checkpoint(), frames)
    # New ones are of the newest, and so is one that is measured again.
    again.add([frames[3], frames[0]])
    assert again.light.newest.tolist() == [0, 2, 3]
    again.table.begin_epoch(np.array([0]))
    assert again.light.newest.tolist() == [2, 3]
    older = {name: values for name, values in held.checkpoint().items() if "epoch" not in name}
    once, _ = four_frames()
    once.restore(older, frames)
    assert once.light.newest.tolist() == [0, 1, 2]


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_frame_that_comes_late_had_the_beam_of_its_number(is_resumed):
    held, frames = four_frames()
    held.add(frames[1:3])
    held.table.begin_epoch(np.array([0]))
    if is_resumed:
        state, (held, _) = held.checkpoint(), four_frames()
        held.restore(state, frames[1:3])
    held.add([frames[0], frames[3]])
    assert held.table.seq_nums[held.light.newest].tolist() == [2, 3]


@pytest.mark.parametrize("failure", [GeometryError("no light"), None])
def test_a_drift_is_noted_before_its_check_has_ended(failure, monkeypatch):
    """Whether the check fails or ends after the run: the result says it, and no library keeps the probe."""
    may_end = threading.Event()

    def check_in(*_, **__):
        if failure:
            raise failure
        assert may_end.wait(240.0)
        raise GeometryError("too late")

    monkeypatch.setattr(live, "check_in", check_in)
    frames, measured = four_frames()
    frames.add(measured)
    check = LiveCheckIn(FAR)
    check.begin_again(frames, np.arange(4), Drift("defocus", 0.5, 0.05, 32), lens, True)
    if failure:
        assert check.wait(240.0) and check.take() is None
    (again,) = check.notes["again"]
    check.close()
    may_end.set()
    assert check.wait(240.0)
    assert again["frames"] == 4 and not again["taken"] and "+0.50 rad rms more defocus" in again["drift"]


def replayed(step_m, window_px, **settings):
    """A raster whose focus moves at half of it; the estimate when that was noticed and answered, and the last one."""
    side = (12, 12)
    first, second = (measure(lens(defocus_m=0.25e-3 + each), side=side).scan for each in (0.0, step_m))
    low, high = first.positions_m.min(axis=0), first.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, FAR.pixel_m, FAR.frame_px)
    config = ReconstructorConfig(name="rpie", refine_iterations=2, background=0.0, window_px=window_px, **settings)
    ours = PtychoReconstructor(grid, lens().numpy(), config, check_in=LiveCheckIn(FAR))
    half = len(first) // 2
    counts = np.concatenate([first.counts[:half], second.counts[half:]])
    frames = [Frame(k + 1, p, c) for k, (p, c) in enumerate(zip(first.positions_m, counts, strict=True))]
    answered = None
    for k in range(0, len(frames), 24):
        ours.add(frames[k : k + 24])
        assert ours._watch.check_in.wait(240.0)
        estimate = ours.step(STEP_S)
        if answered is None and any("says" in each for each in estimate.source["probe_check_in"].get("again", [])):
            answered = estimate
    assert ours._watch.check_in.wait(240.0)
    for _ in range(3):
        ours.step(STEP_S)
    return answered, ours.estimate()


def test_a_focus_that_moves_is_found_and_the_run_goes_on_with_the_new_probe(caplog):
    answered, last = replayed(0.2e-3, 64)
    notes = last.source["probe_check_in"]
    again = notes["again"][0]
    assert "the beam has changed during the run" in caplog.text
    assert "more defocus" in again["drift"] and again["frames"] > 60
    assert again["taken"] and "goes on with the new probe" in caplog.text
    # The first guess was right, and stays noted so.
    assert not notes["taken"]
    # It is the probe of the frames since, with nothing mixed in of those before.
    true = lens(defocus_m=0.45e-3)
    assert overlap(torch.from_numpy(last.probe), true) > 0.97 > overlap(lens(), true)
    # What the frames before have shown stays, though the newest lie on the same tiles, as does what is said of them.
    before = again["frames"] - LATELY
    assert before == 64 and answered.n_frames < last.n_frames
    for name in ("residual", "embedding", "frame_uncertainty", "positions_m"):
        np.testing.assert_array_equal(getattr(last, name)[:before], getattr(answered, name)[:before])
    rows = slice(0, 28)
    for name in ("object", "std_phase_rad", "std_amplitude"):
        np.testing.assert_array_equal(getattr(last, name)[rows], getattr(answered, name)[rows])
    # The others are explained by their own probe; those of before that are among the newest 32 are not.
    assert last.residual[:60].mean() < 2 and last.residual[72:].mean() < 2 < last.residual[64:72].mean()


def test_one_region_has_one_probe_and_keeps_it(caplog):
    _, last = replayed(0.2e-3, None, refine_probe=False)
    again = last.source["probe_check_in"]["again"]
    assert all(each["changed"] for each in again) and not any(each["taken"] for each in again)
    assert "begin a new run" in caplog.text
    assert overlap(torch.from_numpy(last.probe), lens()) == pytest.approx(1, abs=1e-4)
