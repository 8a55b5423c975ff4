import subprocess
import sys

import numpy as np
import pytest

from bluesky_cdi.agent import patterns
from bluesky_cdi.agent.constraints import outside_boxes, overlapping
from bluesky_cdi.agent.route import nearest_neighbour, path_length_m, route, two_opt
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.errors import SearchSpaceError

LOW, HIGH, STEP = (-1.8e-6, 0.0), (1.8e-6, 2.7e-6), 0.18e-6


def nearest_distances(points):
    d = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(d, np.inf)
    return d.min(axis=1)


def largest_gap(points, chosen):
    return np.linalg.norm(points[:, None] - chosen[None], axis=2).min(axis=1).max()


def test_patterns_and_package_load_no_torch():
    code = (
        "import sys, bluesky_cdi.agent, bluesky_cdi.agent.patterns; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'botorch', 'scipy', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_grid_is_regular_and_inside():
    space = SearchSpace.grid(LOW, HIGH, STEP)
    assert len(space) == 21 * 16
    np.testing.assert_allclose(nearest_distances(space.candidates_m), STEP, rtol=1e-9)
    np.testing.assert_allclose(space.low_m, LOW, atol=1e-15)
    np.testing.assert_allclose(space.high_m, HIGH, atol=1e-15)
    assert space.spacing_m == pytest.approx(STEP)


def test_grid_that_does_not_divide_the_window_is_centred():
    space = SearchSpace.grid((0.0, 0.0), (1.0, 1.0), 0.3)
    np.testing.assert_allclose((space.low_m, space.high_m), [[0.05, 0.05], [0.95, 0.95]])


def test_nearest_against_all_distances():
    rng = np.random.default_rng(0)
    space = SearchSpace.from_positions(rng.random((200, 2)))
    asked = rng.random((50, 2))
    expected = np.linalg.norm(asked[:, None] - space.candidates_m[None], axis=2).argmin(axis=1)
    np.testing.assert_array_equal(space.nearest(asked), expected)


def test_recorded_scan_keeps_duplicates_and_can_not_be_changed():
    space = SearchSpace.from_positions([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert len(space) == 3 and space.recorded and space.spacing_m == 1.0
    with pytest.raises(ValueError, match="read-only"):
        space.candidates_m[0] = 1.0


@pytest.mark.parametrize("positions", [np.empty((0, 2)), np.zeros((3, 3)), np.zeros(2)])
def test_space_refuses_what_is_no_list_of_positions(positions):
    with pytest.raises(SearchSpaceError, match=r"shape \(m, 2\)"):
        SearchSpace.from_positions(positions)


def test_space_refuses_what_is_not_finite():
    with pytest.raises(SearchSpaceError, match="1 of 2 are not, the first at index 1"):
        SearchSpace.from_positions([[0.0, 0.0], [np.nan, 0.0]])


@pytest.mark.parametrize(
    ("low", "high", "step", "match"),
    [
        ((0, 0), (-1, 1), 0.1, "low <= high"),
        ((0, 0), (np.inf, 1), 0.1, "finite"),
        ((0, 0), (1, 1), 0.0, "positive length"),
    ],
)
def test_window_errors(low, high, step, match):
    for make in (patterns.raster, patterns.fermat_spiral, SearchSpace.grid):
        with pytest.raises(SearchSpaceError, match=match):
            make(low, high, step)


def test_raster_is_a_snake_over_the_grid():
    order = patterns.raster(LOW, HIGH, STEP)
    np.testing.assert_allclose(np.linalg.norm(np.diff(order, axis=0), axis=1), STEP, rtol=1e-9)
    as_set = {tuple(np.rint(p / 1e-10)) for p in order}
    assert as_set == {tuple(np.rint(p / 1e-10)) for p in SearchSpace.grid(LOW, HIGH, STEP).candidates_m}


def test_spiral_has_one_point_per_square_step_and_starts_at_the_centre():
    order = patterns.fermat_spiral(LOW, HIGH, STEP)
    low, high = np.array(LOW), np.array(HIGH)
    np.testing.assert_allclose(order[0], (low + high) / 2)
    assert ((order >= low) & (order <= high)).all()
    assert len(order) == pytest.approx(np.prod(high - low) / STEP**2, rel=0.03)
    # Even: the Fermat spiral's neighbours are about 0.9 steps apart, never under half a step.
    assert nearest_distances(order).min() > 0.5 * STEP


def test_random_is_inside_and_repeats_with_its_seed():
    first = patterns.random_uniform(LOW, HIGH, 500, seed=3)
    assert ((first >= LOW) & (first <= HIGH)).all()
    np.testing.assert_array_equal(first, patterns.random_uniform(LOW, HIGH, 500, seed=3))
    assert not np.array_equal(first, patterns.random_uniform(LOW, HIGH, 500, seed=4))


@pytest.mark.parametrize("pattern", [patterns.raster, patterns.fermat_spiral])
def test_within_budget_covers_the_window(pattern):
    order = patterns.within_budget(pattern, LOW, HIGH, STEP, 100)
    assert 80 <= len(order) <= 100
    assert largest_gap(SearchSpace.grid(LOW, HIGH, STEP).candidates_m, order) < 3.5 * STEP
    np.testing.assert_array_equal(patterns.within_budget(pattern, LOW, HIGH, STEP, 1000), pattern(LOW, HIGH, STEP))
    with pytest.raises(SearchSpaceError, match="at least 1 frame"):
        patterns.within_budget(pattern, LOW, HIGH, STEP, 0)


def test_coverage_order_is_a_permutation_even_at_every_prefix():
    points = SearchSpace.grid((0.0, 0.0), (1.0, 1.0), 0.05).candidates_m
    order = patterns.coverage_order(points, seed=0)
    np.testing.assert_array_equal(np.sort(order.view("f8,f8"), axis=0), np.sort(points.copy().view("f8,f8"), axis=0))
    np.testing.assert_allclose(order[0], 0.5)
    for k in (2, 5, 10, 20, 40, 80, 160, 320):
        # Farthest-first: chosen points are never closer to each other than the gap that is left (Gonzalez 1985).
        assert nearest_distances(order[:k]).min() >= largest_gap(points, order[:k]) - 1e-9


def test_coverage_order_keeps_duplicates():
    points = np.zeros((5, 2))
    assert len(patterns.coverage_order(points, seed=0)) == 5


def test_two_opt_never_lengthens_and_keeps_every_point():
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 8, 40):
        points, start = rng.random((n, 2)), rng.random(2)
        near = nearest_neighbour(points, start)
        better = two_opt(points, near, start)
        assert sorted(better) == list(range(n))
        assert path_length_m(points[better], start) <= path_length_m(points[near], start) + 1e-12
        if n == 40:
            assert path_length_m(points[better], start) < 0.5 * path_length_m(points, start)


def test_route_finds_the_best_order_of_few_points():
    from itertools import permutations

    rng = np.random.default_rng(2)
    found, best = 0.0, 0.0
    for _ in range(10):
        points, start = rng.random((6, 2)), rng.random(2)
        best += min(path_length_m(points[list(order)], start) for order in permutations(range(6)))
        found += path_length_m(points[route(points, start)], start)
    assert found <= 1.05 * best


def test_two_opt_undoes_a_crossing():
    points = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    order = two_opt(points, np.arange(3), np.zeros(2))
    assert path_length_m(points[order], np.zeros(2)) == pytest.approx(3.0)  # along three sides of the square
    assert len(route(np.empty((0, 2)))) == 0


def test_constraints():
    points = SearchSpace.grid((0.0, 0.0), (1.0, 1.0), 0.25).candidates_m
    allowed = outside_boxes(points, [((0.0, 0.0), (0.5, 0.5))])
    assert allowed.sum() == 25 - 9 and not allowed[0]
    assert outside_boxes(points, []).all()
    with pytest.raises(SearchSpaceError, match="leave none"):
        outside_boxes(points, [((0.0, 0.0), (1.0, 1.0))])
    np.testing.assert_array_equal(overlapping(np.array([0.5, 1.0, 1.1]), 1.0), [True, True, False])
    assert overlapping(np.full(3, np.inf), 1.0).all()
