"""The check of a run's probe beside its reconstruction."""

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_checkin import LiveCheckIn, live
from tests.unit.reconstruction.star_scans import FAR, LENS, lens, measure, overlap

SOON_S = 240.0
STEP_S = 60.0


@pytest.fixture(scope="module")
def made():
    return measure(lens())


@pytest.fixture(scope="module")
def frames(made):
    return [Frame(k + 1, p, c) for k, (p, c) in enumerate(zip(made.scan.positions_m, made.scan.counts, strict=True))]


def reconstructor(made, assumed, *, checked=True, **settings):
    low, high = made.scan.positions_m.min(axis=0), made.scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, FAR.pixel_m, FAR.frame_px)
    chosen = {"name": "rpie", "refine_iterations": 2, "background": 0.0, "refine_probe": False, **settings}
    config = ReconstructorConfig(**chosen)
    return PtychoReconstructor(grid, assumed.numpy(), config, check_in=LiveCheckIn(FAR) if checked else None)


def steps_of(reconstructor, budget_s=STEP_S):
    """All steps that bring an estimate, those included that only wait for the check."""
    found = []
    while (estimate := reconstructor.step(budget_s)) is not None:
        found.append(estimate)
    return found


def test_a_better_probe_is_taken_and_all_is_predicted_again(made, frames, caplog):
    assumed = lens(defocus_m=0.35e-3)
    trusted = reconstructor(made, assumed, checked=False)
    trusted.add(frames)
    without = steps_of(trusted)[-1]
    ours = reconstructor(made, assumed)
    ours.add(frames)
    last = steps_of(ours)[-1]
    before, after = (overlap(torch.from_numpy(each.probe), made.probe) for each in (without, last))
    assert before < 0.93
    assert after > 0.97
    assert np.mean(last.residual) < 0.5 * np.mean(without.residual)
    notes = last.source["probe_check_in"]
    assert notes["taken"]
    assert "defocus" in notes["says"]
    assert notes["says"] in caplog.text
    assert json.loads(json.dumps(notes)) == notes
    # The photons, which set the object's scale, are those of the frames still.
    light = np.sum(np.abs(last.probe) ** 2) / np.sum(np.abs(without.probe) ** 2)
    assert light == pytest.approx(1, rel=1e-4)


class Found:
    """A check that has ended with another probe."""

    is_running, is_first, notes = False, True, {"taken": True}

    def __init__(self, probe):
        self.left = [probe]

    def begin(self, frames, assumed, current):
        pass

    def take(self):
        return self.left.pop() if self.left and self.ready else None

    ready = False


def test_what_frames_are_compared_with_is_that_of_the_new_probe(made, frames):
    """A wider aperture lets more pixels be bright without any object."""
    assumed, found = lens(), lens(numerical_aperture=1.2 * LENS["numerical_aperture"])
    ours = reconstructor(made, assumed, refine_iterations=0, checked=False)
    ours._watch.check_in = check = Found(found)
    ours.add(frames)
    before = ours.step(STEP_S)
    check.ready = True
    after = ours.step(STEP_S)
    begun_with_it = reconstructor(made, found, refine_iterations=0, checked=False)
    begun_with_it.add(frames)
    there = begun_with_it.step(STEP_S)
    assert np.mean(after.vacuum_residual) > 1.1 * np.mean(before.vacuum_residual)
    np.testing.assert_allclose(after.vacuum_residual, there.vacuum_residual, rtol=1e-3)
    assert after.source["noise_residual"] == pytest.approx(there.source["noise_residual"], rel=1e-3)
    assert after.source["noise_residual"] != pytest.approx(before.source["noise_residual"], rel=1e-3)


def test_a_perfect_probe_stays_bit_for_bit(made, frames):
    ours, trusted = reconstructor(made, lens()), reconstructor(made, lens(), checked=False)
    for each in (ours, trusted):
        each.add(frames)
    last, without = steps_of(ours)[-1], steps_of(trusted)[-1]
    np.testing.assert_array_equal(last.object, without.object)
    np.testing.assert_array_equal(last.probe, without.probe)
    assert not last.source["probe_check_in"]["taken"]


def test_it_begins_once_enough_frames_are_in(made, frames):
    check = LiveCheckIn(FAR)
    ours = reconstructor(made, lens(), checked=False)
    frames_of_run = ours._frames
    ours.add(frames[: live.CHECKED_AT[0] - 1])
    check.begin(frames_of_run, lens(), lens)
    assert not check.is_running
    ours.add(frames[live.CHECKED_AT[0] - 1 : live.CHECKED_AT[0]])
    check.begin(frames_of_run, lens(), lens)
    assert check.is_running
    assert check.wait(SOON_S)
    check.take()
    # Not again before many more.
    check.begin(frames_of_run, lens(), lens)
    assert not check.is_running
    assert not check.notes["changed"]


def test_what_the_reconstruction_has_found_by_itself_is_kept(made, frames):
    """The probe that refinement has come to meanwhile is the true one: the check's is no better."""
    check = LiveCheckIn(FAR)
    ours = reconstructor(made, lens(), checked=False)
    ours.add(frames)
    check.begin(ours._frames, lens(defocus_m=0.35e-3), lens)
    assert check.wait(SOON_S)
    assert check.take() is None
    assert check.notes["changed"]
    assert not check.notes["taken"]


@pytest.fixture
def held(monkeypatch):
    """Checks do not end before `may_go_on` is set."""
    events, real = SimpleNamespace(began=threading.Event(), may_go_on=threading.Event()), live.check_in

    def check(*args, **options):
        events.began.set()
        assert events.may_go_on.wait(SOON_S)
        return real(*args, **options)

    monkeypatch.setattr(live, "check_in", check)
    yield events
    events.may_go_on.set()


def test_what_was_found_is_told_though_nothing_is_left_to_be_done(made, frames, held):
    ours = reconstructor(made, lens(), refine_iterations=0)
    ours.add(frames)
    assert ours.step(STEP_S).source["probe_check_in"] == {}
    held.may_go_on.set()
    assert ours.settle(lambda: False)
    assert not ours.step(STEP_S).source["probe_check_in"]["taken"]
    assert ours.step(STEP_S) is None


def test_no_step_waits_for_a_check_that_was_given_up(made, frames, held):
    ours = reconstructor(made, lens(defocus_m=0.35e-3), refine_iterations=0)
    ours.add(frames)
    assert ours.step(STEP_S) is not None and not ours.settle(lambda: True)
    ours.give_up()
    assert ours.step(STEP_S) is None and ours.settle(lambda: True)
    # It is made where the run goes on from there.
    assert ours.checkpoint()["check_in/left"].tolist() == list(live.CHECKED_AT)


def test_a_closed_one_ends(made, frames, held):
    ours = reconstructor(made, lens(defocus_m=0.35e-3), refine_iterations=0)
    ours.add(frames)
    assert held.began.wait(SOON_S)
    # A step does not wait for it while there is work, and where there is none no longer than nothing interrupts it.
    first = ours.step(STEP_S)
    assert first.source["probe_check_in"] == {}
    for _ in range(3):
        assert ours.step(STEP_S, lambda: True) is not None
    ours.close()
    held.may_go_on.set()
    assert ours._watch.check_in.wait(SOON_S)
    assert ours.step(STEP_S) is None
    assert ours.estimate().source["probe_check_in"] == {}


def test_frames_that_tell_nothing_leave_the_run_as_it_is(made, frames, caplog):
    """Frames without light: the check says so, and the reconstruction goes on."""
    ours = reconstructor(made, lens())
    ours.add([Frame(frame.seq_num, frame.position_m, np.zeros_like(frame.counts)) for frame in frames])
    assert ours._watch.check_in.wait(SOON_S)
    assert ours.step(STEP_S) is not None
    assert "the probe can't be checked" in caplog.text


def test_a_check_that_had_not_ended_is_made_after_a_restart(made, frames):
    ours = reconstructor(made, lens(defocus_m=0.35e-3), refine_iterations=0)
    ours.add(frames)
    ours.step(STEP_S)
    state = ours.checkpoint()
    ours.close()
    again = reconstructor(made, lens(defocus_m=0.35e-3), refine_iterations=0)
    again.restore(state, frames)
    assert steps_of(again)[-1].source["probe_check_in"]["taken"]


@pytest.mark.parametrize("notes", [{"again": [{"taken": False}]}, {"changed": False, "taken": False}])
def test_what_is_still_to_be_checked_is_in_the_checkpoint(made, frames, notes):
    """Notes don't say that: a check may have found nothing by few frames."""
    check, again = LiveCheckIn(FAR), LiveCheckIn(FAR)
    check.notes, check._left = notes, list(live.CHECKED_AT[1:])
    again.restore(check.checkpoint())
    ours = reconstructor(made, lens(), checked=False)
    ours.add(frames)
    again.begin(ours._frames, lens(), lens)
    assert not again.is_running
    ours.add([replace(frame, seq_num=frame.seq_num + 100) for frame in frames])
    again.begin(ours._frames, lens(), lens)
    assert again.is_running
    again.close()
    assert again.wait(SOON_S)
    # Those of before say no more than whether a check had ended.
    older = {"notes": check.checkpoint()["notes"]}
    again = LiveCheckIn(FAR)
    again.restore(older)
    again.begin(ours._frames, lens(), lens)
    assert not again.is_running


def test_a_checkpoint_keeps_what_was_found(made, frames, monkeypatch):
    ours = reconstructor(made, lens(defocus_m=0.35e-3))
    ours.add(frames)
    last = steps_of(ours)[-1]
    state = ours.checkpoint()
    again = reconstructor(made, lens(defocus_m=0.35e-3))
    monkeypatch.setattr(live, "check_in", None)
    again.restore(state, frames)
    assert not again._watch.check_in.is_running
    assert again.estimate().source["probe_check_in"] == last.source["probe_check_in"]
