"""What is measured among the candidates, against distances and overlaps computed one by one."""

import numpy as np
import pytest

from bluesky_cdi.agent.field import Field
from bluesky_cdi.agent.observations import Observations
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.errors import SearchSpaceError

WIDTH, STEP, HALF = 0.54e-6, 0.18e-6, 0.9e-6


@pytest.fixture
def space():
    return SearchSpace.grid((-HALF, -HALF), (HALF, HALF), STEP)


def measured(space, positions_m):
    observations = Observations(space.spacing_m / 2)
    observations.take([{"seq_num": k + 1, "y": y, "x": x} for k, (y, x) in enumerate(positions_m)])
    return observations


def test_distance_to_what_is_measured_or_pending(space):
    rng = np.random.default_rng(0)
    frames, pending = rng.uniform(-HALF, HALF, (7, 2)), rng.uniform(-HALF, HALF, (3, 2))
    field = Field(space, WIDTH)
    field.take(measured(space, frames))
    every = np.concatenate([frames, pending])
    expected = np.linalg.norm(space.candidates_m[:, None] - every[None], axis=2).min(axis=1)
    np.testing.assert_allclose(field.nearest_m(pending), expected)
    np.testing.assert_allclose(
        field.nearest_m(np.empty((0, 2))), np.linalg.norm(space.candidates_m[:, None] - frames, axis=2).min(axis=1)
    )


def test_coverage_is_that_of_frames_one_after_the_other(space):
    """What a Gaussian of the probe's width leaves dark multiplies."""
    rng = np.random.default_rng(1)
    frames, pending = rng.uniform(-HALF, HALF, (4, 2)), rng.uniform(-HALF, HALF, (2, 2))
    field = Field(space, WIDTH)
    field.take(measured(space, frames))
    sigma = WIDTH / np.sqrt(8 * np.log(2))
    square = ((space.candidates_m[:, None] - np.concatenate([frames, pending])[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(field.coverage(pending).dark, np.exp(-np.exp(-square / (2 * sigma**2)).sum(axis=1)))
    # A copy goes on by itself.
    alone = field.coverage(np.empty((0, 2))).dark
    np.testing.assert_allclose(alone, np.exp(-np.exp(-square[:, :4] / (2 * sigma**2)).sum(axis=1)))


def test_taking_in_parts_or_at_once_is_the_same(space):
    frames = np.random.default_rng(2).uniform(-HALF, HALF, (9, 2))
    parts, whole = Field(space, WIDTH), Field(space, WIDTH)
    observations = Observations(space.spacing_m / 2)
    for k, (y, x) in enumerate(frames):
        observations.take([{"seq_num": k + 1, "y": y, "x": x}])
        parts.take(observations)
    whole.take(measured(space, frames))
    none = np.empty((0, 2))
    np.testing.assert_array_equal(parts.nearest_m(none), whole.nearest_m(none))
    np.testing.assert_array_equal(parts.coverage(none).dark, whole.coverage(none).dark)
    np.testing.assert_array_equal(parts.is_open, whole.is_open)


def test_foreign_frames_close_the_candidate_that_they_lie_on_and_forgetting_keeps_it_closed(space):
    field = Field(space, WIDTH)
    on_one, between = space.candidates_m[5] + 0.2 * STEP, space.candidates_m[50] + 0.5 * STEP
    field.take(measured(space, [on_one, between]))
    assert np.flatnonzero(~field.is_open).tolist() == [5]
    field.forget()
    assert np.flatnonzero(~field.is_open).tolist() == [5]
    assert np.isinf(field.nearest_m(np.empty((0, 2)))).all()


def test_gap_counts_open_candidates_only(space):
    field = Field(space, WIDTH)
    nearest = np.zeros(len(space))
    assert not field.has_gap(nearest)
    nearest[3] = 1.01 * field.gap_m
    assert field.has_gap(nearest)
    field.visit(np.array([3]))
    assert not field.has_gap(nearest)


@pytest.mark.parametrize("width", [0.0, -1e-6, np.nan, np.inf])
def test_width_must_be_a_length(space, width):
    with pytest.raises(SearchSpaceError, match="width must be a positive length"):
        Field(space, width)


def test_a_frame_of_a_proposal_closes_no_other_candidate(space):
    """The candidate of the proposal was closed when it was chosen; the read-back may lie nearer to another."""
    field, observations = Field(space, WIDTH), Observations(space.spacing_m / 2)
    (key,) = observations.issue(space.candidates_m[[7]])
    field.visit(np.array([7]))
    y, x = space.candidates_m[8]
    observations.take([{"seq_num": 1, "_id": key, "y": y, "x": x}])
    field.take(observations)
    assert np.flatnonzero(~field.is_open).tolist() == [7]
    assert field.nearest_m(np.empty((0, 2)))[8] == 0.0
    # A foreign frame after it closes its own.
    y, x = space.candidates_m[50]
    observations.take([{"seq_num": 2, "y": y, "x": x}])
    field.take(observations)
    assert np.flatnonzero(~field.is_open).tolist() == [7, 50]


@pytest.mark.parametrize(("share", "is_closed"), [(0.49, True), (0.51, False)])
def test_a_foreign_frame_closes_a_candidate_within_half_a_step(space, share, is_closed):
    field = Field(space, WIDTH)
    field.take(measured(space, [space.candidates_m[0] - [share * STEP, 0.0]]))
    assert field.is_open[0] != is_closed and field.is_open[1:].all()


def test_frames_after_forgetting_are_taken_from_the_first_on(space):
    frames = np.random.default_rng(3).uniform(-HALF, HALF, (6, 2))
    field, fresh, observations = Field(space, WIDTH), Field(space, WIDTH), measured(space, frames)
    field.take(observations)
    field.take(observations)  # nothing new
    for taken in (field, fresh):
        taken.forget()
        taken.take(observations)
    none = np.empty((0, 2))
    np.testing.assert_array_equal(field.nearest_m(none), fresh.nearest_m(none))
    np.testing.assert_array_equal(field.coverage(none).dark, fresh.coverage(none).dark)


def test_what_is_kept_out_is_never_open_and_no_gap(space):
    box = ((-HALF, -HALF), (-0.8 * HALF, -0.8 * HALF))
    field = Field(space, WIDTH, [box])
    inside = ((space.candidates_m >= box[0]) & (space.candidates_m <= box[1])).all(axis=1)
    np.testing.assert_array_equal(field.is_open, ~inside)
    np.testing.assert_array_equal(field.allowed, ~inside)
    field.visit(np.flatnonzero(~inside)[::2])
    assert not field.is_open[inside].any() and field.is_open.sum() == (~inside).sum() // 2
    np.testing.assert_array_equal(field.allowed, ~inside)  # visited or not
    assert not field.has_gap(np.where(inside, np.inf, field.gap_m))


def test_a_square_lattice_one_width_apart_leaves_no_gap(space):
    field = Field(space, WIDTH)
    axis = np.arange(-HALF, HALF + WIDTH, WIDTH)
    lattice = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    assert field.gap_m == pytest.approx(WIDTH / 2**0.5)
    assert not field.has_gap(field.nearest_m(lattice))
    assert field.has_gap(field.nearest_m(lattice[::2] * 1.3))
