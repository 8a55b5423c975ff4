"""The probe that a network finds: what comes back, what stays, and where it goes."""

import functools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import load_config
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.prediction import PROBE_PASSES, predict, predict_object, probe_finder
from bluesky_cdi.reconstruction.probe_checkin import (
    LiveCheckIn,
    Trial,
    Wanted,
    check_in,
    check_in_scan,
    defocus_m,
    in_words,
)
from bluesky_cdi.reconstruction.probe_checkin.check import asked_network
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.words import notes_of
from tests.unit.reconstruction.star_scans import FAR, NEAR, lens, measure, overlap, place

PROBE_ALONE = Wanted(centre=False, orientation=False)
FEW = (6, 5)
SOON_S = 240.0
# Where defocus of `lens` has moved by 0.1 mm, its phase has by 0.425 rad, rms: the curvature of its pupil.
MOVED_BY_A_RADIAN_M = 0.1e-3 / 0.425


@pytest.fixture(scope="module")
def trained():
    return load_weights("canvas-small")


@pytest.fixture(scope="module")
def finder(trained):
    return probe_finder(trained.unrolled_net)


@pytest.fixture(scope="module")
def scene():
    return measure(lens(), side=FEW)


@pytest.fixture(scope="module")
def found_from(scene, finder):
    """Check the scene in from a lens with one aberration, each once: tests only read what was found."""

    @functools.cache
    def found_from(noll, size):
        return check_in(scene.data, lens(aberrations={noll: size}), wanted=PROBE_ALONE, finder=finder)

    return found_from


@pytest.fixture(scope="module")
def without(scene):
    """What is found before a network is asked: `check_in` gives it to `asked_network` with the same frames."""
    return check_in(scene.data, lens(aberrations={4: 0.9}), wanted=PROBE_ALONE)


# As in test_probe_checkin: Noll's number, its place among the aberrations, and the sign with respect to Noll's.
@pytest.mark.parametrize(("noll", "index", "size"), [(4, 0, 1.2), (4, 0, -2.2), (6, 1, 1.6), (5, 2, -1.6)])
def test_a_known_aberration_comes_back(scene, found_from, noll, index, size):
    found, assumed = found_from(noll, size), lens(aberrations={noll: size})
    assert overlap(assumed, scene.probe) < 0.6 and overlap(found.probe, scene.probe) > 0.97
    turned = np.array(found.network.aberrations_rad)
    assert turned[index] == pytest.approx(-size, abs=0.25)
    assert np.abs(np.delete(turned, index)).max() < 0.25
    assert found.gains["network"].exceeds(0.1) and found.gain.exceeds(0.1) and found.changed
    assert torch.equal(found.assumed, assumed)


def test_what_is_said_of_it(found_from):
    found = found_from(4, 1.2)
    says, notes = in_words(found, FAR), notes_of(found, FAR)
    assert "the probe that the network found, with defocus moved by" in says and " um, other aberrations of " in says
    assert defocus_m(found, FAR) == pytest.approx(1.2 * MOVED_BY_A_RADIAN_M, rel=0.2) and notes[
        "defocus_m"
    ] == defocus_m(found, FAR)
    assert notes["by_network"] and notes["changed"] and "network" in notes["gains"]
    both = replace(found, trial=Trial(aberrations_rad=(0.5, 0, 0, 0, 0, 0)))
    assert notes_of(both, FAR)["aberrations_rad"][0] == pytest.approx(found.network.aberrations_rad[0] + 0.5)


def test_what_is_found_around_its_probe_is_told_beside_it(scene):
    """What a network leaves wrong, the search mends; all together is judged against what was assumed."""
    halfway, assumed = lens(aberrations={6: 0.6}), lens(aberrations={4: -2.2, 6: 0.6})
    found = check_in(scene.data, assumed, wanted=PROBE_ALONE, finder=lambda probe, data: halfway[None])
    assert overlap(found.probe, scene.probe) > 0.97 > overlap(halfway, scene.probe)
    assert next(iter(found.gains)) == "network" and len(found.gains) > 1
    assert found.gain.before == pytest.approx(found.gains["network"].before)
    assert found.gain.after < found.gains["network"].after
    notes = notes_of(found, FAR)
    assert notes["aberrations_rad"][0] == pytest.approx(2.2, abs=0.3)
    assert notes["aberrations_rad"][1] == pytest.approx(-0.6, abs=0.3) or found.refined
    assert found.network.aberrations_rad[1] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("photons", [1e3, 1e5])
def test_a_perfect_probe_is_left_alone_bit_for_bit(finder, photons):
    made = measure(lens(photons), side=FEW)
    assumed = made.probe.clone()
    found = check_in(made.data, assumed, finder=finder)
    assert found.probe is assumed and torch.equal(assumed, made.probe)
    assert not found.changed and found.network is None and not notes_of(found, FAR)["by_network"]


def test_few_photons_prove_nothing(finder):
    made = measure(lens(50.0), side=FEW)
    assumed = lens(aberrations={4: 0.9})
    assert check_in(made.data, assumed, finder=finder).probe is assumed


def test_what_a_beam_stop_hides_is_not_needed(finder):
    away = np.hypot(*np.indices((40, 40)) - 20.0) > 4
    made = measure(lens(), side=FEW, mask=away)
    assumed = lens(aberrations={6: 1.6})
    found = check_in(made.data, assumed, wanted=PROBE_ALONE, finder=finder)
    assert found.network is not None and overlap(found.probe, made.probe) > 0.97


@pytest.mark.parametrize("spoiled", [1.0, float("nan")])
def test_a_worse_probe_changes_nothing(scene, without, spoiled):
    """Judged by frames that it has not seen, it is dropped, and all is as without a network."""
    seen = []

    def spoils(probe, data):
        seen.append((probe, data))
        return spoiled * torch.roll(probe, 3, dims=-1) * torch.exp(2j * torch.rand(40, 40))

    found = asked_network(scene.data, without, spoils, PROBE_ALONE)
    assert found.network is None and torch.equal(found.probe, without.probe) and found.trial == without.trial
    [(probe, data)] = seen
    assert probe.shape == (1, 1, 40, 40) and len(data) == 20 and data.scene is None and data.object_shape[0] == 1


def test_a_network_without_memory_enough_costs_nothing_that_was_found(scene, without, caplog):
    def fails(probe, data):
        raise torch.OutOfMemoryError("no room for it")

    found = asked_network(scene.data, without, fails, PROBE_ALONE)
    assert without.changed and torch.equal(found.probe, without.probe) and found.gain == without.gain
    assert "no room for it" in caplog.text


def test_changes_of_a_probe_are_told_from_the_probe():
    """A trial made into a probe, moved to another place, is found again; phases of many turns don't wrap."""
    made = measure(lens(modes=2, coherent_share=0.8), side=(4, 4))
    pupil = Pupil(made.probe, made.data)
    trial = Trial(aberrations_rad=(2.0, -1.0, 0.5, 0.3, -0.4, 0.2), powers=(0.7, 0.3))
    found = pupil.nearest(torch.roll(pupil.probe(trial), (2, -1), dims=(-2, -1)))
    np.testing.assert_allclose(found.aberrations_rad, trial.aberrations_rad, atol=0.02)
    np.testing.assert_allclose(found.powers, trial.powers, atol=1e-4)
    assert pupil.nearest(made.probe).aberrations_rad == pytest.approx((0.0,) * 6, abs=1e-4)


def test_near_fields_tell_only_powers():
    probe = lens()
    positions = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), axis=-1).reshape(-1, 2) * 4 * NEAR.pixel_m
    pupil = Pupil(probe, place(positions, NEAR, np.ones((16, 40, 40))))
    assert pupil.nearest(probe.flip(-1)) == Trial()


def test_passes_begin_with_the_probe_of_the_one_before_and_end_where_it_stays(scene, trained, monkeypatch):
    net, begun, real = trained.unrolled_net, [], trained.unrolled_net.solve

    def solve(probe, data, start=None, *, finds_probe):
        begun.append(probe)
        assert start is None and finds_probe
        return real(probe, data, finds_probe=True)

    monkeypatch.setattr(net, "solve", solve)
    right, wrong = scene.probe[None], lens(aberrations={4: -1.6})[None]
    probe_finder(net)(right, scene.data)
    assert len(begun) == 2
    begun.clear()
    found = probe_finder(net)(wrong, scene.data)
    assert 2 < len(begun) <= PROBE_PASSES and begun[0] is wrong and not torch.equal(begun[1], wrong)
    assert overlap(found[0], scene.probe) > 0.97


@torch.no_grad()
def test_objects_are_those_of_the_given_probe_unless_it_is_to_be_found(scene, trained):
    wrong = lens(aberrations={4: 0.9})[None]
    net, data = trained.unrolled_net, scene.data
    obj, probe = predict(net, wrong, data)
    assert probe is wrong and torch.equal(obj, predict_object(net, wrong, data))
    other, found = predict(net, wrong, data, finds_probe=True)
    assert overlap(found[0], scene.probe) > overlap(wrong[0], scene.probe) and not torch.equal(other, obj)


def test_a_scan_is_checked_by_the_network_that_reconstructs_it(scene):
    told, assumed = [], replace(scene.scan, probe=lens(aberrations={4: 1.2}).numpy())

    def checked(scan, name):
        told.clear()
        config = load_config(overrides={"probe": {"modes": 1}, "reconstructor": {"background": 0.0, "name": name}})
        return check_in_scan(scan, config, on_progress=told.append).check

    assert checked(assumed, "pinn").network is not None and "network" in told
    # Whether it is asked does not hang on how many frames there are.
    assert checked(assumed.subset(range(12)), "lsqml").network is None and "search" in told and "network" not in told


def measured_run(made, assumed, trained, finder, state=None):
    """A reconstructor with all frames, from a checkpoint if given, whose check of the probe goes on beside it."""
    frames = [Frame(k + 1, p, c) for k, (p, c) in enumerate(zip(made.scan.positions_m, made.scan.counts, strict=True))]
    low, high = made.scan.positions_m.min(axis=0), made.scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, FAR.pixel_m, FAR.frame_px)
    changes = {"refine_iterations": 1, "background": 0.0, "refine_probe": False}
    config = load_config(overrides={"reconstructor": changes}).reconstructor
    ours = PtychoReconstructor(
        grid, assumed.numpy(), config, trained=trained, check_in=LiveCheckIn(FAR, finder), seed=0
    )
    if state is None:
        ours.add(frames)
    else:
        ours.restore(state, frames)
    return ours


def never():
    return False


@pytest.mark.parametrize("ends", ["with another probe", "without memory"])
def test_a_run_has_the_probe_of_the_search_before_the_network_answers(trained, caplog, ends):
    made, assumed = measure(lens(), side=(6, 6)), lens(aberrations={4: 0.9})
    asked, may_answer = threading.Event(), threading.Event()

    def waits(probe, data):
        asked.set()
        assert may_answer.wait(SOON_S)
        if ends == "without memory":
            raise torch.OutOfMemoryError("no room for it")
        return torch.roll(probe, 3, dims=-1)

    ours = measured_run(made, assumed, trained, waits)
    had_settled, shown = ours.settle(asked.is_set), ours.step(SOON_S)
    may_answer.set()
    assert not had_settled and ours.settle(never)
    after = ours.estimate()
    assert shown.source["probe_check_in"]["taken"]
    assert overlap(assumed, made.probe) < 0.8 and overlap(torch.from_numpy(shown.probe), made.probe) > 0.97
    np.testing.assert_array_equal(after.probe, shown.probe)
    assert after.source["probe_check_in"] == shown.source["probe_check_in"]
    assert ("no room for it" in caplog.text) == (ends == "without memory")


def test_a_network_that_had_not_answered_is_asked_after_a_restart(trained, caplog):
    """What was found without it is taken by then, and is not looked for again."""
    caplog.set_level("INFO")
    made, assumed = measure(lens(), side=(6, 6)), lens(aberrations={4: 0.9, 6: 0.4})
    asked, may_answer = threading.Event(), threading.Event()

    def waits(probe, data):
        asked.set()
        assert may_answer.wait(SOON_S)
        return probe

    ours = measured_run(made, assumed, trained, waits)
    assert not ours.settle(asked.is_set)
    state, found = ours.checkpoint(), ours._watch.check_in.notes
    ours.close()
    may_answer.set()
    assert ours._watch.check_in.wait(SOON_S)
    assert "what was found without the network stays" in caplog.text

    again = measured_run(made, assumed, trained, lambda probe, data: made.probe[None], state)
    assert found["taken"] and again._watch.check_in.notes == found
    assert again.settle(never)
    last = again.step(SOON_S)
    assert last.source["probe_check_in"]["by_network"] and last.source["probe_check_in"]["taken"]
    assert overlap(torch.from_numpy(last.probe), made.probe) > 0.99
    # It has answered.
    once_more = measured_run(made, assumed, trained, waits, again.checkpoint())
    assert not once_more._watch.is_running


def test_a_run_goes_on_with_the_probe_that_the_network_found(trained, finder):
    """In the result, not only in the notes: the search alone can't come so far. One step is enough once it is there."""
    made, assumed = measure(lens()), lens(aberrations={6: 1.6})
    ours = measured_run(made, assumed, trained, finder)
    first = ours.step(SOON_S)
    assert ours.settle(never) and ours.settle(never)
    last = ours.step(SOON_S)
    notes = last.source["probe_check_in"]
    assert notes["taken"] and notes["by_network"]
    assert overlap(assumed, made.probe) < 0.5 and overlap(torch.from_numpy(last.probe), made.probe) > 0.97
    assert np.mean(last.residual) < 0.5 * np.mean(first.residual)
