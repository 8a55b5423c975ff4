"""The worker's inbox, its answers, and what becomes of its failures, with stand-ins for all that computes."""

import gc
import logging
import math
import re
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError, WorkerError
from bluesky_cdi.evaluation.verdict import fault_of
from bluesky_cdi.live import run_frames
from bluesky_cdi.live.inbox import QueueLimits
from bluesky_cdi.live.messages import LeftOut
from bluesky_cdi.live.parts import Pace, WorkerParts
from bluesky_cdi.live.worker import LiveWorker
from bluesky_cdi.protocols import Estimate, Frame, Proposal, RunInfo, ScanArea, ScanSource

AREA = ScanArea((0.0, 0.0), (1e-6, 1e-6), 1e-7, 50)
SOON_S = 120.0


def make_estimate(seq_nums):
    n, image, row = len(seq_nums), np.full((2, 2), 1.5), np.zeros(len(seq_nums))
    return Estimate(n, image, (0.0, 0.0), 1.0, image[None], image, image, image, np.array(seq_nums),
                    np.zeros((n, 2)), np.zeros((n, 1)), row, row, row)  # fmt: skip


def frame(seq_num):
    return Frame(seq_num, np.zeros(2), np.zeros((2, 2)))


class Rebuild:
    """A reconstructor whose estimate tells which frames it has; fails, waits and goes on gaining on demand."""

    def __init__(self, info):
        self.info, self.frames, self.steps, self.new = info, {}, [], False
        self.may_go_on, self.started = threading.Event(), threading.Event()
        self.may_go_on.set()
        self.settled = threading.Event()
        self.settled.set()
        self.looks, self.given_up = 0, False
        self.fail_with = self.fail_check_with = None
        self.gains = False
        self.refused, self.read, self.reads_quickly = set(), set(), False
        self.spoil = lambda estimate: estimate

    def add(self, frames):
        if bad := self.refused & {f.seq_num for f in frames}:
            raise GeometryError(f"frame {min(bad)} lies outside the object")
        self.frames.update({f.seq_num: f for f in frames})
        self.new = True

    def step(self, budget_s, interrupted=None):
        self.started.set()
        while not (self.may_go_on.wait(0.001) or interrupted()):
            pass
        if self.fail_with is not None:
            raise self.fail_with
        self.steps.append(sorted(self.frames))
        self.read = set(self.frames)
        if not self.new and not self.gains:
            return None
        self.new = False
        return self.spoil(make_estimate(sorted(self.frames)))

    def read_quickly(self, budget_s):
        """Take 100 frames more into the image, if there are."""
        waiting = sorted(set(self.frames) - self.read)
        if not self.reads_quickly or not waiting:
            return None
        self.read |= set(waiting[:100])
        return make_estimate(sorted(self.read))

    def settle(self, interrupted):
        self.looks += 1
        while not (self.settled.wait(0.001) or interrupted()):
            pass
        return self.settled.is_set()

    def give_up(self):
        self.given_up = True
        self.settled.set()

    def checked(self, estimate, interrupted=None):
        if self.fail_check_with is not None:
            raise self.fail_check_with
        return estimate

    def checkpoint(self):
        return {"frames/seq_num": np.array(sorted(self.frames)), "steps": np.array(len(self.steps))}

    def close(self):
        self.closed = True


class Choose:
    """An agent that proposes as many points as it was asked for and remembers what it learned."""

    def __init__(self, area):
        self.area, self.learned, self.fail_with = area, [], None

    def ingest(self, points):
        self.learned.append([p["seq_num"] for p in points])

    def propose(self, n):
        if self.fail_with is not None:
            raise self.fail_with
        return Proposal(np.zeros((n, 2)), np.zeros(n), "test", "test")

    def coverage_path(self):
        return np.array([[0.0, 0.0], [1e-6, 1e-6]])


class Record:
    """A recorder that remembers."""

    def __init__(self, info, uid):
        self.info, self.uid, self.published, self.closed = info, uid, [], []

    def publish(self, estimate):
        self.published.append(estimate)

    def close(self, estimate, exit_status, reason):
        self.closed.append((estimate, exit_status, reason))


class Keep:
    """A checkpoint in memory."""

    def __init__(self, info, uid):
        self.uid, self.states, self.removed, self.fail_with = uid, [], False, None

    def save(self, state):
        if self.fail_with is not None:
            raise self.fail_with
        self.states.append(state)

    def remove(self):
        self.removed = True


class Bench:
    """A worker with its parts in reach."""

    def __init__(
        self, until, final_steps=10, checkpoint_s=600.0, latency_s=math.inf, step_s=5.0, final_s=600.0, **options
    ):
        self.until = until
        self.rebuilds, self.agents, self.records, self.kept, self.heard = [], [], [], [], []
        self.listener_error = self.rebuild_error = self.agent_error = self.points_error = None
        pace = Pace(step_s, final_steps, final_s, checkpoint_s, latency_s=latency_s)
        parts = WorkerParts(self._rebuild, self._agent, self._record, self._points, self._keep, [self._listen])
        self.worker = LiveWorker(parts, pace, **options)

    def _points(self, estimate):
        if self.points_error is not None:
            raise self.points_error
        return [{"seq_num": seq_num} for seq_num in estimate.frame_seq_nums.tolist()]

    def _keep(self, info, uid):
        self.kept.append(Keep(info, uid))
        return self.kept[-1]

    def _rebuild(self, info):
        if self.rebuild_error is not None:
            raise self.rebuild_error
        self.rebuilds.append(Rebuild(info))
        return self.rebuilds[-1]

    def _agent(self, area):
        if self.agent_error is not None:
            raise self.agent_error
        self.agents.append(Choose(area))
        return self.agents[-1]

    def _record(self, info, uid):
        self.records.append(Record(info, uid))
        return self.records[-1]

    def _listen(self, estimate):
        if self.listener_error is not None:
            raise self.listener_error
        self.heard.append(estimate)

    def begin(self, area=AREA):
        return self.worker.begin(area).result(SOON_S)

    def start(self, ticket=None, uid="raw", read_again=None):
        metadata = {} if ticket is None else {"reconstruction_uid": ticket.reconstruction_uid}
        self.worker.start_run(RunInfo(uid, 1, metadata, (2, 2), read_again=read_again))
        self.until(lambda: self.records and self.records[-1].info.uid == uid)
        if self.rebuild_error is None:
            self.until(lambda: self.kept and self.kept[-1].uid == self.records[-1].uid)

    def put(self, *seq_nums):
        for seq_num in seq_nums:
            self.worker.put(frame(seq_num))


@pytest.fixture
def make_bench(until):
    benches = []

    def make(**options):
        benches.append(Bench(until, **options))
        return benches[-1]

    yield make
    for bench in benches:
        for rebuild in bench.rebuilds:
            rebuild.may_go_on.set()
        bench.worker.close(SOON_S)


@pytest.fixture
def bench(make_bench):
    return make_bench()


def test_protocol(bench):
    assert isinstance(bench.worker, ScanSource)


def test_a_scan_from_begin_to_end(bench):
    ticket = bench.begin()
    np.testing.assert_array_equal(ticket.coverage_path_m, [[0.0, 0.0], [1e-6, 1e-6]])
    first = bench.worker.request(3, 0).result(SOON_S)
    assert (len(first.positions_m), first.n_ingested) == (3, 0)
    bench.start(ticket)
    late = bench.worker.request(2, 3)
    bench.put(1, 2)
    bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 2)
    assert not late.done()
    bench.put(3)
    second = late.result(SOON_S)
    assert (len(second.positions_m), second.n_ingested) == (2, 3)
    assert second.decision_s >= 0
    assert bench.agents[0].learned == [[1, 2, 3]]
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    record = bench.records[0]
    assert record.uid == ticket.reconstruction_uid
    assert record.closed == [(bench.worker.latest, "success", "")]
    # The last one again, with its verdict.
    assert [e.n_frames for e in record.published] + [3] == [e.n_frames for e in bench.heard]
    assert ["verdict" in e.source for e in bench.heard] == [False] * (len(bench.heard) - 1) + [True]
    assert bench.worker.latest.source["verdict"]["word"] == "good"
    assert record.published[-1].n_frames == 3


def test_frames_that_waited_are_taken_together(bench):
    bench.start()
    rebuild = bench.rebuilds[0]
    rebuild.may_go_on.clear()
    bench.put(1)
    assert rebuild.started.wait(SOON_S)
    bench.put(2, 3, 4, 5)
    rebuild.may_go_on.set()
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert rebuild.steps[:2] == [[1], [1, 2, 3, 4, 5]]


def test_steps_after_the_last_frame_end_when_nothing_improves(make_bench):
    bench = make_bench(final_steps=7)
    bench.start()
    bench.put(1)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert len(bench.rebuilds[0].steps) == 2


@pytest.mark.parametrize("status", ["abort", "fail"])
def test_status_and_reason_of_the_raw_run_are_kept(bench, status):
    bench.start()
    bench.put(1)
    bench.worker.end_run(status, "beam lost")
    bench.worker.wait(SOON_S)
    assert bench.records[0].closed == [(bench.worker.latest, status, "beam lost")]


def test_run_without_frames(bench):
    bench.start()
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[0].closed == [(None, "success", "")]
    assert bench.worker.latest is None


def test_full_queue_leaves_out_the_newest_and_warns_once(make_bench, caplog):
    bench = make_bench(queue=QueueLimits(2))
    ticket = bench.begin()
    bench.start(ticket)
    rebuild = bench.rebuilds[0]
    rebuild.may_go_on.clear()
    bench.put(1)
    assert rebuild.started.wait(SOON_S)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.put(2, 3, 4, 5, 6)
    assert bench.worker.n_dropped == 3
    assert [r.getMessage() for r in caplog.records] == [
        "the reconstruction is 2 frames behind: frames are left out of the live image, "
        "and read again from their files after the run"
    ]
    # A decision that waits for a frame which was left out is made all the same.
    decision = bench.worker.request(1, 6)
    rebuild.may_go_on.set()
    assert decision.result(SOON_S).n_ingested == 3
    bench.put(7)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert sorted(rebuild.frames) == [1, 2, 3, 7]
    assert bench.records[0].closed[0][1:] == ("success", "3 frame(s) were left out: the reconstruction was behind")
    bench.start(uid="next")
    bench.put(1)
    assert bench.worker.n_dropped == 0


def test_queue_has_room_again_after_a_failure(make_bench):
    """Frames that were thrown away with a failed run don't count as waiting."""
    bench = make_bench(queue=QueueLimits(4))
    ticket = bench.begin()
    bench.start(ticket)
    rebuild = bench.rebuilds[0]
    rebuild.may_go_on.clear()
    bench.put(1)
    assert rebuild.started.wait(SOON_S)
    bench.put(2)
    request = bench.worker.request(1, 0)
    bench.put(3, 4, 5)
    rebuild.fail_with = ValueError("no")
    rebuild.may_go_on.set()
    with pytest.raises(WorkerError, match="ValueError: no"):
        request.result(SOON_S)
    bench.worker.end_run("fail", "")
    with pytest.raises(WorkerError, match="ValueError: no"):
        bench.worker.wait(SOON_S)
    bench.start(bench.begin(), "next")
    bench.rebuilds[-1].may_go_on.clear()
    bench.put(1, 2, 3, 4)
    assert bench.worker.n_dropped == 0


def fail_in_step(bench):
    bench.rebuilds[-1].fail_with = RuntimeError("broken")
    bench.put(1)


def fail_in_points(bench):
    bench.agents[-1].fail_with = RuntimeError("broken")
    bench.put(1)
    bench.worker.request(1, 1)


def fail_in_recorder(bench):
    def publish(estimate):
        raise RuntimeError("broken")

    bench.records[-1].publish = publish
    bench.put(1)


def test_runs_that_are_over_are_forgotten(bench):
    """Nothing of a run stays with the worker but of the newest."""
    left = []
    made = (bench.rebuilds, bench.records, bench.kept, bench.heard)
    for uid in "abc":
        bench.start(bench.begin(), uid)
        bench.put(1, 2)
        bench.worker.request(1, 2).result(SOON_S)
        points_of(bench.worker.points_after(2))
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
        left.append([weakref.ref(each[-1]) for each in made])
        for each in (*made, bench.agents):
            each.clear()
    gc.collect()
    assert [[ref() is None for ref in refs] for refs in left[:2]] == [[True] * 4] * 2


def points_of(answer):
    return [point["seq_num"] for point in answer.result(SOON_S)]


def test_points_come_once_the_frames_are_in_or_left_out(bench):
    """No other run's image answers: not that of a run which has ended."""
    bench.start(uid="before")
    bench.put(1, 2, 3)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    answer = bench.worker.points_after(2)
    bench.start()
    bench.rebuilds[-1].refused = {1, 2, 4}
    bench.put(1)
    # Nothing is refused, nothing is told: the second frame has not come.
    assert points_of(bench.worker.points_after(1)) == [] and not answer.done()
    bench.put(2)
    assert points_of(answer) == []
    later = bench.worker.points_after(5)
    bench.put(3, 4)
    assert points_of(bench.worker.points_after(4)) == [3] and not later.done()
    bench.worker.leave_out(5, FrameError("no file"))
    assert points_of(later) == [3]


def test_points_are_asked_for_after_the_documents_that_came_before(bench):
    """Else the run before, which is still open, would answer."""
    bench.start(uid="before")
    bench.put(1, 2)

    def drain(seconds):
        bench.worker.end_run("success", "")
        bench.start()
        bench.put(1)
        return seconds > 0

    bench.worker.drain = drain
    assert points_of(bench.worker.points_after(1)) == [1]
    bench.worker.drain = lambda _: False
    with pytest.raises(WorkerError, match="could not all be read"):
        bench.worker.points_after(1).result(SOON_S)


def test_points_that_never_come_are_refused(bench):
    bench.start()
    waiting = bench.worker.points_after(2)
    bench.points_error = ZeroDivisionError("no points")
    bench.put(1)
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        bench.worker.points_after(1).result(SOON_S)
    bench.worker.check()
    fail_in_step(bench)
    for answer in (waiting, bench.worker.points_after(1)):
        with pytest.raises(WorkerError, match=r"RuntimeError: broken\. The raw run is intact"):
            answer.result(SOON_S)


@pytest.mark.parametrize("fail", [fail_in_step, fail_in_points, fail_in_recorder])
def test_any_failure_refuses_questions_and_the_next_scan_works(bench, fail):
    ticket = bench.begin()
    bench.start(ticket)
    open_question = bench.worker.request(1, 40)
    fail(bench)
    with pytest.raises(WorkerError, match=r"RuntimeError: broken\. The raw run is intact"):
        open_question.result(SOON_S)
    bench.until(lambda: bench.records[0].closed)
    with pytest.raises(WorkerError, match="RuntimeError: broken") as caught:
        bench.worker.check()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(WorkerError, match="RuntimeError: broken"):
        bench.worker.request(1, 0).result(SOON_S)
    bench.put(2, 3)
    bench.worker.end_run("fail", "WorkerError")
    with pytest.raises(WorkerError, match="RuntimeError: broken"):
        bench.worker.wait(SOON_S)
    (closed,) = bench.records[0].closed
    assert closed[1:] == ("fail", "broken")

    ticket = bench.begin()
    bench.worker.check()
    bench.start(ticket, "next")
    bench.put(1)
    assert bench.worker.request(2, 1).result(SOON_S).n_ingested == 1
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[1].closed == [(bench.worker.latest, "success", "")]


def test_listener_that_fails_ends_nothing_and_hears_no_more_of_the_run(bench, caplog):
    bench.start(bench.begin())
    bench.listener_error = KeyError("view")
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        for seq_num in (1, 2):
            bench.put(seq_num)
            assert bench.worker.request(1, seq_num).result(SOON_S).n_ingested == seq_num
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert [r.getMessage() for r in caplog.records] == [
        "a listener failed, and hears no more of run 1: KeyError('view')"
    ]
    assert bench.records[0].closed == [(bench.worker.latest, "success", "")]
    bench.listener_error = None
    bench.start(uid="next")
    bench.put(1)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert [estimate.n_frames for estimate in bench.heard] == [1, 1]


def test_run_that_cannot_be_reconstructed(bench):
    bench.rebuild_error = GeometryError("no geometry")
    bench.start()
    bench.put(1, 2)
    bench.worker.end_run("success", "")
    with pytest.raises(WorkerError, match="GeometryError: no geometry"):
        bench.worker.wait(SOON_S)
    assert isinstance(bench.worker.error, GeometryError)
    assert bench.records[0].closed == [(None, "fail", "no geometry")]
    # The next run needs no `begin` to be reconstructed.
    bench.rebuild_error = None
    bench.start(uid="next")
    bench.put(1)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.worker.latest.n_frames == 1


def test_agent_that_cannot_be_made(bench):
    bench.agent_error = ValueError("window too small")
    with pytest.raises(WorkerError, match="ValueError: window too small"):
        bench.begin()
    bench.agent_error = None
    bench.begin()
    bench.worker.check()


def test_bad_documents_before_the_first_frame(bench):
    """The wait that follows sees the failure, however soon it comes."""
    for _ in range(20):
        bench.worker.fail(FrameError("frames are NaN"), {"uid": "raw"})
        with pytest.raises(WorkerError, match="FrameError: frames are NaN"):
            bench.worker.wait(SOON_S)
        bench.begin()


def test_questions_without_a_scan(bench):
    with pytest.raises(WorkerError, match="no adaptive scan has begun"):
        bench.worker.request(1, 0).result(SOON_S)
    assert bench.begin(ScanArea((0, 0), (1, 1), 1, 5, adaptive=False)).coverage_path_m.shape == (0, 2)
    with pytest.raises(WorkerError, match="the scan that began is not adaptive"):
        bench.worker.request(1, 0).result(SOON_S)
    bench.worker.check()


def test_second_scan_learns_nothing_from_the_first(bench):
    """The first scan's estimate is not the second's, and its frames answer no question of it."""
    first = bench.begin()
    bench.start(first)
    bench.put(1, 2, 3)
    bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 3)
    second = bench.begin()
    # The first run's documents lag behind the plan.
    bench.put(4)
    bench.worker.end_run("success", "")
    assert bench.worker.request(1, 0).result(SOON_S).n_ingested == 0
    assert bench.agents[1].learned == []
    later = bench.worker.request(1, 2)
    bench.start(second, "second")
    assert bench.records[1].uid == second.reconstruction_uid
    bench.put(1)
    bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 1)
    assert not later.done()
    bench.put(2)
    assert later.result(SOON_S).n_ingested == 2
    assert bench.agents[1].learned == [[1, 2]]
    assert bench.records[0].closed[0][1] == "success"
    assert bench.records[0].closed[0][0].n_frames == 4


def test_run_that_was_not_announced_has_a_uid_of_its_own(bench):
    ticket = bench.begin()
    bench.start(None, "foreign")
    bench.worker.end_run("success", "")
    bench.start(ticket, "announced")
    assert bench.records[0].uid != ticket.reconstruction_uid
    assert bench.records[1].uid == ticket.reconstruction_uid


def test_begin_refuses_the_questions_of_the_scan_before(bench):
    bench.begin()
    old = bench.worker.request(1, 99)
    bench.begin()
    with pytest.raises(WorkerError, match="a new scan has begun"):
        old.result(SOON_S)


def test_wait_waits_for_the_newest_run(bench):
    bench.start(uid="a")
    bench.put(1)
    rebuild = bench.rebuilds[0]
    rebuild.may_go_on.clear()
    bench.put(2)
    bench.worker.end_run("success", "")
    bench.worker.start_run(RunInfo("b", 2, {}, (2, 2)))
    bench.put(1)
    with pytest.raises(WorkerError, match=r"has not finished within 0\.05 s"):
        bench.worker.wait(0.05)
    bench.worker.end_run("success", "")
    rebuild.may_go_on.set()
    bench.worker.wait(SOON_S)
    assert [record.info.uid for record in bench.records if record.closed] == ["a", "b"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_ends_leaves_nobody_waiting(make_bench):
    bench = make_bench()
    ticket = bench.begin()
    bench.start(ticket)
    questions = [bench.worker.request(1, 50), bench.worker.request(1, 60), bench.worker.points_after(9)]
    bench.rebuilds[0].fail_with = SystemExit()
    bench.put(1)
    for question in questions:
        with pytest.raises(WorkerError, match="not running"):
            question.result(SOON_S)
    assert bench.records[0].closed == [(None, "fail", "the reconstruction worker has ended")]
    bench.worker.end_run("fail", "")
    for ask in (bench.worker.check, lambda: bench.worker.wait(SOON_S), lambda: bench.begin()):
        with pytest.raises(WorkerError, match="not running; start a new session"):
            ask()
    with pytest.raises(WorkerError, match="not running"):
        bench.worker.request(1, 0).result(SOON_S)


def test_closing_in_the_middle_of_a_run(make_bench):
    bench = make_bench()
    bench.start(bench.begin())
    bench.put(1)
    question = bench.worker.request(1, 50)
    bench.worker.close(SOON_S)
    assert bench.records[0].closed[0][1] == "fail"
    with pytest.raises(WorkerError, match="not running"):
        question.result(SOON_S)
    bench.worker.close(SOON_S)


def test_closing_finishes_the_run_first(make_bench):
    bench = make_bench()
    bench.start()
    bench.put(1, 2)
    bench.worker.end_run("success", "")
    bench.worker.close(SOON_S)
    assert bench.records[0].closed == [(bench.worker.latest, "success", "")]


def test_a_check_of_predicted_errors_that_fails_costs_no_run(make_bench, caplog):
    bench = make_bench()
    bench.start()
    bench.rebuilds[0].fail_check_with = RuntimeError("out of memory")
    bench.put(1, 2)
    bench.worker.end_run("success", "")
    bench.worker.close(SOON_S)
    assert bench.records[0].closed == [(bench.worker.latest, "success", "")]
    assert "predicted errors can't be checked, and stay as they are: out of memory" in caplog.text


def test_closing_right_after_a_failure(make_bench):
    """The message to close is not lost with the failed run's others."""
    bench = make_bench()
    bench.start(bench.begin())
    rebuild = bench.rebuilds[0]
    rebuild.may_go_on.clear()
    bench.put(1)
    assert rebuild.started.wait(SOON_S)
    bench.put(2)
    bench.worker.request(1, 0)
    rebuild.fail_with = ValueError("no")
    closing = threading.Thread(target=bench.worker.close, args=(SOON_S,))
    closing.start()
    rebuild.may_go_on.set()
    closing.join(SOON_S)
    assert not closing.is_alive()
    assert bench.records[0].closed == [(None, "fail", "no")]


def test_cancelled_questions_are_left_alone(bench):
    bench.start(bench.begin())
    question = bench.worker.request(1, 1)
    assert isinstance(question, Future) and question.cancel()
    bench.put(1)
    bench.until(lambda: bench.worker.latest is not None)
    assert bench.worker.request(1, 1).result(SOON_S) is not None


# Frames that can't be used.


def test_frames_that_cannot_be_used_are_left_out_and_no_decision_waits_for_them(bench, caplog):
    bench.start(bench.begin())
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.put(1)
        bench.worker.leave_out(2, FrameError("frame 2 must be finite."))
        bench.worker.leave_out(3, FrameError("frame 3 must be finite."))
        assert bench.worker.request(1, 3).result(SOON_S).n_ingested == 1
        bench.put(4)
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert [r.getMessage() for r in caplog.records] == [
        "frame 2 of run 1 is left out of the image: frame 2 must be finite. Further ones are counted.",
        "the image of run 1 is doubtful: 50 % of the frames are not in it; "
        "2 frame(s) are missing: 2, 3 (the first: frame 2 must be finite.)",
    ]
    assert bench.records[0].closed == [
        (bench.worker.latest, "success", "2 frame(s) could not be used, first: frame 2 must be finite.")
    ]
    assert sorted(bench.rebuilds[0].frames) == [1, 4]
    assert bench.kept[0].removed


def test_frames_that_the_reconstructor_refuses_are_left_out(bench, caplog):
    bench.start(bench.begin())
    rebuild = bench.rebuilds[0]
    rebuild.refused = {2, 4}
    with caplog.at_level(logging.CRITICAL):
        rebuild.may_go_on.clear()
        bench.put(1)
        assert rebuild.started.wait(SOON_S)
        bench.put(2, 3, 4, 5)
        rebuild.may_go_on.set()
        assert bench.worker.request(1, 5).result(SOON_S).n_ingested == 3
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert sorted(rebuild.frames) == [1, 3, 5]
    assert bench.records[0].closed[0][2] == "2 frame(s) could not be used, first: frame 2 lies outside the object"


@pytest.mark.parametrize("used", [0, 1, 2])
def test_run_of_which_most_frames_cannot_be_used_has_failed(bench, caplog, used):
    bench.start(bench.begin())
    bench.rebuilds[0].refused = {1, 2}
    bench.put(*range(11, 11 + used))
    with caplog.at_level(logging.CRITICAL):
        bench.put(1, 2)
        bench.worker.leave_out(3, FrameError("frame 3 must be finite"))
        bench.worker.end_run("success", "")
        with pytest.raises(WorkerError, match="GeometryError: frame 1 lies outside the object"):
            bench.worker.wait(SOON_S)
    assert bench.records[0].closed == [(bench.worker.latest, "fail", "frame 1 lies outside the object")]


# Frames that are read again after the run.


def overload(bench, read_again, *seq_nums):
    """Let a queue of two frames drop all of them but the first three."""
    bench.start(bench.begin(), read_again=read_again)
    rebuild = bench.rebuilds[-1]
    rebuild.may_go_on.clear()
    bench.put(seq_nums[0])
    assert rebuild.started.wait(SOON_S)
    bench.put(*seq_nums[1:])
    assert bench.worker.n_dropped == len(seq_nums) - 3
    rebuild.may_go_on.set()


def missing_of(bench):
    return bench.records[0].closed[0][0].source.get("missing_frames")


def test_frames_too_many_are_read_again_when_the_run_is_over(make_bench, caplog):
    bench, again = make_bench(queue=QueueLimits(2)), []
    overload(bench, lambda seq_num: again.append(seq_num) or frame(seq_num), 1, 2, 3, 4, 5, 6, 7)
    # One of them is taken once more in the meantime.
    bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 3)
    bench.put(5)
    bench.until(lambda: bench.worker.latest.n_frames == 4)
    assert not again
    with caplog.at_level(logging.INFO, "bluesky_cdi"):
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert again == [4, 6, 7]
    ((estimate, status, reason),) = bench.records[0].closed
    assert estimate.frame_seq_nums.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (status, reason, missing_of(bench)) == ("success", "", None) and bench.kept[0].removed
    assert "3 frame(s) of run 1 were read again from their files" in caplog.text


def test_last_steps_count_once_all_frames_are_in_the_image(make_bench):
    bench = make_bench(final_steps=2)
    bench.start(bench.begin())
    rebuild, taken = bench.rebuilds[0], iter(range(2, 100))
    # A frame more in each image, as of an object whose regions come one after the other.
    rebuild.gains, rebuild.spoil = True, lambda estimate: make_estimate(range(1, min(next(taken), 12)))
    bench.put(*range(1, 12))
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    ((estimate, _, _),) = bench.records[0].closed
    assert estimate.frame_seq_nums.tolist() == list(range(1, 12)) and missing_of(bench) is None
    counts = estimate.source["pipeline"]
    assert (counts["received"], counts["imaged"], counts["waiting"]) == (11, 11, 0)
    # The 11 images, and two more.
    assert len(rebuild.steps) == 13


def test_frames_that_an_image_passes_over_come_into_the_next_ones_without_further_frames(make_bench, caplog):
    bench = make_bench(latency_s=0.01)
    bench.start(bench.begin(ScanArea((0.0, 0.0), (1e-6, 1e-6), 1e-7, 50, adaptive=False)))
    rebuild = bench.rebuilds[0]
    rebuild.reads_quickly = True
    rebuild.may_go_on.clear()
    bench.put(1)
    assert rebuild.started.wait(SOON_S)
    bench.put(*range(2, 300))
    # Longer than an image may lag.
    time.sleep(0.05)
    with caplog.at_level(logging.INFO, "bluesky_cdi"):
        rebuild.may_go_on.set()
        bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 299)
        bench.until(lambda: rebuild.steps[-1] == list(range(1, 300)))
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert "frames come faster than they can be read" in caplog.text
    assert "run 1: 299 of 299 frames in the image" in caplog.text
    ((estimate, status, reason),) = bench.records[0].closed
    assert (estimate.n_frames, status, reason, missing_of(bench)) == (299, "success", "", None)


def test_file_that_comes_after_the_run(make_bench, monkeypatch):
    monkeypatch.setattr(run_frames, "LATE_S", 0.0)
    bench, tries = make_bench(), []

    def read_again(seq_num):
        tries.append(seq_num)
        if len(tries) < 4:
            raise ScanFileError("it is not written yet")
        return frame(seq_num)

    bench.start(bench.begin(), read_again=read_again)
    bench.put(1, 2, 3)
    for seq_num in (4, 5):
        bench.worker.leave_out(seq_num, ScanFileError("its file is late"))
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert tries == [4, 5, 4, 5, 4]
    assert bench.worker.latest.frame_seq_nums.tolist() == [1, 2, 3, 4, 5]
    assert bench.records[0].closed[0][1:] == ("success", "") and missing_of(bench) is None


def test_what_stays_missing_is_named(make_bench, monkeypatch, caplog):
    monkeypatch.setattr(run_frames, "LATE_S", 0.0)
    bench, tries = make_bench(queue=QueueLimits(2)), []

    def read_again(seq_num):
        tries.append(seq_num)
        if seq_num == 4:
            raise ScanFileError("its file is gone")
        if seq_num == 5:
            raise FrameError("it holds NaN")
        return None if seq_num == 6 else frame(seq_num)

    overload(bench, read_again, *range(1, 8))
    bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 3)
    bench.put(*range(10, 12))
    bench.until(lambda: bench.worker.latest.n_frames == 5)
    bench.worker.leave_out(8, FrameError("it is negative"))
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    # What no reading can mend is not read again, nor what is in no file.
    assert sorted(tries) == [4] * run_frames.TRIES + [5, 6, 7]
    assert missing_of(bench) == {
        "count": 4,
        "seq_nums": [4, 5, 6, 8],
        "reasons": {
            "4": "too many frames waited; read again: its file is gone",
            "5": "it holds NaN",
            "6": "too many frames waited; it is in no file to be read again from",
            "8": "it is negative",
        },
    }
    told = [r.getMessage() for r in caplog.records if "missing" in r.getMessage()]
    assert len(told) == 1 and told[0].endswith(
        "4 frame(s) are missing: 4, 5, 6, 8 (the first: too many frames waited; read again: its file is gone)"
    )
    assert bench.records[0].closed[0][2] == (
        "2 frame(s) were left out: the reconstruction was behind; 2 frame(s) could not be used, first: it holds NaN"
    )
    assert not bench.kept[0].removed and bench.kept[0].states


def test_newer_scan_ends_the_reading(make_bench):
    bench, again = make_bench(queue=QueueLimits(2)), []

    def read_again(seq_num):
        again.append(seq_num)
        if len(again) == 2:
            announced.append(bench.worker.begin(AREA))
        return frame(seq_num)

    announced = []
    overload(bench, read_again, *range(1, 11))
    bench.worker.end_run("success", "")
    bench.until(lambda: announced and bench.records[0].closed)
    assert announced[0].result(SOON_S) is not None
    assert again == [4, 5]
    ((estimate, status, reason),) = bench.records[0].closed
    assert status == "success" and "a newer run came before the last refinements" in reason
    assert missing_of(bench)["seq_nums"] == sorted({*range(1, 11)} - set(estimate.frame_seq_nums.tolist()))
    assert missing_of(bench)["count"] >= 5 and bench.kept[0].states


def test_without_last_refinements_nothing_is_read_again(make_bench):
    bench = make_bench(queue=QueueLimits(2), final_steps=0)
    overload(bench, frame, 1, 2, 3, 4)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert missing_of(bench)["seq_nums"] == [4]


def test_frames_that_time_did_not_suffice_for_are_missing_and_may_be_gone_on_with(bench):
    bench.start(bench.begin())
    bench.rebuilds[0].spoil = lambda estimate: make_estimate([1, 2])
    bench.put(1, 2, 3)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert missing_of(bench)["reasons"] == {"3": "it came after the image was made"}
    assert bench.kept[0].states and not bench.kept[0].removed


def test_a_number_counts_once_whatever_came_of_it():
    frames, rebuild = run_frames.RunFrames(RunInfo("raw", 1, {}, (2, 2))), Rebuild(None)
    error = FrameError("it is negative")
    frames.take(rebuild, [frame(1), LeftOut(2), LeftOut(2, error), frame(3)])
    frames.take(rebuild, [frame(2), LeftOut(4), LeftOut(3), frame(5), LeftOut(5, error), frame(5)])
    # Of 3 the image has an earlier one.
    assert frames.missing_in(make_estimate([1, 2, 3])) == {
        4: "too many frames waited",
        5: "it came after the image was made",
    }
    assert frames.ingested == 5 and not frames.errors


# What an image must be to be shown.


def nan_object(estimate):
    return replace(estimate, object=np.full((2, 2), np.nan))


def worse_than_vacuum(estimate):
    n = estimate.n_frames
    return replace(estimate, residual=np.full(n, 3.0), vacuum_residual=np.full(n, 2.0))


FAULTS = [
    (nan_object, "100 % of object is not finite"),
    (worse_than_vacuum, "it explains its frames worse than an empty field (deviance 3 a pixel against 2)"),
]


@pytest.mark.parametrize(("spoil", "fault"), FAULTS)
def test_last_good_image_stays_and_the_run_says_so(bench, caplog, spoil, fault):
    bench.start(bench.begin())
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.put(1, 2)
        assert bench.worker.request(1, 2).result(SOON_S).n_ingested == 2
        bench.rebuilds[0].spoil = spoil
        bench.put(3)
        assert bench.worker.request(1, 3).result(SOON_S).n_ingested == 2
        bench.put(4)
        assert bench.worker.request(1, 4).result(SOON_S).n_ingested == 2
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert [r.getMessage() for r in caplog.records] == [
        f"the image of run 1 is not shown: {fault}. The last good one stays.",
        f"the image of run 1 is doubtful: the last image was not good, this is an earlier one: {fault}; "
        "50 % of the frames are not in it; 2 frame(s) are missing: 3, 4 (the first: it came after the image was made)",
    ]
    ((estimate, status, reason),) = bench.records[0].closed
    assert (estimate.n_frames, status) == (2, "success")
    assert reason == f"the image is that of 2 frames; the last one was not good: {fault}"
    assert all(np.isfinite(each.object).all() for each in [*bench.heard, *bench.records[0].published])


@pytest.mark.parametrize(("spoil", "fault"), FAULTS)
def test_run_without_any_good_image_has_failed(bench, caplog, spoil, fault):
    bench.start(bench.begin())
    bench.rebuilds[0].spoil = spoil
    with caplog.at_level(logging.CRITICAL):
        bench.put(1, 2)
        assert bench.worker.request(1, 2).result(SOON_S).n_ingested == 0
        bench.worker.end_run("success", "")
        with pytest.raises(WorkerError, match=re.escape(f"no image of the run was good enough to be shown: {fault}")):
            bench.worker.wait(SOON_S)
    assert bench.records[0].closed[0][:2] == (None, "fail")
    assert not bench.heard


def test_image_that_becomes_good_is_shown(bench, caplog):
    bench.start(bench.begin())
    bench.rebuilds[0].spoil = nan_object
    with caplog.at_level(logging.CRITICAL):
        bench.put(1)
        assert bench.worker.request(1, 1).result(SOON_S).n_ingested == 0
    bench.rebuilds[0].spoil = lambda estimate: estimate
    bench.put(2)
    assert bench.worker.request(1, 2).result(SOON_S).n_ingested == 2
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[0].closed == [(bench.worker.latest, "success", "")]


def test_empty_field_is_a_good_image():
    """Its deviance is that of vacuum, but for the noise of the image."""
    n = 5
    estimate = make_estimate(range(n))
    assert fault_of(replace(estimate, residual=np.full(n, 1.05), vacuum_residual=np.ones(n))) == ""
    assert fault_of(estimate) == ""


# A run that has ended owes its last refinements; a newer one comes first.


def refining_for_ever(bench, ticket=None, uid="old"):
    """A run that has ended and whose refinements go on gaining; its next one waits."""
    bench.start(ticket, uid)
    rebuild = bench.rebuilds[-1]
    rebuild.gains = True
    bench.put(1, 2)
    bench.until(lambda: bench.worker.latest is not None and bench.worker.latest.n_frames == 2)
    rebuild.may_go_on.clear()
    rebuild.started.clear()
    bench.worker.end_run("success", "")
    assert rebuild.started.wait(SOON_S)
    return rebuild


def test_newer_scan_does_not_wait_for_last_refinements(make_bench):
    bench = make_bench(final_steps=10**6)
    old = refining_for_ever(bench, bench.begin())
    ticket = bench.begin()  # would time out if it waited for the step, which never comes back by itself
    (closed,) = bench.records[0].closed
    assert closed[0].n_frames == 2
    assert closed[1:] == ("success", "a newer run came before the last refinements")
    assert bench.kept[0].states[-1]["steps"] == len(old.steps)
    assert not bench.kept[0].removed
    bench.start(ticket, "new")
    bench.put(1)
    assert bench.worker.request(1, 1).result(SOON_S).n_ingested == 1
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[1].closed == [(bench.worker.latest, "success", "")]
    assert bench.kept[1].removed


def test_newer_run_that_was_not_announced_comes_first_too(make_bench):
    bench = make_bench(final_steps=10**6)
    refining_for_ever(bench)
    bench.start(uid="new")
    assert [record.closed[0][1:] for record in bench.records[:1]] == [
        ("success", "a newer run came before the last refinements")
    ]
    bench.put(1)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[1].closed[0][1:] == ("success", "")


def test_reason_of_the_raw_run_stays_when_it_is_handed_back(make_bench):
    bench = make_bench(final_steps=10**6)
    bench.start()
    bench.rebuilds[0].gains = True
    bench.put(1)
    bench.worker.end_run("abort", "beam lost")
    bench.until(lambda: len(bench.rebuilds[0].steps) > 5)
    bench.begin()
    assert bench.records[0].closed[0][1:] == ("abort", "beam lost; a newer run came before the last refinements")


def test_last_refinements_answer_questions_and_end_at_their_number(make_bench):
    bench = make_bench(final_steps=7)
    bench.start()
    bench.rebuilds[0].gains = True
    bench.put(1)
    bench.until(lambda: bench.rebuilds[0].steps)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert len(bench.rebuilds[0].steps) == 1 + 7


def looking_beside(make_bench, final_steps=1, final_s=600.0):
    """A run that has ended while its reconstructor looks for something beside its only image."""
    bench = make_bench(final_steps=final_steps, step_s=0.01, final_s=final_s)
    bench.start()
    bench.rebuilds[0].gains = True
    bench.rebuilds[0].settled.clear()
    bench.put(1)
    bench.until(lambda: bench.rebuilds[0].steps)
    bench.worker.end_run("success", "")
    return bench


def test_last_refinements_wait_for_what_is_looked_for_beside_them(make_bench):
    """However few there may be; the thread looks up meanwhile."""
    bench = looking_beside(make_bench)
    bench.until(lambda: bench.rebuilds[0].looks > 3)
    assert len(bench.rebuilds[0].steps) == 1 and not bench.records[0].closed
    bench.rebuilds[0].settled.set()
    bench.worker.wait(SOON_S)
    assert len(bench.rebuilds[0].steps) == 2


def test_a_look_that_does_not_end_holds_no_run_open(make_bench):
    """And takes no time from the last refinements."""
    bench = looking_beside(make_bench, final_s=0.05)
    bench.worker.wait(SOON_S)
    assert bench.records[0].closed[0][1:] == ("success", "")
    assert bench.rebuilds[0].given_up


def test_a_newer_scan_waits_for_no_look_beside(make_bench):
    bench = looking_beside(make_bench)
    bench.begin()
    assert bench.records[0].closed[0][1:] == ("success", "a newer run came before the last refinements")


def test_without_last_refinements_no_look_is_waited_for(make_bench):
    bench = looking_beside(make_bench, final_steps=0)
    bench.worker.wait(SOON_S)
    assert len(bench.rebuilds[0].steps) == 1


def test_failure_of_an_old_run_is_not_the_newer_scans(make_bench, caplog):
    """The old run's step fails while the newer scan is announced: the plan that began must not hear of it."""
    bench = make_bench(final_steps=10**6)
    old = refining_for_ever(bench, bench.begin())
    old.fail_with = ArithmeticError("run one went wrong")
    with caplog.at_level(logging.CRITICAL):
        ticket = bench.begin()
    assert bench.records[0].closed[0][1:] == ("fail", "run one went wrong")
    assert bench.records[0].closed[0][0].n_frames == 2
    bench.worker.check()
    assert bench.worker.error is None
    assert bench.worker.request(2, 0).result(SOON_S).n_ingested == 0
    bench.start(ticket, "new")
    bench.put(1)
    assert bench.worker.request(2, 1).result(SOON_S).n_ingested == 1
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[1].closed == [(bench.worker.latest, "success", "")]


def test_frames_of_an_old_run_that_come_late_and_fail(bench, caplog):
    """Documents lag behind the plan: the newer scan begins while the old run's frames are still coming."""
    bench.start(bench.begin(), "old")
    bench.put(1)
    bench.until(lambda: bench.worker.latest is not None)
    ticket = bench.begin()
    bench.rebuilds[0].fail_with = ArithmeticError("run one went wrong")
    with caplog.at_level(logging.CRITICAL):
        bench.put(2)
        bench.until(lambda: bench.records[0].closed)
    bench.worker.end_run("success", "")
    assert bench.records[0].closed[0][1:] == ("fail", "run one went wrong")
    bench.worker.check()
    bench.start(ticket, "new")
    assert bench.records[1].uid == ticket.reconstruction_uid
    bench.put(1)
    assert bench.worker.request(1, 1).result(SOON_S).n_ingested == 1
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)


def test_old_run_that_starts_after_the_newer_scan_began(bench, caplog):
    first = bench.begin()
    second = bench.begin()
    bench.rebuild_error = GeometryError("no geometry")
    with caplog.at_level(logging.CRITICAL):
        bench.start(first, "old")
        bench.until(lambda: bench.records[0].closed)
    assert bench.records[0].uid == first.reconstruction_uid
    bench.worker.check()
    bench.rebuild_error = None
    bench.worker.end_run("success", "")
    bench.start(second, "new")
    bench.put(1)
    assert bench.worker.request(1, 1).result(SOON_S).n_ingested == 1


def test_bad_documents_of_an_old_run(bench, caplog):
    first = bench.begin()
    bench.begin()
    start = {"uid": "old", "scan_id": 1, "reconstruction_uid": first.reconstruction_uid}
    with caplog.at_level(logging.CRITICAL):
        bench.worker.fail(FrameError("frames are NaN"), start)
        bench.worker.request(1, 0).result(SOON_S)
    bench.worker.check()


def test_bad_documents_of_a_run_beside_the_one_that_is_fed(bench, caplog):
    bench.start(bench.begin(), "fed")
    with caplog.at_level(logging.CRITICAL):
        bench.worker.fail(FrameError("frames are NaN"), {"uid": "beside", "scan_id": 2, "time": 0.0})
        bench.put(1)
        assert bench.worker.request(1, 1).result(SOON_S).n_ingested == 1
    assert not bench.records[0].closed


def test_failure_refuses_every_open_question(bench, caplog):
    bench.start(bench.begin())
    bench.agents[0].fail_with = RuntimeError("broken")
    questions = [bench.worker.request(1, 2), bench.worker.request(1, 2), bench.worker.request(1, 9)]
    with caplog.at_level(logging.CRITICAL):
        bench.put(1, 2)
        for question in questions:
            with pytest.raises(WorkerError, match="RuntimeError: broken"):
                question.result(SOON_S)


# The state that is kept.


def test_state_is_kept_after_estimates_and_goes_with_the_end(make_bench):
    bench = make_bench(checkpoint_s=0.0)
    ticket = bench.begin()
    bench.start(ticket)
    for seq_num in (1, 2, 3):
        bench.put(seq_num)
        bench.until(lambda n=seq_num: bench.worker.latest is not None and bench.worker.latest.n_frames == n)
    bench.until(lambda: len(bench.kept[0].states) == 3)
    assert bench.kept[0].uid == ticket.reconstruction_uid
    assert [state["frames/seq_num"].tolist() for state in bench.kept[0].states] == [[1], [1, 2], [1, 2, 3]]
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.kept[0].removed


def test_state_stays_where_frames_were_left_out(make_bench):
    bench = make_bench(queue=QueueLimits(1))
    bench.start()
    bench.rebuilds[0].may_go_on.clear()
    bench.put(1)
    assert bench.rebuilds[0].started.wait(SOON_S)
    bench.put(2, 3)
    bench.rebuilds[0].may_go_on.set()
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[0].closed[0][1:] == ("success", "1 frame(s) were left out: the reconstruction was behind")
    assert bench.kept[0].states[-1]["frames/seq_num"].tolist() == [1, 2]
    assert not bench.kept[0].removed


def test_state_stays_when_the_session_is_closed_in_the_middle(make_bench):
    bench = make_bench()
    bench.start()
    bench.put(1)
    bench.until(lambda: bench.worker.latest is not None)
    bench.worker.close(SOON_S)
    assert bench.kept[0].states[-1]["frames/seq_num"].tolist() == [1]
    assert not bench.kept[0].removed


def test_state_that_cannot_be_written_ends_nothing_and_is_told_once(make_bench, caplog):
    bench = make_bench(checkpoint_s=0.0)
    bench.start()
    bench.kept[0].fail_with = OSError("no space left")
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        for seq_num in (1, 2, 3):
            bench.put(seq_num)
            bench.until(lambda n=seq_num: bench.worker.latest is not None and bench.worker.latest.n_frames == n)
        bench.worker.end_run("success", "")
        bench.worker.wait(SOON_S)
    assert bench.records[0].closed == [(bench.worker.latest, "success", "")]
    assert [r.getMessage() for r in caplog.records] == [
        "the state of the reconstruction can't be kept: no space left (the reconstruction goes on)"
    ]
