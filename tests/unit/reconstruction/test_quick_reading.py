"""New frames read alone: which are chosen, what is stitched, and that nothing of the full steps changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import frame_probes
from bluesky_cdi.protocols import QuickReader
from bluesky_cdi.reconstruction.even_choice import evenly_spread
from bluesky_cdi.reconstruction.object_map import ObjectMap
from bluesky_cdi.reconstruction.probe_watch import Taken
from bluesky_cdi.reconstruction.tiles import Box, box_of

BATCH = 12


@pytest.fixture(scope="module")
def trained():
    return load_weights("canvas-small", torch.device("cpu"))


def distance_to_chosen(positions, chosen):
    return np.linalg.norm(positions[:, None] - positions[chosen][None], axis=-1).min(axis=1)


def raster_of(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2).astype(float)


@pytest.mark.parametrize("number", [16, 60, 100])
def test_choice_is_even_over_a_raster(number):
    positions = raster_of(40)
    chosen = evenly_spread(positions, number)
    assert len(chosen) == number and (np.diff(chosen) > 0).all()
    # Disks around the chosen cover the square: no choice of as many has a smaller radius than half of that found.
    radius = distance_to_chosen(positions, chosen).max()
    assert radius <= 2 * np.sqrt(40**2 / (np.pi * number))
    quarters = np.bincount((positions[chosen] >= 20) @ [2, 1], minlength=4)
    assert quarters.min() >= 0.15 * number
    # The newest, or the oldest, as many would leave most of it without any.
    assert distance_to_chosen(positions, np.arange(number)).max() > 3 * radius


def test_choice_does_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    positions = np.concatenate([rng.uniform(0, 1, (300, 2)), rng.uniform(3, 4, (20, 2))])
    order = rng.permutation(len(positions))
    first, second = evenly_spread(positions, 40), order[evenly_spread(positions[order], 40)]
    assert set(first.tolist()) == set(second.tolist())
    # A place with few positions has its share of the area, not of the positions.
    assert (first >= 300).sum() >= 10


def test_choice_of_few_and_of_equal_positions():
    np.testing.assert_array_equal(evenly_spread(np.zeros((3, 2)), 5), [0, 1, 2])
    np.testing.assert_array_equal(evenly_spread(np.zeros((0, 2)), 5), [])
    assert len(set(evenly_spread(np.zeros((9, 2)), 4).tolist())) == 4


def test_stitched_by_light_and_in_phase():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(np.exp(1j * rng.uniform(-1, 1, (1, 8, 20))).astype(np.complex64))
    known = ObjectMap((8, 20), 4, True, torch.device("cpu"))
    left, right = Box((0, 0), (8, 12)), Box((0, 8), (8, 20))
    light = torch.ones(1, 8, 12)
    known.stitch(left, truth[left.pixels], 3 * light)
    # The same object, with noise and another phase, of which no frame tells.
    noise = torch.from_numpy(rng.normal(0, 0.01, (1, 8, 12)).astype(np.float32))
    obj, share = known.stitch(right, (truth[right.pixels] + noise) * np.exp(0.7j), light)
    assert share[..., :4] == pytest.approx(0.25) and share[..., 4:] == pytest.approx(1.0)
    assert known.illumination[0, 0, [0, 9, 15]].tolist() == [3.0, 4.0, 1.0]
    torch.testing.assert_close(known.object[..., :8], truth[..., :8])
    torch.testing.assert_close(obj[..., :4], truth[..., 8:12] + noise[..., :4] / 4, atol=2e-3, rtol=0)
    torch.testing.assert_close(obj[..., 4:], truth[..., 12:] + noise[..., 4:], atol=4e-3, rtol=0)


def test_box_begins_and_ends_with_blocks_on_the_grid():
    assert box_of(np.array([[17, 3], [40, 20]]), 64, (110, 90)) == Box((16, 0), (110, 90))


def test_frames_read_quickly_are_in_the_image_and_the_full_step_is_what_it_was(scene, frames, trained):
    alone = {"true_probe": True, "trained": trained, "name": "pinn", "refine_iterations": 0}
    quick, full = (scene.reconstructor(**alone) for _ in range(2))
    assert isinstance(quick, QuickReader)
    truth = scene.source.truth
    for first in range(0, len(frames), BATCH):
        quick.add(frames[first : first + BATCH])
        estimate = quick.read_quickly(10.0)
        assert estimate.n_frames == min(first + BATCH, len(frames))
    assert quick.read_quickly(10.0) is None
    error = compare_estimate(estimate, truth.object, truth.origin_m).numbers["complex_nrmse"]
    full.add(frames)
    last, after = full.step(np.inf), quick.step(np.inf)
    errors = [compare_estimate(each, truth.object, truth.origin_m).numbers["complex_nrmse"] for each in (last, after)]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    # Strips of few frames are worse than all together, and far better than vacuum.
    assert errors[0] < error < 0.6
    assert np.isfinite(estimate.residual).all() and (estimate.residual < 2 * last.residual.mean() + 1).all()
    # Each frame's light, once; the probe's photons are those of the first frames.
    light, of_all = (each.coverage / each.coverage.max() for each in (estimate, last))
    np.testing.assert_allclose(light, of_all, rtol=1e-3, atol=1e-5)


def test_of_too_many_frames_some_from_everywhere_are_read_and_then_the_rest(scene, frames, trained, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.reconstruction.quick_reading.UNET_WORK", 4)
    reconstructor = scene.reconstructor(true_probe=True, trained=trained, name="pinn")
    clock = iter(np.arange(0.0, 1000.0))
    reconstructor.quick.clock = lambda: next(clock)
    reconstructor.add(frames)
    reconstructor.read_quickly(1.0)
    read = [reconstructor.estimate().n_frames]
    first = np.array([frames[n - 1].position_m for n in reconstructor.estimate().frame_seq_nums])
    spread = np.ptp(first, axis=0) / np.ptp([f.position_m for f in frames], axis=0)
    while (estimate := reconstructor.read_quickly(1.0)) is not None:
        read.append(estimate.n_frames)
    # A reading takes a second by this clock: it is for as many as the one before, and ends with all.
    assert read[0] < len(frames) / 2 and len(read) > 2 and read[-1] == len(frames)
    assert (spread > 0.5).all()


def test_a_reading_shifts_the_probe_once_for_each_frame(scene, frames, trained, monkeypatch):
    reconstructor, shifted = scene.reconstructor(true_probe=True, trained=trained, name="pinn"), []

    def counted(probe, shift_px, *others):
        shifted.append(len(shift_px))
        return frame_probes(probe, shift_px, *others)

    reconstructor.add(frames)
    monkeypatch.setattr("bluesky_cdi.physics.forward.frame_probes", counted)
    assert reconstructor.read_quickly(1000.0).n_frames == sum(shifted) > len(frames) / 2


@pytest.mark.parametrize("can", [{"avx512_bf16": True}, {"amx_bf16": True}, {}])
def test_a_reading_computes_in_bf16_where_the_cpu_has_it(scene, frames, trained, monkeypatch, can):
    seen, images = set(), []
    for capabilities in (can, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=capabilities: has, raising=False)
        reconstructor = scene.reconstructor(true_probe=True, trained=trained, name="pinn")
        hook = trained.unrolled_net.stages[0].entry.register_forward_hook(lambda *args: seen.add(args[-1].dtype))
        reconstructor.add(frames)
        images.append(reconstructor.read_quickly(1000.0))
        hook.remove()
    assert seen == ({torch.bfloat16, torch.float32} if can else {torch.float32})
    assert [each.source["quick_unets"] for each in images] == ["bfloat16" if can else "float32", "float32"]
    # As far as the frames tell, the images are the same.
    change = np.linalg.norm(images[0].object - images[1].object) / np.linalg.norm(images[1].object - 1)
    assert change < 0.01 and (change > 0) == bool(can)
    assert images[0].residual.mean() == pytest.approx(images[1].residual.mean(), rel=0.01)


def of_regions(scene, trained, **settings):
    chosen = {"true_probe": True, "trained": trained, "name": "pinn", "refine_iterations": 0, "window_px": 64}
    return scene.reconstructor(**chosen | settings)


@pytest.fixture(scope="module")
def wide(make_scene):
    scene = make_scene(extent_um=(0.9, 5.4))
    frames = sorted(scene.frames(0.45e-6), key=lambda frame: frame.position_m[1])
    return scene, [replace(frame, seq_num=k + 1) for k, frame in enumerate(frames)]


def test_what_a_step_has_left_and_is_read_quickly_is_in_the_image_once(wide, trained):
    scene, frames = wide
    ours, full = (of_regions(scene, trained) for _ in range(2))
    for each in (ours, full):
        each.add(frames)
    assert len(ours._tiled.tiling) > 1
    # One region; its neighbours' frames have light there as well.
    assert 0 < ours.step(0.0).n_frames < len(frames)
    assert ours.read_quickly(1000.0).n_frames == len(frames)
    last, wanted = ours.step(np.inf), full.step(np.inf)
    # But for stray light, from which no tile is worked on.
    np.testing.assert_allclose(last.coverage, wanted.coverage, rtol=1e-5, atol=2e-3 * wanted.coverage.max())
    assert last.residual.mean() == pytest.approx(wanted.residual.mean(), rel=0.02)


def test_unread_frames_of_a_beam_that_has_changed_are_read_with_the_probe_that_they_had(wide, trained):
    scene, frames = wide
    ours, plain = (of_regions(scene, trained) for _ in range(2))
    for each in (ours, plain):
        each.add(frames[:20])
    ours._watch.before = np.arange(20)
    had = ours._probe.modes

    def changed():
        ours._probe.publish(had.flip(-1) * 1j)
        ours._watch.take = lambda: Taken.NOTHING
        return Taken.ONWARD

    ours._watch.take = changed
    estimate, wanted = ours.read_quickly(1000.0), plain.read_quickly(1000.0)
    assert estimate is None and not torch.equal(ours._probe.modes, had)
    estimate = ours.estimate()
    np.testing.assert_array_equal(estimate.frame_seq_nums, wanted.frame_seq_nums)
    np.testing.assert_allclose(estimate.object, wanted.object, rtol=1e-4, atol=1e-5)
    # They are of the epoch before, and those that come now of this one.
    ours.add(frames[20:])
    assert ours._frames.table.column("epoch").tolist() == [0] * 20 + [1] * (len(frames) - 20)
    assert ours.step(np.inf).n_frames == len(frames)
