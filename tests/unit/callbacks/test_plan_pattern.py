"""The windows of Bluesky's own plans, from their start documents: those of the points that they measure."""

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky.simulators import RunEngineSimulator
from ophyd.sim import SynAxis

from bluesky_cdi.callbacks._plan_pattern import plan_pattern

UM = (1e-6, 1e-6)
Y, X = SynAxis(name="sy"), SynAxis(name="sx")


def simulated(plan):
    """Start document and points (y, x) of a plan."""
    messages = RunEngineSimulator().simulate_plan(plan)
    (start,) = (message.kwargs for message in messages if message.command == "open_run")
    here, points = {}, []
    for message in messages:
        if message.command == "set":
            here[message.obj.name] = message.args[0]
        elif message.command == "save":
            points.append([here["sy"], here["sx"]])
    return start, np.array(points)


@pytest.mark.parametrize(
    "plan",
    [
        lambda: bp.grid_scan([], Y, 3, -1, 4, X, 2, 5, 3),
        lambda: bp.grid_scan([], X, 3, -1, 4, Y, 2, 5, 3, snake_axes=True),
        lambda: bp.grid_scan([], Y, 3, -1, 4, X, 2, 5, 3, True),
        lambda: bp.scan([], Y, 0, 1, X, 5, 3, num=4),
        lambda: bp.list_scan([], Y, [3, 1, 2], X, [7, 9, 8]),
        lambda: bp.list_grid_scan([], Y, [3, 1, 2], X, [7, 9, 8, 4]),
        lambda: bp.spiral([], X, Y, 1, -2, 4, 2, 0.5, 5),
        lambda: bp.spiral_fermat([], X, Y, 1, -2, 4, 2, 0.5, 1.0),
    ],
    ids=["grid", "snake", "grid with flags", "line", "list", "list grid", "spiral", "fermat"],
)
def test_first_point_and_bounds(plan):
    start, points = simulated(plan())
    pattern = plan_pattern(start, ("sy", "sx"), UM)
    np.testing.assert_allclose(pattern.first, points[0] * 1e-6, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(pattern.low, points.min(axis=0) * 1e-6, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(pattern.high, points.max(axis=0) * 1e-6, rtol=1e-12, atol=1e-18)


def test_units_of_both_axes():
    start, _ = simulated(bp.grid_scan([], Y, 1, 2, 2, X, 3, 4, 2))
    pattern = plan_pattern(start, ("sy", "sx"), (1e-3, 1e-9))
    np.testing.assert_allclose([pattern.low, pattern.high], [[1e-3, 3e-9], [2e-3, 4e-9]])


def test_around_the_first_point():
    """A relative plan gives distances from where the stage was."""
    start, _ = simulated(bp.grid_scan([], Y, -1, 1, 2, X, -2, 2, 2))
    window = plan_pattern(start, ("sy", "sx"), UM).around(np.array([9e-6, 18e-6]), 0.5e-6)
    np.testing.assert_allclose(window, [[8.5e-6, 17.5e-6], [11.5e-6, 22.5e-6]])


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"plan_pattern": "linspace", "plan_pattern_module": "numpy", "plan_pattern_args": {"start": 0}},
        {"plan_pattern": "spiral", "plan_pattern_module": "my_own", "plan_pattern_args": {}},
        {"plan_pattern": "chunk_outer_product_args", "plan_pattern_module": "bluesky.plan_patterns"},
        {"plan_pattern": "spiral", "plan_pattern_module": "bluesky.plan_patterns", "plan_pattern_args": {"dr": 1}},
        {"plan_pattern": "outer_product", "plan_pattern_module": "bluesky.plan_patterns"},
        {
            "plan_pattern": "inner_list_product",
            "plan_pattern_module": "bluesky.plan_patterns",
            "plan_pattern_args": {"args": ["name='sy'", [1, None], "name='sx'", "there"]},
        },
    ],
)
def test_what_can_not_be_told_is_none(start):
    assert plan_pattern(start, ("sy", "sx"), UM) is None


def test_other_motors_are_none():
    start, _ = simulated(bp.grid_scan([], Y, 1, 2, 2, X, 3, 4, 2))
    assert plan_pattern(start, ("sy", "sz"), UM) is None
