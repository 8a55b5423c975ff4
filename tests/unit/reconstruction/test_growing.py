"""Scans that do not say where they will measure: the grid grows with the frames, and what is known stays."""

import numpy as np
import pytest
import torch

from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame, RunInfo
from bluesky_cdi.reconstruction.build import build_reconstructor
from bluesky_cdi.reconstruction.growing import GrowingReconstructor
from bluesky_cdi.reconstruction.online import PtychoReconstructor

BUDGET_S = 600.0


@pytest.fixture
def growing(frames):
    return lambda scene, first=2, **settings: made(scene, frames[:first], **settings)


def made(scene, first, trained=None, **settings):
    """A reconstructor whose grid begins with the window of these frames."""
    positions = np.array([frame.position_m for frame in first])
    grid = ObjectGrid.covering(
        positions.min(axis=0), positions.max(axis=0), scene.geometry.pixel_m, scene.geometry.frame_px
    )
    probe = scene.source.truth.probe
    chosen = {"name": "rpie", "refine_iterations": 5, **settings}
    return GrowingReconstructor(grid, probe, ReconstructorConfig(**chosen), trained=trained)


def corner_of(estimate, other):
    """Where the first pixel of one object lies on another one's, pixels."""
    return (np.array(estimate.origin_m) - np.array(other.origin_m)) / estimate.pixel_m


def test_what_is_known_stays_in_its_place(scene, frames, growing):
    reconstructor = growing(scene)
    reconstructor.add(frames[:10])
    before = reconstructor.step(BUDGET_S)
    # To the other side and beyond: rows below and columns on both sides.
    far = Frame(99, frames[0].position_m + np.array([-3e-6, 4e-6]), frames[0].counts)
    reconstructor.add([far])
    after = reconstructor.estimate()
    y, x = corner = corner_of(before, after)
    np.testing.assert_allclose(corner, np.rint(corner), atol=1e-6)
    y, x = round(y), round(x)
    assert y >= 64 and after.object.shape[1] > before.object.shape[1]
    inside = np.s_[y : y + before.object.shape[0], x : x + before.object.shape[1]]
    for name in ("object", "coverage", "std_amplitude", "std_phase_rad"):
        np.testing.assert_array_equal(getattr(after, name)[inside], getattr(before, name))
    np.testing.assert_array_equal(after.positions_m, before.positions_m)
    np.testing.assert_array_equal(after.residual, before.residual)
    assert reconstructor.step(BUDGET_S).n_frames == 11


@pytest.mark.parametrize("settings", [{}, {"window_px": 64}], ids=["whole", "regions"])
def test_as_good_as_with_the_window_known(make_scene, settings):
    scene = make_scene(extent_um=(0.9, 2.7))
    frames = scene.frames(0.3e-6)
    frames.sort(key=lambda frame: frame.position_m[1])
    known = scene.reconstructor(true_probe=True, **settings)
    grows = made(scene, frames[:2], **settings)
    assert grows._tiled.grid.shape[1] < 80
    for first in range(0, len(frames), 12):
        for reconstructor in (known, grows):
            reconstructor.add(frames[first : first + 12])
            estimate = reconstructor.step(BUDGET_S)
            if reconstructor is known:
                wanted = estimate
    assert len(grows._tiled.tiling) > 1 if settings else len(grows._tiled.tiling) == 1
    assert estimate.n_frames == wanted.n_frames == len(frames)
    assert np.mean(estimate.residual) < 1.1 * np.mean(wanted.residual)
    np.testing.assert_array_equal(estimate.frame_seq_nums, wanted.frame_seq_nums)
    np.testing.assert_allclose(estimate.positions_m, wanted.positions_m)


def test_a_checkpoint_holds_the_grid(scene, frames, growing):
    original, resumed = growing(scene), growing(scene)
    original.add(frames[:4])
    original.add(frames[4:20])
    wanted = original.step(BUDGET_S)
    resumed.restore(original.checkpoint(), frames[:20])
    found = resumed.estimate()
    assert found.origin_m == wanted.origin_m
    np.testing.assert_array_equal(found.object, wanted.object)
    for reconstructor in (original, resumed):
        reconstructor.add(frames[20:])
    np.testing.assert_array_equal(original.step(BUDGET_S).object, resumed.step(BUDGET_S).object)


def test_frames_that_wait_while_the_grid_grows_are_predicted(make_scene):
    scene = make_scene(extent_um=(0.9, 2.7))
    frames = scene.frames(0.3e-6)
    trained = load_weights("canvas-small", torch.device("cpu"))
    settings = {"name": "pinn", "refine_iterations": 0, "window_px": 64, "trained": trained}
    reconstructor = made(scene, frames[:2], **settings)
    reconstructor.add(frames[:20])
    before = reconstructor.read_quickly(1e-9).n_frames
    reconstructor.add(frames[20:])
    far = Frame(99, frames[0].position_m + np.array([0, 8e-6]), frames[0].counts)
    shape = reconstructor.estimate().object.shape
    reconstructor.add([far])
    estimate = reconstructor.step(BUDGET_S)
    assert estimate.object.shape > shape and before < estimate.n_frames == len(frames) + 1


def test_a_position_far_away_is_refused_and_nothing_is_lost(scene, frames, growing):
    reconstructor = growing(scene)
    reconstructor.add(frames[:10])
    with pytest.raises(GeometryError, match=r"so far from those before it .* more than 16777216: is it the stage's\?"):
        reconstructor.add([Frame(99, np.array([1e-3, 1e-3]), frames[0].counts)])
    with pytest.raises(GeometryError, match="outside the object grid"):
        reconstructor.add([Frame(99, np.array([np.nan, 0.0]), frames[0].counts)])
    assert reconstructor.step(BUDGET_S).n_frames == 10


def test_a_run_grows_where_it_is_to_and_another_one_does_not(scene):
    config = Config.model_validate({"reconstructor": {"name": "rpie", "threads": 1}})
    first = ((0.0, 0.0), (0.0, 1e-7))
    metadata = {"geometry": scene.geometry.as_metadata()}
    far = Frame(1, np.array([2e-6, 0.0]), np.ones((64, 64)))
    grows = build_reconstructor(RunInfo("uid", 1, metadata, (64, 64), first, grows=True), config)
    grows.add([far])
    assert isinstance(grows, GrowingReconstructor)
    for stated in (
        RunInfo("uid", 1, {**metadata, "window_m": first}, (64, 64)),
        RunInfo("uid", 1, metadata, (64, 64), first),
    ):
        fixed = build_reconstructor(stated, config)
        assert type(fixed) is PtychoReconstructor
        with pytest.raises(GeometryError, match="outside the object grid"):
            fixed.add([far])
