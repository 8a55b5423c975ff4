"""The online reconstructor against the simulation behind its frames."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from bluesky_cdi import evaluation
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import FrameError, GeometryError, WorkerError
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Estimate, Frame, Reconstructor
from bluesky_cdi.reconstruction import fine_tuning
from bluesky_cdi.reconstruction.fine_tuning import FineTuned
from bluesky_cdi.reconstruction.points import points_of
from bluesky_cdi.reconstruction.uncertainty import UNKNOWN_STD_RAD

BUDGET_S = 60.0


def nrmse(estimate, scene):
    truth = scene.source.truth
    return evaluation.compare_estimate(estimate, truth.object, truth.origin_m).numbers["complex_nrmse"]


def run(reconstructor, frames, steps=4):
    """All steps that change something, at most `steps`."""
    reconstructor.add(frames)
    out = []
    for _ in range(steps):
        estimate = reconstructor.step(BUDGET_S)
        if estimate is None:
            break
        out.append(estimate)
    return out


def same(a, b):
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for f in fields(Estimate)
        if f.name not in ("seconds", "source")
    )


@pytest.fixture(scope="module")
def trained():
    return load_weights()


@pytest.fixture(scope="module")
def estimates(scene, frames):
    return run(scene.reconstructor(), frames)


def test_protocol(scene):
    assert isinstance(scene.reconstructor(), Reconstructor)


def test_deviance_without_an_object(scene, frames, estimates):
    """What an engine begins with is vacuum; a frame that is replaced is judged anew."""
    reconstructor = scene.reconstructor(refine_iterations=0)
    reconstructor.add(frames[:30])
    first = reconstructor.step(BUDGET_S)
    np.testing.assert_allclose(first.vacuum_residual, first.residual, rtol=1e-6)
    brighter = [replace(frame, counts=2 * frame.counts) for frame in frames[:5]]
    reconstructor.add(brighter)
    again = reconstructor.step(BUDGET_S)
    np.testing.assert_allclose(again.vacuum_residual[:5], again.residual[:5], rtol=1e-6)
    better = estimates[-1]
    assert np.mean(better.residual) < 0.5 * np.mean(better.vacuum_residual)


def test_interrupted_step_gives_what_it_has_and_goes_on_later(scene, frames):
    """One iteration of five, and one region of several; then all that an uninterrupted one finds."""
    reconstructor = scene.reconstructor(name="lsqml")
    reconstructor.add(frames)
    cut = reconstructor.step(BUDGET_S, lambda: True)
    assert cut.source["iterations"] == 1
    later = reconstructor.step(BUDGET_S, lambda: False)
    assert later.source["iterations"] == 1 + 5
    assert np.median(later.residual) < np.median(cut.residual)


def test_nothing_to_do_is_none(scene, frames):
    frames = frames[::3]
    reconstructor = scene.reconstructor()
    assert reconstructor.step(BUDGET_S) is None
    reconstructor.add([])
    assert reconstructor.step(BUDGET_S) is None
    reconstructor.add(frames)
    seen = 0
    while reconstructor.step(BUDGET_S) is not None:
        seen += 1
        assert seen < 40, "refining must come to an end"
    assert seen >= 1
    assert reconstructor.step(BUDGET_S) is None
    reconstructor.add([])
    assert reconstructor.step(BUDGET_S) is None
    reconstructor.add(frames[:1])  # measured again
    assert reconstructor.step(BUDGET_S) is not None


def test_plain_rpie_finds_the_object(scene, estimates):
    vacuum = replace(estimates[-1], object=np.ones_like(estimates[-1].object))
    assert nrmse(estimates[-1], scene) < 0.4 < 0.7 < nrmse(vacuum, scene)
    assert estimates[-1].source["network"] is None
    assert estimates[-1].source["uncertainty"]["estimator"] == "photon noise"


def test_refining_never_raises_the_deviance(estimates):
    means = [float(e.residual.mean()) for e in estimates]
    assert len(means) >= 2
    assert all(later <= earlier for earlier, later in pairwise(means))


def test_refining_that_does_not_help_is_undone(scene, frames):
    truth = scene.source.truth
    reconstructor = scene.reconstructor(true_probe=True)
    reconstructor.add(frames)
    target = evaluation.crop_to(truth.object, truth.origin_m, scene.grid.origin_m, scene.grid.shape, scene.grid.pixel_m)
    state = dict(reconstructor.checkpoint())
    state["object/object"] = target.astype(np.complex64)[None]
    state["probe/modes"] = truth.probe.astype(np.complex64)
    state["object/illumination"] = np.full((1, *scene.grid.shape), 1e6, np.float32)
    reconstructor = scene.reconstructor(true_probe=True)
    reconstructor.restore(state, frames)
    estimate = reconstructor.step(BUDGET_S)
    assert estimate.residual.mean() < 1.0  # explained to the photon noise; dim pixels count less than 1
    np.testing.assert_array_equal(estimate.object, state["object/object"][0])


def test_estimate_is_consistent(scene, frames, estimates):
    e, n = estimates[-1], len(frames)
    assert e.n_frames == n
    np.testing.assert_array_equal(e.frame_seq_nums, np.arange(1, n + 1))
    np.testing.assert_array_equal(e.positions_m, [f.position_m for f in frames])
    assert e.object.shape == e.std_amplitude.shape == e.std_phase_rad.shape == e.coverage.shape == scene.grid.shape
    assert e.object.dtype == e.probe.dtype == np.complex64
    assert e.frame_uncertainty.shape == e.residual.shape == e.novelty.shape == (n,)
    assert e.embedding.shape[0] == n
    assert (e.origin_m, e.pixel_m) == (scene.grid.origin_m, scene.grid.pixel_m)
    for name in ("std_amplitude", "std_phase_rad", "coverage", "frame_uncertainty", "residual", "novelty", "embedding"):
        values = getattr(e, name)
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name
    assert e.std_phase_rad.min() > 0 and e.std_phase_rad.max() <= np.float32(UNKNOWN_STD_RAD)
    # The probe's photons, times the frames, are what the coverage adds up to.
    assert e.coverage.sum() == pytest.approx(n * (np.abs(e.probe) ** 2).sum(), rel=1e-3)
    photons = np.quantile([f.counts.sum() for f in frames], 0.9)
    assert (np.abs(e.probe) ** 2).sum() == pytest.approx(photons, rel=0.1)
    assert e.seconds > 0


def test_estimates_do_not_change_later(scene, frames):
    reconstructor = scene.reconstructor()
    reconstructor.add(frames[:20])
    first = reconstructor.step(BUDGET_S)
    kept = {f.name: np.array(getattr(first, f.name)) for f in fields(first) if f.name not in ("source", "seconds")}
    reconstructor.add(frames[20:])
    reconstructor.step(BUDGET_S)
    for name, values in kept.items():
        np.testing.assert_array_equal(getattr(first, name), values, err_msg=name)


def test_order_of_arrival_does_not_order_the_estimate(scene, frames):
    reconstructor = scene.reconstructor(refine_iterations=0)
    reconstructor.add(frames[10:])
    reconstructor.add(frames[:10])
    estimate = reconstructor.step(BUDGET_S)
    np.testing.assert_array_equal(estimate.frame_seq_nums, np.arange(1, len(frames) + 1))
    np.testing.assert_array_equal(estimate.positions_m, [f.position_m for f in frames])


def test_known_number_replaces_the_frame(scene, frames):
    """A frame that was wrong at first leaves no trace once it is measured again."""
    wrong = replace(frames[7], counts=frames[30].counts)
    settings = {"refine_probe": False, "refine_iterations": 0}
    clean, mended = scene.reconstructor(**settings), scene.reconstructor(**settings)
    clean.add(frames)
    mended.add([wrong if f.seq_num == 8 else f for f in frames])
    mended.add([frames[7]])
    assert same(clean.step(BUDGET_S), mended.step(BUDGET_S))


def test_checkpoint_goes_on_identically(scene, frames):
    original = scene.reconstructor()
    original.add(frames[:30])
    original.step(BUDGET_S)
    original.add(frames[30:])
    state = original.checkpoint()
    copy = scene.reconstructor()
    copy.restore(state, frames)
    for _ in range(2):
        a, b = original.step(BUDGET_S), copy.step(BUDGET_S)
        assert same(a, b)
        assert dict(a.source) == dict(b.source)


def test_checkpoint_knows_when_nothing_is_left(scene, frames):
    original = scene.reconstructor()
    run(original, frames[:9], steps=40)
    copy = scene.reconstructor()
    copy.restore(original.checkpoint(), frames[:9])
    assert copy.step(BUDGET_S) is None


def test_checkpoint_of_an_empty_run_sets_the_probe_from_its_frames(scene, frames):
    copy = scene.reconstructor()
    copy.restore(scene.reconstructor().checkpoint(), [])
    plain = scene.reconstructor()
    for reconstructor in (copy, plain):
        reconstructor.add(frames)
    assert same(copy.step(BUDGET_S), plain.step(BUDGET_S))


def test_checkpoint_keeps_the_mask(scene, frames):
    """A pixel that is dead in the first frames of the scan, which came late, is still used after restoring."""
    frames = [replace(f, counts=f.counts.copy()) for f in frames]
    row, column = np.argwhere(frames[0].counts > 20)[0]
    for frame in frames[:32]:
        frame.counts[row, column] = 0
    original = scene.reconstructor()
    original.add(frames[10:])
    original.add(frames[:10])
    copy = scene.reconstructor()
    copy.restore(original.checkpoint(), frames)
    assert same(original.step(BUDGET_S), copy.step(BUDGET_S))


def test_checkpoint_of_another_grid_is_refused(scene, make_scene):
    other = make_scene()
    rows, columns = scene.grid.shape
    other.grid = ObjectGrid(scene.grid.origin_m, (rows + 4, columns), scene.grid.pixel_m, 64)
    with pytest.raises(WorkerError, match="same scan window"):
        scene.reconstructor().restore(other.reconstructor().checkpoint(), [])


def test_bad_pixels_are_left_out(make_scene):
    """With hot and dead pixels, the image is as good as without them, and without their mask it isn't."""
    faulty = make_scene(hot_pixels=5, dead_pixels=10)
    found = run(faulty.reconstructor(), faulty.frames())[-1]
    known = ~(faulty.source.truth.hot | faulty.source.truth.dead)
    reported = run(faulty.reconstructor(mask=known), faulty.frames())[-1]
    assert nrmse(found, faulty) < 0.4
    assert nrmse(found, faulty) == pytest.approx(nrmse(reported, faulty), abs=0.03)


def test_monitor_explains_a_fluctuating_beam(scene):
    flux = np.clip(1 + 0.3 * np.random.default_rng(5).standard_normal(len(scene.frames())), 0.2, None)
    with_monitor = run(scene.reconstructor(), scene.frames(flux=flux, monitor=1e6 * flux))[-1]
    without = run(scene.reconstructor(), scene.frames(flux=flux))[-1]
    assert with_monitor.residual.mean() < 0.5 * without.residual.mean()
    assert nrmse(with_monitor, scene) < nrmse(without, scene)


def test_scale_of_the_monitor_does_not_matter(scene, frames):
    settings = {"refine_iterations": 1}
    scaled = [replace(f, flux=8.0) for f in frames]
    a, b = run(scene.reconstructor(**settings), frames, 1)[0], run(scene.reconstructor(**settings), scaled, 1)[0]
    np.testing.assert_allclose(a.object, b.object, atol=1e-6)


def test_network_reads_all_frames_in_one_step(scene, frames, trained):
    torch.set_num_threads(1)
    estimate = run(scene.reconstructor(name="pinn", trained=trained, refine_iterations=1), frames[::2], 1)[0]
    assert estimate.source["weights_sha256"] == trained.sha256
    assert estimate.source["uncertainty"]["estimator"] == "critic"
    assert nrmse(estimate, scene) < 0.5
    assert np.isfinite(estimate.std_phase_rad).all()
    assert estimate.embedding.shape == (len(frames[::2]), trained.net.config.channels)
    dark = estimate.coverage == 0
    assert dark.any() and (estimate.std_phase_rad[dark] == np.float32(UNKNOWN_STD_RAD)).all()


def test_one_frame_is_enough(scene, frames):
    estimate = run(scene.reconstructor(), frames[:1], 1)[0]
    assert estimate.n_frames == 1
    assert np.isfinite(estimate.object).all()
    np.testing.assert_array_equal(estimate.novelty, [1.0])


def test_empty_frames_give_finite_images(scene, frames):
    """Behind a closed shutter there is nothing to see, and nothing to fail either."""
    dark = [replace(f, counts=np.zeros_like(f.counts)) for f in frames[:4]]
    estimate = run(scene.reconstructor(), dark, 1)[0]
    assert np.isfinite(estimate.object).all() and np.isfinite(estimate.std_phase_rad).all()


def test_a_shutter_that_opens_late_does_not_set_the_probe(scene, frames):
    """The first frame, dark but for three counts, sets the probe's photons until those with light come."""
    dark = replace(frames[0], counts=np.zeros_like(frames[0].counts))
    dark.counts[30, 30:33] = 1
    reconstructor, clean = scene.reconstructor(), scene.reconstructor()
    reconstructor.add([dark])
    reconstructor.add(frames[1:])
    clean.add(frames[1:])
    found, wanted = reconstructor.step(BUDGET_S), clean.step(BUDGET_S)
    assert found.source["dark_frames"] == [frames[0].seq_num]
    photons, expected = (float(np.square(np.abs(e.probe)).sum()) for e in (found, wanted))
    assert photons == pytest.approx(expected, rel=0.02)


def test_most_frames_may_be_dark(scene, frames):
    dark = [replace(f, counts=np.zeros_like(f.counts)) for f in frames[10:]]
    estimate = run(scene.reconstructor(), [*frames[:10], *dark], 1)[0]
    assert estimate.source["dark_frames"] == [f.seq_num for f in dark] and estimate.n_frames == 10


def test_frame_of_another_shape_is_refused(scene):
    with pytest.raises(FrameError, match="frame 1 must be 64 x 64 pixels; it is \\(32, 32\\)"):
        scene.reconstructor().add([Frame(1, np.zeros(2), np.zeros((32, 32)))])


def test_position_off_the_grid_is_refused(scene, frames):
    away = replace(frames[0], position_m=np.array([5e-6, 0.0]))
    with pytest.raises(GeometryError, match="outside the object grid"):
        scene.reconstructor().add([away])


def test_refined_positions_stay_on_the_grid_and_go_with_their_frame(scene, frames):
    """Positions stated far off for their frames, at the border of the grid: refining must not leave it."""
    off = np.random.default_rng(4).normal(0, 1.5 * scene.grid.pixel_m, (len(frames), 2))
    low = np.array(scene.grid.origin_m) + (scene.grid.frame_px // 2 + 0.1) * scene.grid.pixel_m
    high = low + (np.array(scene.grid.shape) - scene.grid.frame_px - 1) * scene.grid.pixel_m
    wrong = [replace(f, position_m=np.clip(f.position_m + d, low, high)) for f, d in zip(frames, off, strict=True)]
    reconstructor = scene.reconstructor(name="lsqml", refine_positions=True, refine_flux=True, refine_iterations=20)
    estimate = run(reconstructor, wrong, 1)[0]
    moved = estimate.positions_m - [f.position_m for f in wrong]
    assert np.abs(moved).max() > 0.3 * scene.grid.pixel_m
    assert scene.grid.contains(estimate.positions_m).all()
    assert len(points_of(estimate)) == len(frames)
    # A frame taken again is where it says, whatever was found of the one before.
    reconstructor.add([wrong[0]])
    moves = reconstructor.checkpoint()["frames/move_px"]
    np.testing.assert_array_equal(moves[0], 0)
    assert (moves[1:] != 0).any()
    again = scene.reconstructor(name="lsqml", refine_positions=True, refine_iterations=20)
    again.restore(reconstructor.checkpoint(), wrong)
    np.testing.assert_array_equal(again.checkpoint()["frames/move_px"], moves)


class Tuner:
    """Instead of the real one: says what it was asked, and that the probe was twice as bright."""

    def __init__(self, net, seed):
        self.net, self.calls = net, []

    def tune(self, probe, data, budget_s):
        self.calls.append((len(data), budget_s))
        return FineTuned(self.net, 2 * probe, 2.0, 1.0, 7, budget_s, True, "time")


def test_new_frames_tune_the_network_which_predicts_again(scene, frames, trained, monkeypatch):
    tuners = []
    monkeypatch.setattr(fine_tuning, "FineTuner", lambda net, seed: tuners.append(Tuner(net, seed)) or tuners[-1])
    probes = []

    def vacuum(net, probe, data, start):
        probes.append(probe)
        return [torch.ones(data.object_shape, dtype=torch.complex64)]

    monkeypatch.setattr(UnrolledNet, "forward", vacuum)
    reconstructor = scene.reconstructor(name="pinn", trained=trained, refine_iterations=0, fine_tune_s=3.0)
    reconstructor.add(frames[:10])
    first = reconstructor.step(BUDGET_S)
    second = reconstructor.step(BUDGET_S)
    reconstructor.add(frames[10:])
    third = reconstructor.step(BUDGET_S)
    (tuner,) = tuners
    assert tuner.calls == [(10, 3.0), (len(frames), 3.0)]
    assert [e.source["fine_tuning_steps"] for e in (first, second, third)] == [7, 7, 14]
    # Once before and once after each tuning, with the probe that it found.
    assert len(probes) == 3 and torch.equal(probes[1], 2 * probes[0])


def test_tuning_lowers_the_deviance_of_the_frames(scene, frames, trained):
    """The real one, on a few frames for half a second."""
    torch.set_num_threads(1)
    plain, tuned = (
        run(scene.reconstructor(name="pinn", trained=trained, refine_iterations=0, fine_tune_s=s), frames, 3)[-1]
        for s in (0.0, 0.5)
    )
    assert tuned.source["fine_tuning_steps"] > 0
    assert tuned.residual.mean() < plain.residual.mean()


def test_only_a_network_is_tuned():
    with pytest.raises(ValueError, match="only a network is tuned; the reconstructor is rpie"):
        ReconstructorConfig(name="rpie", fine_tune_s=1.0)


def test_errors_from_halves_while_frames_come(scene, frames):
    """Of a single frame nothing is known; then errors are those of noise, which falls with the light."""
    reconstructor = scene.reconstructor(uncertainty="halves", refine_iterations=3)
    [first] = run(reconstructor, frames[:1], 1)
    assert (first.std_phase_rad == np.float32(UNKNOWN_STD_RAD)).all()
    last = run(reconstructor, frames[1:], 1)[-1]
    assert last.source["uncertainty"]["estimator"] == "halves"
    bright = last.coverage > 0.3 * last.coverage.max()
    photon_noise = 0.5 / np.sqrt(last.coverage[bright])
    assert 0.3 < np.median(last.std_phase_rad[bright] / photon_noise) < 10
    assert np.isfinite(last.frame_uncertainty).all()


def test_only_a_network_has_a_critic():
    with pytest.raises(
        ValueError, match="the uncertainty 'critic' is of networks; the reconstructor is rpie: set it to 'photon"
    ):
        ReconstructorConfig(name="rpie", uncertainty="critic")
