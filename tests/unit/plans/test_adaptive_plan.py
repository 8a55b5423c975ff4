"""The adaptive plan: what it asks, measures and records, against a scripted worker."""

import json
import logging
import threading

import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.simulators import RunEngineSimulator, assert_message_and_return_remaining
from bluesky.utils import Msg, RunEngineInterrupted
from ophyd import Signal

from bluesky_cdi.errors import ConfigError, DocumentError, GeometryError, WorkerError
from bluesky_cdi.plans import adaptive_ptycho
from bluesky_cdi.plans._beside import Beside

WINDOW = {"extent_um": (2.0, 2.0), "step_um": 0.2}
A = [[-0.8, -0.8], [-0.8, 0.8]]
B = [[0.8, 0.8], [0.8, -0.8]]
C = [[0.0, 0.0], [0.2, 0.4]]
PATH = [[0.0, 0.6], [0.6, 0.0], [-0.6, 0.0], [0.0, -0.6], [0.4, 0.4], [-0.4, -0.4]]

LATE_AT_ONCE = {"decision_timeout_s": 0.0}
NEVER_LATE = {"decision_timeout_s": 600.0}


def plan(devices, live, **changes):
    arguments = {**WINDOW, "budget": 20, "batch": 2, **NEVER_LATE, **changes}
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
        "detectors": ["det"],
        "axis_y": "stage_y",
        "axis_x": "stage_x",
        "extent_um": [2.0, 2.0],
        "step_um": 0.25,
        "centre_um": pytest.approx([0.1, 0.2]),
        "budget": 20,
        "batch": 2,
        **NEVER_LATE,
        "on_reconstruction_failure": "continue",
    }
    (descriptor,) = [d for d in docs.of("descriptor") if d["name"] == "agent"]
    keys = descriptor["data_keys"]
    assert keys["agent_y"]["units"] == keys["agent_x"]["units"] == "m"
    assert keys["agent_y"]["shape"] == [2]
    assert set(keys) == {
        "agent_y",
        "agent_x",
        "agent_expected_gain",
        "agent_n_proposed",
        "agent_n_ingested",
        "agent_n_pending",
        "agent_decision_s",
        "agent_acquisition",
        "agent_reason",
    }


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
    """The answer comes with the sixth point, and repeats two of the path."""
    live = script(propose(A), None, propose([], "over"), path_um=[*A, *PATH])
    docs.when_measured = 6, lambda: live.open[0].set_result(propose([PATH[0], B[0], PATH[1]]))
    assert RE(plan(devices, live, batch=3, **LATE_AT_ONCE)).plan_result == "over"
    # The answer is looked for when the second three points of the path are measured.
    np.testing.assert_allclose(docs.measured_um, [*A, *PATH, B[0]], atol=1e-9)
    np.testing.assert_allclose(docs.decided_um, docs.measured_um, atol=1e-9)
    assert docs.reasons == ["adapt", "decision late", "decision late", "adapt", "over"]
    late = [e["data"] for e in docs.of("event", "agent") if e["data"]["agent_reason"] == "decision late"]
    assert all(d["agent_acquisition"] == "coverage path" and np.isnan(d["agent_expected_gain"]).all() for d in late)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_bridging_stays_within_batch_and_budget(RE, docs, devices, script, batch):
    live = script(None, path_um=PATH)
    assert RE(plan(devices, live, batch=batch, budget=5, **LATE_AT_ONCE)).plan_result == "budget"
    np.testing.assert_allclose(docs.measured_um, PATH[:5], atol=1e-9)
    assert set(docs.reasons[:-1]) == {"decision late"}
    assert docs.reasons[-1] == "budget"


def test_the_path_avoids_what_was_measured(RE, docs, devices, script, propose):
    near = [[A[0][0] + 0.05, A[0][1] + 0.05]]
    live = script(propose(A), None, path_um=near + PATH[:2])
    RE(plan(devices, live, budget=4, **LATE_AT_ONCE))
    np.testing.assert_allclose(docs.measured_um, A + PATH[:2], atol=1e-9)


def test_decision_that_was_overtaken_completely_is_asked_for_again(RE, docs, devices, script, propose):
    live = script(None, propose(B), propose([], "over"), path_um=PATH[:2])
    docs.when_measured = 2, lambda: live.open[0].set_result(propose(PATH[:2], "fill"))
    assert RE(plan(devices, live, **LATE_AT_ONCE)).plan_result == "over"
    np.testing.assert_allclose(docs.measured_um, PATH[:2] + B, atol=1e-9)
    assert live.asked[1] == (2, 2)


def test_used_up_path_waits_for_the_decision_once_more(RE, docs, devices, script, propose, when_waiting):
    live = script(None, propose([], "over"), path_um=PATH[:2])
    docs.when_measured = 2, lambda: when_waiting(lambda: live.open[0].set_result(propose(B)))
    assert RE(plan(devices, live, decision_timeout_s=0.6)).plan_result == "over"
    np.testing.assert_allclose(docs.measured_um, PATH[:2] + B, atol=1e-9)


def failing(live):
    def fail():
        live.error = WorkerError("the network broke.")

    return fail


@pytest.mark.parametrize("late", [LATE_AT_ONCE, NEVER_LATE], ids=["bridging", "waiting"])
def test_scan_goes_on_along_the_path_when_the_reconstruction_fails(
    RE, docs, devices, script, propose, when_waiting, caplog, late
):
    live = script(propose(A), None, path_um=[*A, *PATH])
    docs.when_measured = 4, failing(live)
    when_waiting(failing(live))
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        result = RE(plan(devices, live, **late))
    assert result.exit_status == "success"
    assert result.plan_result == "reconstruction failed: the coverage path is measured"
    np.testing.assert_allclose(docs.measured_um, [*A, *PATH], atol=1e-9)
    np.testing.assert_allclose(docs.decided_um, docs.measured_um, atol=1e-9)
    assert docs.reasons[-2:] == ["reconstruction failed", "reconstruction failed: the coverage path is measured"]
    assert [r.getMessage() for r in caplog.records] == ["the network broke. The scan goes on without it."]


def test_scan_goes_on_to_its_budget(RE, docs, devices, script, propose):
    live = script(propose(A), WorkerError("the network broke."), path_um=PATH)
    docs.when_measured = 1, failing(live)
    assert RE(plan(devices, live, budget=5)).plan_result == "budget"
    np.testing.assert_allclose(docs.measured_um, [*A, *PATH[:3]], atol=1e-9)
    assert docs.reasons == ["adapt", "reconstruction failed", "reconstruction failed", "budget"]


def test_scan_asks_again_when_the_reconstruction_is_there_again(RE, docs, devices, script, propose, caplog):
    live = script(propose(A), WorkerError("it is started again."), propose(B), path_um=PATH)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        RE(plan(devices, live, budget=len(A) + 2 + len(B), batch=2))
    np.testing.assert_allclose(docs.measured_um, [*A, *PATH[:2], *B], atol=1e-9)
    assert docs.reasons == ["adapt", "reconstruction failed", "adapt", "budget"]
    told = [r.getMessage() for r in caplog.records]
    assert told == ["it is started again. The scan goes on without it.", "the reconstruction is there again"]


@pytest.mark.parametrize("path", [PATH, []], ids=["bridging", "waiting"])
def test_failed_reconstruction_ends_the_scan_where_that_is_wished(RE, docs, devices, script, when_waiting, path):
    live = script(None, path_um=path)
    docs.when_measured = 3, failing(live)
    if not path:
        when_waiting(failing(live))
    with pytest.raises(WorkerError, match="the network broke"):
        late = LATE_AT_ONCE if path else NEVER_LATE
        RE(plan(devices, live, on_reconstruction_failure="abort", **late))
    (stop,) = docs.of("stop")
    assert stop["exit_status"] == "fail"
    assert "the network broke" in stop["reason"]
    np.testing.assert_allclose(docs.measured_um, np.reshape(path[:3], (-1, 2)), atol=1e-9)


def test_refused_question_ends_the_scan_where_that_is_wished(RE, docs, devices, script, propose):
    live = script(propose(A), WorkerError("the network broke"))
    with pytest.raises(WorkerError, match="the network broke"):
        RE(plan(devices, live, on_reconstruction_failure="abort"))
    np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)
    assert docs.of("stop")[0]["exit_status"] == "fail"


def test_failed_reconstruction_pauses_the_scan_where_that_is_wished(RE, docs, devices, script, propose):
    live = script(propose(A), WorkerError("the network broke"), path_um=PATH)
    docs.when_measured = 2, failing(live)
    with pytest.raises(RunEngineInterrupted):
        RE(plan(devices, live, budget=5, on_reconstruction_failure="pause"))
    assert RE.state == "paused"
    np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)
    assert RE.resume().plan_result == "budget"
    np.testing.assert_allclose(docs.measured_um, [*A, *PATH[:3]], atol=1e-9)
    assert [e["seq_num"] for e in docs.of("event", "primary")] == [1, 2, 3, 4, 5]


def test_unknown_policy(RE, docs, devices, script):
    with pytest.raises(ConfigError, match="must be one of continue, pause, abort; got 'ignore'"):
        RE(plan(devices, script(), on_reconstruction_failure="ignore"))
    assert docs == []


def test_late_decision_costs_one_wait(RE, docs, devices, script, monkeypatch):
    """The scan waits once; after that it looks and measures."""
    waits = []
    real = Beside.answer

    def answer(self, future, timeout_s):
        waits.append(timeout_s)
        return real(self, future, 0.0)

    monkeypatch.setattr(Beside, "answer", answer)
    assert RE(plan(devices, script(None, path_um=PATH), budget=6)).plan_result == "budget"
    assert waits == [NEVER_LATE["decision_timeout_s"], 0.0, 0.0]


def test_used_up_path_and_no_decision_end_the_scan(RE, docs, devices, script):
    live = script(None, path_um=PATH)
    assert RE(plan(devices, live, **LATE_AT_ONCE)).plan_result == "decision late: the coverage path is measured"
    np.testing.assert_allclose(docs.measured_um, PATH, atol=1e-9)


def test_refused_scan_opens_no_run(RE, docs, devices, script):
    live = script()
    live.begin = lambda area: live.request(0, 0)
    live.answers = [WorkerError("no network.")]
    with pytest.raises(WorkerError, match=r"nothing was measured. no network. A fixed pattern \(ptycho_raster"):
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
def test_pause_while_waiting_for_a_decision(RE, docs, devices, script, propose, when_waiting, beside, end):
    live = script(propose(A), None, propose([], "over"))
    is_waiting = threading.Event()
    when_waiting(is_waiting.set)

    def pause():
        assert is_waiting.wait(30)
        RE.request_pause()

    with beside(pause), pytest.raises(RunEngineInterrupted):
        RE(plan(devices, live, **NEVER_LATE))
    assert RE.state == "paused"
    if end == "resume":
        live.open[0].set_result(propose(B))
        assert RE.resume().plan_result == "over"
        np.testing.assert_allclose(docs.measured_um, A + B, atol=1e-9)
    else:
        getattr(RE, end)()
        np.testing.assert_allclose(docs.measured_um, A, atol=1e-9)
    assert docs.of("stop")[0]["exit_status"] == ("abort" if end == "abort" else "success")


def test_waiting_does_not_block_the_run_engine(RE, docs, devices, script, propose, when_waiting):
    """The answer comes from the event loop itself, after it has turned many times: if it stood still, none came."""
    live = script(None, propose([], "over"))
    turns = []

    def turn():
        turns.append(len(turns))
        if len(turns) == 20:
            live.open[0].set_result(propose([], "stop"))
        else:
            RE.loop.call_later(1e-3, turn)

    when_waiting(lambda: RE.loop.call_soon(turn))
    assert RE(plan(devices, live, **NEVER_LATE)).plan_result == "stop"
    assert len(turns) == 20
