"""Boxes that the probe must not enter, on its way neither; and step scans that heed them."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cdi.config import Config
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.plans import adaptive_ptycho, ptycho_raster, ptycho_spiral
from bluesky_cdi.plans._keep_out import KeepOut
from bluesky_cdi.protocols import ScanArea
from bluesky_cdi.reconstruction.build import build_agent
from bluesky_cdi.remote.messages import pack_area, unpack_area
from bluesky_cdi.sim_devices import SimShutter

UM = 1e-6
LOW, HIGH = np.array([-2.0, -2.0]) * UM, np.array([2.0, 2.0]) * UM
BOX = ((-0.5, -0.5), (0.5, 0.5))
PLACES = st.tuples(*[st.integers(-20, 20).map(lambda v: v / 10)] * 2)


def inside(points, boxes):
    """An oracle by sampling: whether any of some points is inside of a box."""
    return any(((points > np.array(low)) & (points < np.array(high))).all(axis=1).any() for low, high in boxes)


def box_at(y, x, half_y, half_x):
    return ((y - half_y, x - half_x), (y + half_y, x + half_x))


BOXES = st.lists(
    st.builds(box_at, *[st.integers(-15, 15).map(lambda v: v / 10)] * 2, *[st.sampled_from([0.15, 0.35, 0.55])] * 2),
    max_size=3,
)


@settings(max_examples=50)
@given(BOXES, PLACES, PLACES)
def test_straight_lines(boxes, a, b):
    keep_out = KeepOut.of_um(boxes)
    line = np.array(a) + np.linspace(0, 1, 2001)[:, None] * (np.array(b) - a)
    passes = keep_out.lets_pass(np.array(a) * UM, np.array(b) * UM)
    # A line may touch a corner between two samples.
    less, more = np.array([[2e-3] * 2, [-2e-3] * 2]), np.array([[-2e-3] * 2, [2e-3] * 2])
    if inside(line, [np.add(box, less) for box in boxes]):
        assert not passes
    if not inside(line, [np.add(box, more) for box in boxes]):
        assert passes


@settings(max_examples=50)
@given(BOXES, PLACES, PLACES)
def test_ways_never_enter_wherever_the_axes_are_between_two_places(boxes, a, b):
    keep_out = KeepOut.of_um(boxes)
    a, b = np.array(a), np.array(b)
    if not keep_out.allows(np.array([a, b]) * UM).all():
        return
    way = keep_out.way(a * UM, b * UM, LOW, HIGH)
    if way is None:
        return
    np.testing.assert_array_equal(way[-1], b * UM)
    shares = np.linspace(0, 1, 21)
    for begin, end in pairwise([a * UM, *way]):
        grid = np.stack(np.meshgrid(*(begin[i] + shares * (end[i] - begin[i]) for i in (0, 1))), -1).reshape(-1, 2)
        assert not inside(grid / UM, boxes)
        assert (grid >= LOW - 1e-15).all() and (grid <= HIGH + 1e-15).all()


def test_there_is_a_way_around_a_box_and_none_through_a_wall():
    a, b = np.array([0.0, -1.0]) * UM, np.array([0.0, 1.0]) * UM
    way = KeepOut.of_um([BOX]).way(a, b, LOW, HIGH)
    assert len(way) == 3
    length = np.hypot(*np.diff([a, *way], axis=0).T).sum()
    assert length == pytest.approx((2 * np.hypot(0.48, 0.52) + 1.04) * UM)
    assert KeepOut.of_um([((-3, -0.5), (3, 0.5))]).way(a, b, LOW, HIGH) is None
    (straight,) = KeepOut.of_um([BOX]).way(a, a + 0.3 * UM * np.array([1, 0]), LOW, HIGH)
    np.testing.assert_allclose(straight, np.add(a, [0.3 * UM, 0]))


@pytest.mark.parametrize("box", [((1, 1), (0, 2)), ((0, 0), (1, np.nan)), (0, 1), ((0, 0, 0), (1, 1, 1))])
def test_what_is_no_box(box):
    with pytest.raises(GeometryError, match="low corner first"):
        KeepOut.of_um([box])


@pytest.mark.parametrize("plan", [ptycho_raster, ptycho_spiral])
def test_patterns_leave_out_what_is_inside_and_move_around_it(RE, docs, devices, plan):
    devices.y.restrict((-5.0, 5.0), -1.0)
    moves = []
    RE.msg_hook = lambda message: (
        moves.append((message.obj.name, message.args[0])) if message.command == "set" else None
    )
    RE(plan(*devices.arguments, extent_um=(2.0, 2.0), step_um=0.4, keep_out_um=[BOX]))
    RE.msg_hook = None
    measured = docs.measured_um
    assert not inside(measured, [BOX]) and len(measured) > 10
    # Wherever the axes are during a move, they are outside.
    here = {"stage_y": -1.0, "stage_x": 0.0}
    path = []
    for name, value in moves:
        here[name] = value
        path.append([here["stage_y"], here["stage_x"]])
    places = np.array(path)[1::2]
    shares = np.linspace(0, 1, 21)
    for begin, end in pairwise(places):
        grid = np.stack(np.meshgrid(*(begin[i] + shares * (end[i] - begin[i]) for i in (0, 1))), -1).reshape(-1, 2)
        assert not inside(grid, [BOX])


def test_proposals_inside_are_left_out(RE, docs, devices, script, propose, caplog):
    devices.y.restrict((-5.0, 5.0), -1.0)
    live = script(propose([[0.0, 0.0], [-0.8, 0.8]]), propose([[0.2, 0.2]]), path_um=[[0.1, 0.1]])
    options = {"extent_um": (2.0, 2.0), "step_um": 0.2, "budget": 9, "batch": 2, "decision_timeout_s": 600.0}
    result = RE(adaptive_ptycho(*devices.arguments, live, keep_out_um=[BOX], **options))
    assert result.plan_result == "no proposed position can be measured"
    np.testing.assert_allclose(docs.measured_um, [[-0.8, 0.8]], atol=1e-9)
    assert "1 proposed positions lie where the probe must not go" in caplog.text
    # Who proposes knows of it.
    ((low, high),) = live.areas[0].keep_out_m
    np.testing.assert_allclose([low, high], np.array(BOX) * UM)


@pytest.mark.parametrize("name", ["bayesian", "raster", "spiral", "random"])
def test_agents_propose_nothing_inside(name):
    area = ScanArea((-1e-6, -1e-6), (1e-6, 1e-6), 0.2e-6, 20, keep_out_m=(((-0.5e-6, -0.5e-6), (0.5e-6, 0.5e-6)),))
    area = unpack_area(json.loads(json.dumps(pack_area(area))))
    config = Config.model_validate({"agent": {"name": name}})
    proposed = build_agent(area, config, probe_width_m=0.4e-6).propose(16).positions_m
    assert len(proposed) and not inside(proposed / UM, [BOX])


def test_a_stage_that_is_inside_is_not_moved(RE, devices):
    with pytest.raises(GeometryError, match="move it out of there by hand"):
        RE(ptycho_raster(*devices.arguments, extent_um=(2.0, 2.0), step_um=0.4, keep_out_um=[BOX]))
    assert devices.y.position == devices.x.position == 0


def test_a_shutter_is_open_while_a_scan_measures_and_closed_whatever_ends_it(RE, docs, devices):
    shutter = SimShutter(name="shutter")
    shutter.put("closed")
    open_at = []
    docs.when_measured = (3, lambda: open_at.append(shutter.is_open))
    RE(ptycho_raster(*devices.arguments, extent_um=(0.4, 0.4), step_um=0.2, shutter=shutter))
    assert open_at == [True] and not shutter.is_open

    def spoil():
        raise RuntimeError("spoilt")

    docs.clear()
    docs.when_measured = (3, spoil)
    with pytest.raises(RuntimeError, match="spoilt"):
        RE(ptycho_raster(*devices.arguments, extent_um=(0.4, 0.4), step_um=0.2, shutter=shutter))
    assert not shutter.is_open
    (dose,) = docs.of("event", "dose")
    assert dose["data"]["dose_openings"] == 1


def test_a_shutter_of_other_words(RE, devices):
    shutter, seen = SimShutter(name="shutter"), []
    shutter.check_value = seen.append
    RE(
        ptycho_raster(
            *devices.arguments, extent_um=(0.4, 0.4), step_um=0.2, shutter=shutter, shutter_states=("Open", "Close")
        )
    )
    assert seen == ["Open", "Close"]
