"""A scan several windows wide: region by region as good as at once, at a cost that new frames alone decide."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi import evaluation
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import GeometryError, WorkerError
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.reconstruction import count_store, region_solver
from bluesky_cdi.reconstruction import frames as reconstruction_frames
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.points import points_of
from bluesky_cdi.reconstruction.region_solver import RegionSolver
from bluesky_cdi.reconstruction.tiles import Box

BUDGET_S = 60.0
WINDOW_PX = 192
PER_FRAME = ("frame_seq_nums", "positions_m", "embedding", "frame_uncertainty", "residual", "novelty")
IMAGES = ("object", "probe", "std_amplitude", "std_phase_rad", "coverage")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def wide(make_scene):
    return make_scene(extent_um=(0.9, 6.0))


def by_columns(scene):
    """Frames column by column: a scan that moves along the object."""
    frames = sorted(scene.frames(step_m=0.3e-6), key=lambda f: (f.position_m[1], f.position_m[0]))
    return [replace(f, seq_num=k + 1) for k, f in enumerate(frames)]


@pytest.fixture(scope="module")
def column_frames(wide):
    return by_columns(wide)


@pytest.fixture(scope="module")
def trained():
    return load_weights()


def measure(reconstructor, frames, batch=31, final_steps=2):
    """The last estimate of a scan added in batches."""
    for first in range(0, len(frames), batch):
        reconstructor.add(frames[first : first + batch])
        estimate = reconstructor.step(BUDGET_S)
    for _ in range(final_steps):
        estimate = reconstructor.step(BUDGET_S) or estimate
    return estimate


def truth_of(scene):
    truth = scene.source.truth
    return evaluation.crop_to(truth.object, truth.origin_m, scene.grid.origin_m, scene.grid.shape, scene.grid.pixel_m)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in (*PER_FRAME, *IMAGES))


@pytest.fixture(scope="module")
def wider(make_scene):
    return make_scene(extent_um=(0.9, 9.0))


@pytest.fixture(scope="module")
def both(wider, trained):
    """Region by region, and the whole object at once."""
    frames = by_columns(wider)
    return [
        measure(wider.reconstructor(name="pinn", trained=trained, refine_iterations=2, window_px=window), frames)
        for window in (WINDOW_PX, None)
    ]


def test_windows_agree_with_the_whole(wider, both):
    windowed, whole = both
    truth = truth_of(wider)
    errors = [evaluation.compare(e.object, truth, whole.coverage).numbers["complex_nrmse"] for e in both]
    assert errors[0] < 1.05 * errors[1]
    apart = evaluation.compare(windowed.object, whole.object, whole.coverage).numbers["complex_nrmse"]
    assert apart < 0.6 * errors[1]
    # All light is accounted for, but for stray light on tiles that were left alone.
    bright = whole.coverage > 0.02 * whole.coverage.max()
    energy = [np.square(np.abs(e.probe)).sum() for e in both]
    np.testing.assert_allclose(
        windowed.coverage[bright].sum() / energy[0], whole.coverage[bright].sum() / energy[1], rtol=0.02
    )
    assert windowed.n_frames == whole.n_frames
    assert windowed.residual.mean() < 1.05 * whole.residual.mean()


def test_windows_have_no_seams(wider, both):
    """From pixel to pixel the object is no more wrong across the tiles' borders than elsewhere."""
    windowed, whole = both
    illuminated = whole.coverage > 0.1 * whole.coverage.max()
    illuminated_pairs = illuminated[:, 1:] & illuminated[:, :-1]
    at_border = np.zeros_like(illuminated_pairs)
    at_border[:, 63::64] = True
    assert (illuminated_pairs & at_border).sum() > 50
    steps = np.abs(np.diff(windowed.object, axis=1) - np.diff(whole.object, axis=1))
    truth = truth_of(wider)
    scale = (windowed.object[illuminated].conj() * truth[illuminated]).sum() / np.square(
        np.abs(windowed.object[illuminated])
    ).sum()
    error = np.abs(np.diff(scale * windowed.object - truth, axis=1))
    assert error[illuminated_pairs & at_border].mean() < 1.1 * error[illuminated_pairs & ~at_border].mean()
    assert steps[illuminated_pairs & at_border].mean() < 0.75 * error[illuminated_pairs & ~at_border].mean()


def test_network_predicts_in_proportion_to_the_new_frames(wide, column_frames, trained, monkeypatch):
    """Each batch costs the same, however many frames were measured before."""
    predicted = []

    def vacuum(net, probe, data, start):
        predicted.append(len(data))
        return [torch.ones(data.object_shape, dtype=probe.dtype)]

    monkeypatch.setattr(UnrolledNet, "forward", vacuum)
    costs = {}
    for window in (WINDOW_PX, None):
        reconstructor = wide.reconstructor(name="pinn", trained=trained, refine_iterations=0, window_px=window)
        costs[window] = []
        for first in range(0, 80 if window else 24, 8):
            predicted.clear()
            reconstructor.add(column_frames[first : first + 8])
            assert reconstructor.step(BUDGET_S).n_frames == first + 8
            costs[window].append(sum(predicted))
    assert costs[None] == [8, 16, 24]
    # Two columns of frames touch two tiles at most; what is predicted with them reaches a frame's width around.
    assert max(costs[WINDOW_PX]) <= 80
    assert max(costs[WINDOW_PX][7:]) <= max(costs[WINDOW_PX][:7])


def test_frames_beyond_the_memory_limit_go_to_files(wide, column_frames, monkeypatch):
    found, files, new_file = [], [], count_store.tempfile.TemporaryFile
    monkeypatch.setattr(count_store.tempfile, "TemporaryFile", lambda *a, **k: files.append(1) or new_file(*a, **k))
    for memory_mb in (4096, 0):
        reconstructor = wide.reconstructor(refine_iterations=1, window_px=WINDOW_PX, memory_mb=memory_mb)
        found.append(measure(reconstructor, column_frames[::2], batch=31, final_steps=1))
        assert bool(files) == (memory_mb == 0)
    assert same(*found)


def test_tiny_budget_leaves_the_rest_for_later(wide, column_frames):
    reconstructor = wide.reconstructor(refine_iterations=1, window_px=WINDOW_PX)
    column_frames = column_frames[::2]
    reconstructor.add(column_frames)
    known = []
    while not known or known[-1] < len(column_frames):
        estimate = reconstructor.step(0.0)
        assert np.isfinite(estimate.residual).all() and np.isfinite(estimate.novelty).all()
        assert len(points_of(estimate)) == estimate.n_frames == len(estimate.frame_seq_nums)
        known.append(estimate.n_frames)
    assert 3 <= len(known) <= 14
    assert 0 < known[0] < known[-1] and known == sorted(known)
    for _ in range(200):
        if reconstructor.step(0.0) is None:
            break
    else:
        pytest.fail("refining must come to an end")
    assert reconstructor.step(BUDGET_S) is None


def test_checkpoint_among_unread_regions_goes_on_identically(wide, column_frames):
    original = wide.reconstructor(refine_iterations=1, window_px=WINDOW_PX)
    original.add(column_frames[::-1])
    assert original.step(0.0).n_frames < len(column_frames)
    copy = wide.reconstructor(refine_iterations=1, window_px=WINDOW_PX)
    copy.restore(original.checkpoint(), column_frames)
    for budget in (0.0, BUDGET_S, BUDGET_S, 0.0, 0.0):
        a, b = original.step(budget), copy.step(budget)
        assert same(a, b)
        assert dict(a.source) == dict(b.source)
    assert a.n_frames == len(column_frames)


def test_checkpoint_of_other_windows_is_refused(wide):
    state = wide.reconstructor(window_px=None).checkpoint()
    with pytest.raises(WorkerError, match=r"1 tiles.*window_px"):
        wide.reconstructor(window_px=WINDOW_PX).restore(state, [])


def test_frame_measured_again_elsewhere_leaves_no_trace(wide, column_frames):
    first, last = column_frames[0], column_frames[-1]
    reconstructor = wide.reconstructor(refine_iterations=1, window_px=WINDOW_PX)
    reconstructor.add([first])
    assert reconstructor.step(BUDGET_S).coverage[:, :60].any()
    reconstructor.add([replace(last, seq_num=first.seq_num)])
    estimate = reconstructor.step(BUDGET_S)
    assert estimate.n_frames == 1
    assert not estimate.coverage[:, :128].any() and estimate.coverage[:, -64:].any()
    np.testing.assert_array_equal(estimate.object[:, :128], 1)
    assert estimate.std_phase_rad[:, :128].min() > 1.8


def test_another_mean_flux_changes_no_known_frame(wide, column_frames):
    """The beam doubles: what illuminates the frames that are known stays, and so does their object."""
    reconstructor = wide.reconstructor(refine_iterations=0, window_px=WINDOW_PX)
    reconstructor.add(column_frames[:8])

    def photons():
        return float(np.square(np.abs(reconstructor.checkpoint()["probe/modes"])).sum())

    before = photons()
    reconstructor.add([replace(f, flux=2.0) for f in column_frames[8:16]])
    # Relative to the new mean flux, 1.5, the frames that are known have 1 / 1.5 of the probe's photons.
    assert photons() / 1.5 == pytest.approx(before, rel=1e-5)


def test_positions_and_flux_are_refined_in_windows(wide, column_frames):
    column_frames = column_frames[::2]
    off = np.random.default_rng(4).normal(0, 0.5 * wide.grid.pixel_m, (len(column_frames), 2))
    off[[0, -1]] = 0
    inside = [wide.grid.contains((f.position_m + d)[None])[0] for f, d in zip(column_frames, off, strict=True)]
    wrong = [replace(f, position_m=f.position_m + d * ok) for f, d, ok in zip(column_frames, off, inside, strict=True)]
    reconstructor = wide.reconstructor(
        name="lsqml", refine_positions=True, refine_flux=True, refine_iterations=8, window_px=WINDOW_PX
    )
    estimate = measure(reconstructor, wrong, batch=len(wrong), final_steps=1)
    moved = (estimate.positions_m - [f.position_m for f in wrong]) / wide.grid.pixel_m
    assert 0.1 < np.abs(moved).max() < 5
    assert wide.grid.contains(estimate.positions_m).all()
    assert reconstructor.checkpoint()["frames/flux_factor"].std() > 0
    assert np.isfinite(estimate.object).all()


def test_a_probe_that_is_known_stays(wide, column_frames):
    reconstructor = wide.reconstructor(refine_iterations=1, refine_probe=False, window_px=WINDOW_PX)
    reconstructor.add(column_frames[:16])
    before = reconstructor.checkpoint()["probe/modes"]
    np.testing.assert_array_equal(reconstructor.step(BUDGET_S).probe, before)


def dark(frame):
    return replace(frame, counts=np.zeros_like(frame.counts))


def one_photon(frame):
    counts = np.zeros_like(frame.counts)
    counts[33, 30] = 1
    return replace(frame, counts=counts)


@pytest.mark.parametrize("kind", ["dark", "one photon", "masked", "no flux"])
@pytest.mark.parametrize(("name", "window"), [("pinn", WINDOW_PX), ("rpie", None)])
def test_frames_that_say_nothing_give_numbers(wide, column_frames, trained, window, kind, name):
    frames = column_frames[:40:8]
    change = {"dark": dark, "one photon": one_photon, "no flux": lambda f: replace(dark(f), flux=0.0)}
    frames = [change.get(kind, lambda f: f)(f) for f in frames]
    mask = np.zeros((64, 64), dtype=bool) if kind == "masked" else None
    reconstructor = wide.reconstructor(
        name=name, trained=trained if name == "pinn" else None, mask=mask, refine_iterations=1, window_px=window
    )
    estimate = measure(reconstructor, frames, batch=3, final_steps=1)
    for field in (*PER_FRAME, *IMAGES):
        assert np.isfinite(getattr(estimate, field)).all(), field
    assert len(points_of(estimate)) == len(frames)


def test_light_after_dark_frames_sets_the_probe(wide, column_frames):
    late, plain = wide.reconstructor(), wide.reconstructor()
    late.add([dark(column_frames[0])])
    late.add(column_frames[:12])
    plain.add(column_frames[:12])
    assert same(late.step(BUDGET_S), plain.step(BUDGET_S))


def test_probe_of_another_size_is_refused(wide):
    with pytest.raises(GeometryError, match=r"a probe must be \(modes, 64, 64\); it is \(2, 32, 32\)"):
        PtychoReconstructor(wide.grid, np.ones((2, 32, 32), complex), ReconstructorConfig(name="rpie"))


def test_frames_under_a_weak_beam_or_none_are_found_while_frames_come(scene):
    flux = np.ones(len(scene.frames()))
    flux[[7, 20, 33]] = 0.3, 0.15, 0.0
    estimates = [
        measure(scene.reconstructor(name="lsqml", true_probe=True, refine_iterations=4), scene.frames(flux=each), 16)
        for each in (np.ones(len(flux)), flux)
    ]
    clean, found = estimates
    assert "other_flux" not in clean.source
    assert found.source["other_flux"] == pytest.approx({"8": 0.3, "21": 0.15}, rel=0.15)
    assert found.source["dark_frames"] == [34] and 34 not in found.frame_seq_nums
    errors = [evaluation.compare(e.object, truth_of(scene), clean.coverage).numbers["complex_nrmse"] for e in estimates]
    assert errors[1] < 1.1 * errors[0]
    # What vacuum would show is that of frames under as weak a beam.
    assert found.vacuum_residual[7] < 0.7 * clean.vacuum_residual[7]


class Scripted:
    """Gives the iterations of each region an end and a fall of their own, whatever became of them."""

    def __init__(self, monkeypatch):
        self.told, self._iterate, self._solve = {}, region_solver.iterate, RegionSolver.solve
        monkeypatch.setattr(region_solver, "iterate", self._scripted)
        monkeypatch.setattr(RegionSolver, "solve", lambda *args, **kwargs: self._remember(*args, **kwargs))

    def _remember(self, solver, frames, *args, **kwargs):
        self._of = frames.region.tiles
        self.told[self._of] = 0.01 * (1 + len(self.told)), len(frames.own_rows)
        return self._solve(solver, frames, *args, **kwargs)

    def _scripted(self, *args):
        outcome = self._iterate(*args)
        fall, _ = self.told[self._of]
        ended = "diverged" if fall == 0.01 else "converged"
        return replace(outcome, history=tuple((1 - fall) ** k for k in range(10)), ended=ended)


def test_what_is_told_of_the_iterations_speaks_of_all_regions(wide, column_frames, monkeypatch):
    """They end and fall in each in another way; the last region alone would say that all is well."""
    script = Scripted(monkeypatch)
    ours = wide.reconstructor(refine_iterations=2, window_px=WINDOW_PX)
    ours.add(column_frames)
    told = ours.step(BUDGET_S).source
    falls, frames = np.array(list(script.told.values())).T
    assert len(frames) > 2 and frames.sum() == len(column_frames)
    assert told["ended"] == "diverged" and told["diverged"] == pytest.approx(frames[0] / frames.sum())
    assert told["falling"] == pytest.approx((falls * frames).sum() / frames.sum(), rel=1e-6)

    again = wide.reconstructor(refine_iterations=2, window_px=WINDOW_PX)
    state = dict(ours.checkpoint())
    again.restore(state, column_frames)
    keys = ("iterations", "ended", "diverged", "falling")
    assert {key: again.estimate().source[key] for key in keys} == {key: told[key] for key in keys}
    # As checkpoints were, which knew of the last region only.
    older = {name: array for name, array in state.items() if not name.startswith("solver/")}
    older |= {"solver/iterations": np.array(6), "solver/ended": np.array("epochs")}
    again = wide.reconstructor(refine_iterations=2, window_px=WINDOW_PX)
    again.restore(older, column_frames)
    assert [again.estimate().source[key] for key in keys] == [6, "epochs", 0.0, 0.0]


def test_a_region_without_frames_tells_nothing_of_its_iterations(wide, column_frames, monkeypatch):
    """Its frames, and those that reach into it, are measured again without light."""
    script = Scripted(monkeypatch)
    ours = wide.reconstructor(refine_iterations=2, window_px=WINDOW_PX)
    ours.add(column_frames)
    assert ours.step(BUDGET_S).source["ended"] == "diverged"
    first = len(script.told)
    ours.add([dark(frame) for frame in column_frames[: int(0.45 * len(column_frames))]])
    told = ours.step(BUDGET_S).source
    assert len(script.told) == first and (told["ended"], told["diverged"]) == ("converged", 0.0)


def test_a_step_looks_at_the_part_of_the_grid_that_frames_lie_on(wide, column_frames, trained, monkeypatch):
    """What the network is shown follows the scan; the image is that of the whole grid."""
    first = column_frames[: len(column_frames) // 3]
    found, shown = [], []

    def show(*args):
        shown[-1] = max(shown[-1], args[-1][0][0, 0].numel())

    hook = trained.unrolled_net.critic.register_forward_hook(show)
    for looks_at_all in (False, True):
        if looks_at_all:
            monkeypatch.setattr(reconstruction_frames, "_room_for", lambda corner, grid: Box((0, 0), grid.shape))
        settings = {"name": "pinn", "refine_iterations": 3, "refine_probe": False}
        reconstructor = wide.reconstructor(true_probe=True, trained=trained, **settings)
        shown.append(0)
        reconstructor.add(first)
        found.append(reconstructor.step(np.inf))
    hook.remove()
    part, whole = found
    assert shown[0] < 0.6 * shown[1]
    np.testing.assert_allclose(part.coverage, whole.coverage, rtol=1e-5)
    assert part.residual.mean() == pytest.approx(whole.residual.mean(), rel=0.01)
    lit = part.coverage > 0.1 * part.coverage.max()
    change = np.linalg.norm((part.object - whole.object)[lit]) / np.linalg.norm((whole.object - 1)[lit])
    assert change < 0.03 and (part.object[part.coverage == 0] == 1).all()


def test_what_frames_have_left_is_forgotten_outside_of_what_a_step_looks_at(wide, column_frames, trained):
    left, right = column_frames[:20], column_frames[-20:]
    moved = [replace(frame, seq_num=other.seq_num) for frame, other in zip(right, left, strict=True)]
    ours, fresh = (
        wide.reconstructor(true_probe=True, trained=trained, name="pinn", refine_iterations=0) for _ in range(2)
    )
    ours.add(left)
    assert ours.step(np.inf).coverage[:, :20].max() > 0
    for each in (ours, fresh):
        each.add(moved)
    found, wanted = ours.step(np.inf), fresh.step(np.inf)
    # The probe's photons are those of the first frames.
    light, of_the_moved = (each.coverage / each.coverage.max() for each in (found, wanted))
    np.testing.assert_allclose(light, of_the_moved, rtol=1e-3, atol=1e-5)
    dark = wanted.coverage == 0
    assert dark.any() and (found.object[dark] == 1).all() and (found.std_phase_rad == wanted.std_phase_rad)[dark].all()
