"""Raster and spiral, with and without a worker."""

import json
import logging

import numpy as np
import pytest
from bluesky.simulators import RunEngineSimulator, assert_message_and_return_remaining
from bluesky.utils import RunEngineInterrupted

from bluesky_cdi.errors import DocumentError, GeometryError, WorkerError
from bluesky_cdi.plans import ptycho_raster, ptycho_spiral
from bluesky_cdi.plans._measure import instrument_of

WINDOW = {"extent_um": (0.4, 0.6), "step_um": 0.2, "centre_um": (1.0, -1.0)}
RASTER = [
    [0.8, -1.3], [0.8, -1.1], [0.8, -0.9], [0.8, -0.7], [1.0, -0.7], [1.0, -0.9], [1.0, -1.1], [1.0, -1.3],
    [1.2, -1.3], [1.2, -1.1], [1.2, -0.9], [1.2, -0.7],
]  # fmt: skip
PLANS = [ptycho_raster, ptycho_spiral]


def test_raster_goes_to_and_fro(RE, docs, devices):
    assert RE(ptycho_raster(*devices.arguments, **WINDOW)).plan_result == "complete"
    np.testing.assert_allclose(docs.measured_um, RASTER, atol=1e-9)


def test_spiral_fills_the_window_evenly(RE, docs, devices):
    window = {**WINDOW, "extent_um": (2.0, 2.0)}
    assert RE(ptycho_spiral(*devices.arguments, **window)).plan_result == "complete"
    offset = docs.measured_um - window["centre_um"]
    assert (np.abs(offset) <= 1.0 + 1e-9).all()
    assert len(offset) == pytest.approx(4.0 / 0.2**2, rel=0.1)
    np.testing.assert_allclose(offset[0], 0, atol=1e-9)
    distance = np.linalg.norm(offset[:, None] - offset[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 0.1


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("with_worker", [True, False])
def test_metadata(RE, docs, devices, script, plan, with_worker):
    live = script() if with_worker else None
    RE(plan(*devices.arguments, live, **WINDOW, md={"sample": "star"}))
    (start,), (stop,) = docs.of("start"), docs.of("stop")
    n = len(docs.measured_um)
    assert start["num_points"] == start["budget"] == stop["num_events"]["primary"] == n
    assert start["plan_name"] == plan.__name__
    assert start["sample"] == "star"
    np.testing.assert_allclose(start["window_m"], [[0.8e-6, -1.3e-6], [1.2e-6, -0.7e-6]])
    assert json.loads(json.dumps(start["plan_args"])) == {
        "detectors": ["det"],
        "axis_y": "stage_y",
        "axis_x": "stage_x",
        "extent_um": [0.4, 0.6],
        "step_um": 0.2,
        "centre_um": [1.0, -1.0],
    }
    if live is None:
        assert "reconstruction_uid" not in start
    else:
        assert start["reconstruction_uid"] == "derived-uid"
        (area,) = live.areas
        assert (area.adaptive, area.budget) == (False, n)
        assert live.asked == []


@pytest.fixture
def failing(RE, script):
    """A worker that fails with the first event."""
    live = script()
    RE.subscribe(lambda *_: setattr(live, "error", WorkerError("the network broke.")), "event")
    return live


@pytest.mark.parametrize("plan", PLANS)
def test_scan_goes_on_when_the_reconstruction_fails(RE, docs, devices, failing, plan, caplog):
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        assert RE(plan(*devices.arguments, failing, **WINDOW)).plan_result == "complete"
    assert docs.of("stop")[0]["exit_status"] == "success"
    assert len(docs.measured_um) == docs.of("start")[0]["num_points"]
    assert [r.getMessage() for r in caplog.records] == ["the network broke. The scan goes on without it."]


@pytest.mark.parametrize("plan", PLANS)
def test_failed_reconstruction_ends_the_scan_where_that_is_wished(RE, docs, devices, failing, plan):
    with pytest.raises(WorkerError, match="the network broke"):
        RE(plan(*devices.arguments, failing, **WINDOW, on_reconstruction_failure="abort"))
    assert docs.of("stop")[0]["exit_status"] == "fail"
    assert len(docs.measured_um) == 1


def test_failed_reconstruction_pauses_the_scan_where_that_is_wished(RE, docs, devices, failing):
    with pytest.raises(RunEngineInterrupted):
        RE(ptycho_raster(*devices.arguments, failing, **WINDOW, on_reconstruction_failure="pause"))
    assert RE.state == "paused" and len(docs.measured_um) == 1
    assert RE.resume().plan_result == "complete"
    np.testing.assert_allclose(docs.measured_um, RASTER, atol=1e-9)


def test_scan_without_a_reconstruction_that_cannot_begin(RE, docs, devices, script, caplog):
    live = script()
    live.begin = lambda area: live.request(0, 0)
    live.answers = [WorkerError("no network.")]
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        assert RE(ptycho_raster(*devices.arguments, live, **WINDOW)).plan_result == "complete"
    assert "reconstruction_uid" not in docs.of("start")[0]
    assert [r.getMessage() for r in caplog.records] == ["no network. The scan goes on without it."]


@pytest.mark.parametrize("plan", PLANS)
def test_impossible_input(RE, docs, devices, plan):
    with pytest.raises(GeometryError, match=r"got .*step_um=-1"):
        RE(plan(*devices.arguments, **{**WINDOW, "step_um": -1}))
    devices.detector.egu = "deg"
    with pytest.raises(DocumentError, match="det must state a unit of length"):
        RE(plan([], devices.y, devices.detector, **WINDOW))
    assert docs == []


def test_messages_without_hardware(devices):
    messages = RunEngineSimulator().simulate_plan(ptycho_raster(*devices.arguments, **WINDOW))
    rest = assert_message_and_return_remaining(messages, lambda m: m.command == "stage")
    rest = assert_message_and_return_remaining(rest, lambda m: m.command == "open_run")
    for y, x in RASTER:
        rest = assert_message_and_return_remaining(rest, lambda m: m.command == "checkpoint")
        assert [(m.obj, m.args[0]) for m in rest[1:3]] == [(devices.y, pytest.approx(y)), (devices.x, pytest.approx(x))]
        rest = assert_message_and_return_remaining(rest, lambda m: m.command == "trigger")
        rest = assert_message_and_return_remaining(rest, lambda m: m.command == "save")
        assert rest[1].command == "checkpoint"
        rest = rest[2:]
    rest = assert_message_and_return_remaining(rest, lambda m: m.command == "close_run")
    assert_message_and_return_remaining(rest, lambda m: m.command == "unstage")


class DescribedAxis:
    """An axis that states its unit in what it describes, awaited for as those of ophyd-async."""

    parent = None

    def __init__(self, name, units, *, is_async=True):
        self.name, self.units = name, units
        if is_async:
            self.describe = self._described_later

    def describe(self):
        return {self.name: {"source": "t", "dtype": "number", "shape": [], "units": self.units}}

    async def _described_later(self):
        return DescribedAxis.describe(self)


@pytest.mark.parametrize("is_async", [False, True])
def test_units_from_what_axes_describe(run_engine, is_async):
    found = []

    def plan(units):
        found.append((yield from instrument_of([], *(DescribedAxis(n, units, is_async=is_async) for n in "yx"))))

    with run_engine() as engine:
        engine(plan("Millimeters"))
        assert found[0].metres == (1e-3, 1e-3)
        with pytest.raises(DocumentError, match=r"^y must state a unit of length, one of m, .*; it states 'steps'"):
            engine(plan("steps"))
