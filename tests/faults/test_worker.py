"""Whatever becomes of the reconstruction and its process, the scan measures all, and the next one works."""

import logging
import os
import re
import signal
import threading

import pytest

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.remote import link
from tests.faults.bench import N_RASTER, SOON_S


@pytest.fixture
def impatient(monkeypatch):
    """What hangs is given up soon."""
    monkeypatch.setattr(link, "SILENT_S", 4.0)


@pytest.mark.parametrize("kind", ["raise", "memory"])
def test_a_reconstruction_that_raises_ends_its_own_run_only(bench, kind):
    bench.misbehave(kind=kind, after=1)
    bench.wait_for_an_image()
    bench.run(bench.raster())
    assert "numbers went wrong" in (error := bench.settle()) or "no room" in error
    bench.check_measured(N_RASTER)
    assert [(r.exit_status, r.complete) for r in bench.results()] == [("fail", False)]
    bench.misbehave()
    bench.run(bench.raster())
    assert bench.settle() is None
    bench.check_measured(N_RASTER)
    bench.check_image(N_RASTER)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("kill", r"by signal 9; out of memory\?"),
        ("exit", "exit code 3"),
        ("stop", "it had not answered for 4 s and was killed"),
        ("hang", r"it had been at a step for \d+ s without a sign of life and was killed"),
    ],
)
def test_a_process_that_ends_or_hangs_is_started_again_and_has_the_whole_run(bench, impatient, caplog, kind, how):
    bench.misbehave(kind=kind, after=1)
    bench.wait_for_an_image()
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.run(bench.raster())
        assert bench.settle() is None
    told = [record.getMessage() for record in caplog.records]
    ended = rf"the reconstruction's process ended \({how}\); it is started again. The raw run is intact."
    assert any(re.fullmatch(ended, line) for line in told)
    late = r"the reconstruction has been at a step for [\d.]+ s, where up to [\d.]+ s are usual; the scan goes on. .*"
    assert any(re.fullmatch(late, line) for line in told) == (kind == "hang")
    assert "the reconstruction's process is there again" in told
    assert ("the reconstruction's process does not answer; the scan goes on" in told) == (kind == "stop")
    bench.check_measured(N_RASTER)
    bench.check_image(N_RASTER)
    broken, whole = bench.results()
    assert (broken.exit_status, broken.complete) == ("fail", False)
    assert bench.session.catalog.processed[whole.uid].start["continues"] == broken.uid


@pytest.fixture
def asked(bench):
    """Questions of the plan; with each point the scan waits until the newest one is answered."""
    live, questions, request = bench.session.live, [], bench.session.live.request

    def remembered(*question):
        questions.append(request(*question))
        return questions[-1]

    live.request = remembered
    token = bench.session.RE.subscribe(lambda *_: questions and questions[-1].exception(SOON_S), "event")
    yield questions
    bench.session.RE.unsubscribe(token)
    live.request = request


def test_an_adaptive_scan_is_decided_again_when_the_process_is_there_again(bench, asked):
    """The process is killed with the third question; the scan then waits until the new one is there."""
    live, there, decided = bench.session.live, threading.Event(), []
    bench.misbehave(kind="kill", after=2)
    pid = live.link.pid

    def wait():
        # Not in the scan's thread: this is a document's callback, and documents wait for it.
        while live.link.pid == pid or live.error is not None:
            there.wait(0.01)
        decided.append(len(bench.reasons))
        there.set()

    bench.when_measured = 24, wait
    bench.run(bench.adaptive(budget=49))
    assert bench.settle() is None and there.is_set() and len(asked) > 3
    (before,) = decided
    assert any(reason in ("fill", "adapt") for reason in bench.reasons[:before])
    assert any(reason in ("fill", "adapt") for reason in bench.reasons[before:])
    bench.check_measured(len(bench.events))
    bench.check_image(len(bench.events))


def test_an_image_that_is_no_number_is_not_a_result(bench):
    bench.misbehave(kind="nan")
    bench.run(bench.raster())
    assert "100 % of object is not finite" in bench.settle()
    bench.check_measured(N_RASTER)
    assert not any(result.complete for result in bench.results())


def test_a_process_that_ends_again_and_again_is_given_up_until_the_next_run(bench, caplog):
    bench.misbehave(kind="exit", always=True)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        bench.run(bench.raster())
        assert "4 times in one run: it is given up for this run" in bench.settle()
    assert [r.name for r in caplog.records].count("bluesky_cdi.remote.supervisor") == 4
    bench.check_measured(N_RASTER)
    bench.misbehave()
    bench.run(bench.adaptive(budget=16))
    assert bench.settle() is None
    bench.check_measured(16)
    bench.check_image(16)


def test_an_idle_process_that_is_killed_costs_nothing(bench):
    live = bench.session.live
    bench.run(bench.raster())
    assert bench.settle() is None
    before = len(bench.results())
    pid, pause = live.link.pid, threading.Event()
    while live.state.done != live.state.documents:
        pause.wait(0.05)
    os.kill(pid, signal.SIGKILL)
    while live.link.pid == pid or live.error is not None:
        pause.wait(0.05)
    assert bench.settle() is None and len(bench.results()) == before
    bench.run(bench.raster())
    assert bench.settle() is None
    bench.check_image(N_RASTER)


def test_a_worker_that_can_not_be_made_is_told_and_the_scan_measured(open_bench, caplog):
    with caplog.at_level(logging.ERROR, "bluesky_cdi"), open_bench(factory="faulty_parts:broken") as bench:
        with pytest.raises(WorkerError, match="ValueError: no such network"):
            bench.session.live.wait(SOON_S)
        bench.run(bench.raster())
        assert "no such network" in bench.settle()
        bench.check_measured(N_RASTER)
    told = [record.getMessage() for record in caplog.records]
    # Once for the session, and by the plan for its scan.
    assert len(told) == 2 and all("can't begin (ValueError: no such network)" in line for line in told)
