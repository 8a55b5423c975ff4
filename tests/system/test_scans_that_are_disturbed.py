"""Pauses, aborts, slow decisions and a slow reconstruction."""

import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.utils import Msg, RunEngineInterrupted

from bluesky_cdi.catalog import load_result

SOON_S = 240.0


def pause_after(plan, *wanted):
    """Insert a pause after the n-th message of a command, for each (command, n)."""
    seen = {}

    def insert(message):
        seen[message.command] = seen.get(message.command, 0) + 1
        if (message.command, seen[message.command]) in wanted:
            return None, (m for m in [Msg("pause")])
        return None, None

    return bpp.plan_mutator(plan, insert)


def check_result(lab, status, n):
    lab.session.wait()
    frames = lab.check_raw_run(status, n)
    result = lab.check_derived_run(status)
    assert result.complete and result.n_frames == n
    estimate = load_result(lab.session.catalog, result.uid)
    np.testing.assert_array_equal(estimate.frame_seq_nums, np.arange(1, n + 1))
    np.testing.assert_allclose(estimate.positions_m, lab.docs.measured_m, atol=1e-12)
    return frames


def test_pauses_in_the_middle(lab):
    """In an exposure, in a move, and in a decision: no event twice, every frame right."""
    plan = pause_after(lab.adaptive(), ("trigger", 5), ("set", 14), ("create", 12), ("checkpoint", 30))
    with pytest.raises(RunEngineInterrupted):
        lab.run(plan)
    for _ in range(3):
        assert lab.session.RE.state == "paused"
        with pytest.raises(RunEngineInterrupted):
            lab.session.RE.resume()
    lab.session.RE.resume()
    check_result(lab, "success", 16)
    np.testing.assert_allclose(lab.docs.decided_m, lab.docs.measured_m, atol=1e-12)


def test_pause_while_waiting_for_a_decision(lab, slow_agent):
    lab.pause_when_waiting(slow_agent)
    slow_agent.go.set()
    lab.session.RE.resume()
    check_result(lab, "success", 16)


def test_abort_keeps_what_was_measured(lab, slow_agent):
    lab.pause_when_waiting(slow_agent)
    lab.session.RE.abort("enough for today")
    slow_agent.go.set()
    check_result(lab, "abort", 8)


def test_late_decisions_are_bridged(lab, slow_agent, monkeypatch):
    """The agent waits until the plan bridges, and the plan until the agent has decided."""
    engine, live = lab.session.RE, lab.session.live
    request, decisions = live.request, []
    monkeypatch.setattr(live, "request", lambda *args: decisions.append(request(*args)) or decisions[-1])

    def let_it_decide(name, doc):
        if name == "event" and doc["data"].get("agent_reason") == "decision late":
            slow_agent.go.set()
            decisions[-1].result(SOON_S)

    token = engine.subscribe(let_it_decide)
    assert lab.run(lab.adaptive(budget=24, batch=6, decision_timeout_s=0.02)) == "budget"
    engine.unsubscribe(token)
    check_result(lab, "success", 24)
    reasons = [e["data"]["agent_reason"] for e in lab.docs.of("event", "agent")]
    assert "decision late" in reasons and set(reasons) != {"decision late"}
    assert len(np.unique(lab.docs.measured_m.round(10), axis=0)) == 24
    np.testing.assert_allclose(lab.docs.decided_m, lab.docs.measured_m, atol=1e-12)


def test_scans_back_to_back(lab):
    """The second begins while the first one's frames are still on their way; neither mixes with the other."""
    for _ in range(2):
        assert lab.run(lab.adaptive(budget=10, batch=5)) == "budget"
    lab.session.wait()
    starts = lab.docs.of("start")
    for start, first in zip(starts, (0, 10), strict=True):
        estimate = load_result(lab.session.catalog, start["reconstruction_uid"])
        np.testing.assert_allclose(estimate.positions_m, lab.docs.measured_m[first : first + 10], atol=1e-12)
    second = {d["uid"] for d in lab.docs.of("descriptor") if d["run_start"] == starts[1]["uid"]}
    decisions = [e["data"] for e in lab.docs.of("event", "agent") if e["descriptor"] in second]
    assert decisions[0]["agent_n_ingested"] == 0
    assert all(d["agent_n_ingested"] <= 10 for d in decisions)
