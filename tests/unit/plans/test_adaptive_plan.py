"""The adaptive plan: what it asks, measures and records, against a scripted worker."""

import json
import logging
import threading
import time
from itertools import pairwise

import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.simulators import RunEngineSimulator, assert_message_and_return_remaining
from bluesky.utils import Msg, RunEngineInterrupted
from ophyd import Signal

from bluesky_cdi.errors import DocumentError, GeometryError, WorkerError
from bluesky_cdi.plans import adaptive_ptycho

WINDOW = {"extent_um": (2.0, 2.0), "step_um": 0.2}
A = [[-0.8, -0.8], [-0.8, 0.8]]
B = [[0.8, 0.8], [0.8, -0.8]]
C = [[0.0, 0.0], [0.2, 0.4]]
PATH = [[0.0, 0.6], [0.6, 0.0], [-0.6, 0.0], [0.0, -0.6], [0.4, 0.4], [-0.4, -0.4]]


def plan(devices, live, **changes):
    arguments = {**WINDOW, "budget": 20, "batch": 2, "decision_timeout_s": 5.0, **changes}
    return adaptive_ptycho(*devices.arguments, live, **arguments)


def test_measures_what_was_proposed_and_says_why_it_ended(RE, docs, devices, script, propose):
    live = script(propose(A, "fill"), propose(B), propose([], "nothing more to learn"))
    result = RE(plan(devices, live))
    assert result.plan_result == "nothing more to learn"
    assert result.exit_status == "success"
    np.testing.assert_allclose(docs.measured_um, A + B, atol=1e-9)
    np.testing.assert_allclose(docs.decided_um, A + B, atol=1e-9)
    assert docs.reasons == ["fill", "adapt", "nothing more to learn"]
    # Each decision is asked for before the batch of the one before is measured.
    assert live.asked == [(2, 0), (2, 0), (2, 2)]


def test_metadata(RE, docs, devices, script, propose):
    numbers = {"centre_um": np.array([0.1, 0.2]), "step_um": np.float32(0.25)}
    RE(plan(devices, script(propose(A)), **numbers, md={"sample": "star"}))
    (start,) = docs.of("start")
    assert start["plan_name"] == "adaptive_ptycho"
    assert start["reconstruction_uid"] == "derived-uid"
    assert start["sample"] == "star"
    assert start["motors"] == ["stage_y", "stage_x"]
    assert start["detectors"] == ["det"]
    np.testing.assert_allclose(start["window_m"], [[-0.9e-6, -0.8e-6], [1.1e-6, 1.2e-6]])
    assert json.loads(json.dumps(start["plan_args"])) == {
        "detectors": ["det"], "axis_y": "stage_y", "axis_x": "stage_x", "extent_um": [2.0, 2.0], "step_um": 0.25,
        "centre_um": pytest.approx([0.1, 0.2]), "budget": 20, "batch": 2, "decision_timeout_s": 5.0,
    }  # fmt: skip
    (descriptor,) = [d for d in docs.of("descriptor") if d["name"] == "agent"]
    keys = descriptor["data_keys"]
    assert keys["agent_y"]["units"] == keys["agent_x"]["units"] == "m"
    assert keys["agent_y"]["shape"] == [2]
    assert set(keys) == {
        "agent_y", "agent_x", "agent_expected_gain", "agent_n_proposed", "agent_n_ingested", "agent_n_pending",
        "agent_decision_s", "agent_acquisition", "agent_reason",
    }  # fmt: skip


def test_md_cannot_forge_the_link_to_the_reconstruction(RE, docs, devices, script, propose):
    RE(plan(devices, script(propose(A)), md={"reconstruction_uid": "another"}))
    assert docs.of("start")[0]["reconstruction_uid"] == "derived-uid"


def test_units_of_the_stage(RE, docs, devices, script, propose, monkeypatch):
    monkeypatch.setattr(type(devices.y), "egu", "nm")
    RE(plan(devices, script(propose(A))))
    np.testing.assert_allclose(docs.measured_um, np.array(A) * 1000)


@pytest.mark.parametrize(("budget", "wanted"), [(4, 4), (3, 3), (1, 1)])
def test_budget_is_kept_exactly(RE, docs, devices, script, propose, budget, wanted):
    live = script(propose(A), propose(B), propose(C))
    assert RE(plan(devices, live, budget=budget)).plan_result == "budget"
    assert len(docs.measured_um) == wanted
    np.testing.assert_allclose(docs.decided_um, docs.measured_um, atol=1e-9)
    asked = [n for n, _ in live.asked]
    assert all(n <= budget for n in asked)
    assert sum(asked) == budget


def test_a_batch_larger_than_asked_for_is_cut(RE, docs, devices, script, propose):
    live = script(propose(A + B + C), propose([], "over"))
    assert RE(plan(devices, live)).plan_result == "over"
    np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)


def test_positions_that_cannot_be_measured_are_left_out(RE, docs, devices, script, propose, caplog):
    bad = [[np.nan, 0.0], [0.0, np.inf], [1.1, 0.0], [0.0, -30.0]]
    live = script(propose([bad[0], A[0], *bad[1:], A[1]]), propose([], "over"))
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert RE(plan(devices, live, batch=8)).plan_result == "over"
    assert "4 proposed positions lie outside the window or are not finite: left out" in caplog.text
    np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)
    np.testing.assert_allclose(docs.decided_um, A, atol=1e-9)
    first = docs.of("event", "agent")[0]["data"]
    assert first["agent_n_proposed"] == 2
    np.testing.assert_array_equal(first["agent_expected_gain"][:2], [1.0, 5.0])


def test_the_windows_edge_is_inside(RE, docs, devices, script, propose):
    edge = [[-1.0, -1.0], [1.0, 1.0 + 1e-12]]
    RE(plan(devices, script(propose(edge))))
    np.testing.assert_allclose(docs.measured_um, edge)


def test_agent_that_proposes_nothing_usable_ends_the_scan(RE, docs, devices, script, propose):
    live = script(*[propose([[9.0, 9.0]])] * 5)
    assert RE(plan(devices, live)).plan_result == "no proposed position can be measured"
    assert len(docs.measured_um) == 0
    assert docs.of("stop")[0]["exit_status"] == "success"


def test_late_decision_is_bridged_and_nothing_is_measured_twice(RE, docs, devices, script, propose):
    """The answer comes after six points of the path, and repeats two of them."""
    live = script(propose(A), None, propose([], "over"), path_um=[*A, *PATH])

    def answer():
        while len(docs.measured_um) < 6:
            time.sleep(0.005)
        live.open[0].set_result(propose([PATH[0], B[0], PATH[1]]))

    thread = threading.Thread(target=answer)
    thread.start()
    result = RE(plan(devices, live, batch=3, decision_timeout_s=0.05))
    thread.join()
    assert result.plan_result == "over"
    measured = docs.measured_um
    assert len(np.unique(measured.round(6), axis=0)) == len(measured)
    np.testing.assert_allclose(measured[:5], A + PATH[:3], atol=1e-9)
    np.testing.assert_allclose(measured[-1], B[0], atol=1e-9)
    np.testing.assert_allclose(docs.decided_um, measured, atol=1e-9)
    late = [e["data"] for e in docs.of("event", "agent") if e["data"]["agent_reason"] == "decision late"]
    assert late
    assert all(d["agent_acquisition"] == "coverage path" and np.isnan(d["agent_expected_gain"]).all() for d in late)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_bridging_stays_within_batch_and_budget(RE, docs, devices, script, batch):
    live = script(None, path_um=PATH)
    assert RE(plan(devices, live, batch=batch, budget=5, decision_timeout_s=0.0)).plan_result == "budget"
    np.testing.assert_allclose(docs.measured_um, PATH[:5], atol=1e-9)
    assert set(docs.reasons[:-1]) == {"decision late"}
    assert docs.reasons[-1] == "budget"


def test_the_path_avoids_what_was_measured(RE, docs, devices, script, propose):
    near = [[A[0][0] + 0.05, A[0][1] + 0.05]]
    live = script(propose(A), None, path_um=near + PATH[:2])
    RE(plan(devices, live, budget=4, decision_timeout_s=0.0))
    np.testing.assert_allclose(docs.measured_um, A + PATH[:2], atol=1e-9)


def test_decision_that_was_overtaken_completely_is_asked_for_again(RE, docs, devices, script, propose):
    live = script(None, propose(B), propose([], "over"), path_um=PATH[:2])

    def answer():
        while len(docs.measured_um) < 2:
            time.sleep(0.005)
        live.open[0].set_result(propose(PATH[:2], "fill"))

    thread = threading.Thread(target=answer)
    thread.start()
    assert RE(plan(devices, live, decision_timeout_s=0.05)).plan_result == "over"
    thread.join()
    np.testing.assert_allclose(docs.measured_um, PATH[:2] + B, atol=1e-9)
    assert live.asked[1] == (2, 2)


def test_used_up_path_waits_for_the_decision(RE, docs, devices, script, propose):
    live = script(None, propose([], "over"), path_um=PATH[:2])
    timer = threading.Timer(0.4, lambda: live.open[0].set_result(propose(B)))
    timer.start()
    assert RE(plan(devices, live, decision_timeout_s=0.02)).plan_result == "over"
    timer.join()
    np.testing.assert_allclose(docs.measured_um, PATH[:2] + B, atol=1e-9)


@pytest.mark.parametrize("path", [PATH, []], ids=["bridging", "waiting"])
def test_worker_error_ends_the_plan(RE, docs, devices, script, path):
    live = script(None, path_um=path)
    threading.Timer(0.1, lambda: setattr(live, "error", WorkerError("the network broke"))).start()
    with pytest.raises(WorkerError, match="the network broke"):
        RE(plan(devices, live, decision_timeout_s=0.03))
    (stop,) = docs.of("stop")
    assert stop["exit_status"] == "fail"
    assert "the network broke" in stop["reason"]
    assert len(docs.measured_um) == len(np.unique(docs.measured_um, axis=0))


def test_refused_question_ends_the_plan(RE, docs, devices, script, propose):
    live = script(propose(A), WorkerError("the network broke"))
    with pytest.raises(WorkerError, match="the network broke"):
        RE(plan(devices, live))
    np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)
    assert docs.of("stop")[0]["exit_status"] == "fail"


def test_refused_scan_opens_no_run(RE, docs, devices, script):
    live = script()
    live.begin = lambda area: live.request(0, 0)
    live.answers = [WorkerError("no network")]
    with pytest.raises(WorkerError, match="no network"):
        RE(plan(devices, live))
    assert docs == []


@pytest.mark.parametrize(
    "changes",
    [
        {"extent_um": (0.0, 1.0)}, {"extent_um": (-1.0, 1.0)}, {"extent_um": 1.0}, {"extent_um": (1.0,)},
        {"extent_um": (1.0, np.nan)}, {"extent_um": "wide"}, {"extent_um": None}, {"step_um": 0.0},
        {"step_um": np.inf}, {"step_um": np.nan}, {"budget": 0}, {"centre_um": (0.0, np.inf)},
    ],
)  # fmt: skip
def test_impossible_window(RE, docs, devices, script, changes):
    live = script()
    with pytest.raises(GeometryError, match="a scan needs centre_um and extent_um"):
        RE(plan(devices, live, **changes))
    assert docs == [] and live.areas == []


def test_impossible_batch(RE, devices, script):
    with pytest.raises(GeometryError, match="batch of at least 1 position; got batch=0"):
        RE(plan(devices, script(), batch=0))


@pytest.mark.parametrize("unit", [None, "", "deg"])
def test_axis_without_a_length(RE, docs, devices, script, unit):
    axis = Signal(name="stage_x", value=0.0)
    axis.egu = unit
    with pytest.raises(DocumentError, match="stage_x must state a unit of length"):
        RE(adaptive_ptycho([devices.detector], devices.y, axis, script(), **WINDOW, budget=3))
    assert docs == []


def test_messages_without_hardware(devices, script, propose):
    live = script(propose(A), propose([], "over"))
    messages = RunEngineSimulator().simulate_plan(plan(devices, live))
    detector = devices.detector
    rest = assert_message_and_return_remaining(messages, lambda m: m.command == "stage" and m.obj is detector)
    rest = assert_message_and_return_remaining(rest, lambda m: m.command == "open_run")
    assert rest[0].kwargs["reconstruction_uid"] == "derived-uid"
    rest = assert_message_and_return_remaining(rest, lambda m: m.command == "create" and m.kwargs["name"] == "agent")
    for y, x in A:
        rest = assert_message_and_return_remaining(rest, lambda m: m.command == "checkpoint")
        rest = assert_message_and_return_remaining(
            rest, lambda m, y=y: m.command == "set" and m.obj is devices.y and m.args == (pytest.approx(y),)
        )
        rest = assert_message_and_return_remaining(
            rest, lambda m, x=x: m.command == "set" and m.obj is devices.x and m.args == (pytest.approx(x),)
        )
        rest = assert_message_and_return_remaining(rest, lambda m: m.command == "trigger" and m.obj is detector)
        rest = assert_message_and_return_remaining(
            rest, lambda m: m.command == "create" and m.kwargs["name"] == "primary"
        )
        rest = assert_message_and_return_remaining(rest, lambda m: m.command == "save")
        # Right after the event, so that a pause does not take it again.
        assert rest[1].command == "checkpoint"
    rest = assert_message_and_return_remaining(rest, lambda m: m.command == "close_run")
    assert_message_and_return_remaining(rest, lambda m: m.command == "unstage" and m.obj is detector)


def every_pause(messages, at):
    """Insert a pause after message number `at`."""
    counter = iter(range(10_000))

    def insert(message):
        if next(counter) == at:
            return None, (message for message in [Msg("pause")])
        return None, None

    return bpp.plan_mutator(messages, insert)


def drop_replaced(docs):
    """Leave out events whose number comes again in their stream; how many there were."""
    last = {(doc["descriptor"], doc["seq_num"]): doc["uid"] for doc in docs.of("event")}
    kept = [pair for pair in docs if pair[0] != "event" or pair[1]["uid"] in last.values()]
    dropped = len(docs) - len(kept)
    docs[:] = kept
    return dropped


def test_a_pause_anywhere_loses_and_repeats_nothing(RE, docs, devices, script, propose):
    """Pause after every message of the run in turn; what is measured and recorded stays the same.

    Only between an event and the checkpoint that follows it, the RunEngine can't but take the event
    again: under the same number and at the same place, so that the last one counts.
    """

    def messages():
        return plan(devices, script(propose(A), propose(B), propose([], "over")))

    commands = [m.command for m in RunEngineSimulator().simulate_plan(messages())]
    opened, closed = commands.index("open_run"), commands.index("close_run")
    for at in range(opened + 2, closed):
        docs.clear()
        with pytest.raises(RunEngineInterrupted):
            RE(every_pause(messages(), at))
        assert RE.state == "paused", commands[at]
        result = RE.resume()
        assert result.plan_result == "over", commands[at]
        taken_again = drop_replaced(docs)
        assert taken_again == (commands[at] == "save"), commands[at]
        events = docs.of("event", "primary")
        assert [e["seq_num"] for e in events] == [1, 2, 3, 4], (at, commands[at])
        np.testing.assert_allclose(docs.measured_um, A + B, atol=1e-9)
        np.testing.assert_allclose(docs.decided_um, A + B, atol=1e-9)
        assert docs.of("stop")[0]["num_events"] == {"agent": 3, "primary": 4}


@pytest.mark.parametrize("end", ["resume", "abort", "stop"])
def test_pause_while_waiting_for_a_decision(RE, docs, devices, script, propose, end):
    live = script(propose(A), None, propose([], "over"))

    def pause():
        assert live.is_asked.wait(5)
        while len(docs.measured_um) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        RE.request_pause()

    thread = threading.Thread(target=pause)
    thread.start()
    with pytest.raises(RunEngineInterrupted):
        RE(plan(devices, live, decision_timeout_s=60.0))
    thread.join()
    assert RE.state == "paused"
    if end == "resume":
        live.open[0].set_result(propose(B))
        assert RE.resume().plan_result == "over"
        np.testing.assert_allclose(docs.measured_um, A + B, atol=1e-9)
    else:
        getattr(RE, end)()
        np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)
    assert docs.of("stop")[0]["exit_status"] == ("abort" if end == "abort" else "success")


def test_waiting_does_not_block_the_run_engine(RE, docs, devices, script, propose):
    """The event loop runs on while the plan waits: it ticks all the time."""
    live = script(None, propose([], "over"))
    ticks = []

    def tick():
        ticks.append(time.monotonic())
        RE.loop.call_later(0.01, tick)

    RE.loop.call_soon_threadsafe(tick)
    threading.Timer(0.5, lambda: live.open[0].set_result(propose([], "stop"))).start()
    RE(plan(devices, live, decision_timeout_s=60.0))
    assert len(ticks) > 15
    assert max(b - a for a, b in pairwise(ticks)) < 0.2
