"""The worker's inbox, its answers, and what becomes of its failures, with stand-ins for all that computes."""

import logging
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, GeometryError, WorkerError
from bluesky_cdi.live.worker import LiveWorker, WorkerParts
from bluesky_cdi.protocols import Estimate, Frame, Proposal, RunInfo, ScanArea, ScanSource

AREA = ScanArea((0.0, 0.0), (1e-6, 1e-6), 1e-7, 50)
SOON_S = 10.0


def make_estimate(seq_nums):
    n, image, row = len(seq_nums), np.zeros((2, 2)), np.zeros(len(seq_nums))
    return Estimate(n, image, (0.0, 0.0), 1.0, image[None], image, image, image, np.array(seq_nums),
                    np.zeros((n, 2)), np.zeros((n, 1)), row, row, row)  # fmt: skip


class Rebuild:
    """A reconstructor whose estimate tells which frames it has; fails and waits on demand."""

    def __init__(self, info):
        self.info, self.frames, self.steps, self.new = info, {}, [], False
        self.may_go_on, self.started = threading.Event(), threading.Event()
        self.may_go_on.set()
        self.fail_with = None

    def add(self, frames):
        self.frames.update({f.seq_num: f for f in frames})
        self.new = True

    def step(self, budget_s):
        self.started.set()
        assert self.may_go_on.wait(SOON_S)
        if self.fail_with is not None:
            raise self.fail_with
        self.steps.append(sorted(self.frames))
        if not self.new:
            return None
        self.new = False
        return make_estimate(sorted(self.frames))


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


class Bench:
    """A worker with its parts in reach."""

    def __init__(self, **options):
        self.rebuilds, self.agents, self.records, self.heard = [], [], [], []
        self.listener_error = self.rebuild_error = self.agent_error = None
        parts = WorkerParts(self._rebuild, self._agent, self._record, [self._listen])
        self.worker = LiveWorker(
            parts, lambda e: [{"seq_num": s} for s in e.frame_seq_nums.tolist()], final_budget_s=5.0, **options
        )

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

    def start(self, ticket=None, uid="raw"):
        metadata = {} if ticket is None else {"reconstruction_uid": ticket.reconstruction_uid}
        self.worker.start_run(RunInfo(uid, 1, metadata, (2, 2)))
        self.until(lambda: self.records and self.records[-1].info.uid == uid)

    def put(self, *seq_nums):
        for seq_num in seq_nums:
            self.worker.put(Frame(seq_num, np.zeros(2), np.zeros((2, 2))))

    def until(self, condition):
        deadline = time.monotonic() + SOON_S
        while not condition():
            assert time.monotonic() < deadline, "did not come about"
            time.sleep(0.002)


@pytest.fixture
def make_bench():
    benches = []

    def make(**options):
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for bench in benches:
        for rebuild in bench.rebuilds:
            rebuild.may_go_on.set()
        bench.worker.close(SOON_S)
        assert not bench.worker._thread.is_alive()


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
    assert [e.n_frames for e in record.published] == [e.n_frames for e in bench.heard]
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
    bench = make_bench(queue_frames=2)
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
        "the reconstruction is 2 frames behind: frames are left out of the live image (the raw run has them all)"
    ]
    # A decision that waits for a frame which was left out is made all the same.
    decision = bench.worker.request(1, 6)
    rebuild.may_go_on.set()
    assert decision.result(SOON_S).n_ingested == 3
    bench.put(7)
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert sorted(rebuild.frames) == [1, 2, 3, 7]
    assert bench.records[0].closed[0][1:] == ("success", "3 frames were left out")
    bench.start(uid="next")
    bench.put(1)
    assert bench.worker.n_dropped == 0


def test_queue_has_room_again_after_a_failure(make_bench):
    """Frames that were thrown away with a failed run don't count as waiting."""
    bench = make_bench(queue_frames=4)
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


def fail_in_listener(bench):
    bench.listener_error = RuntimeError("broken")
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


@pytest.mark.parametrize("fail", [fail_in_step, fail_in_listener, fail_in_points, fail_in_recorder])
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

    bench.listener_error = None
    ticket = bench.begin()
    bench.worker.check()
    bench.start(ticket, "next")
    bench.put(1)
    assert bench.worker.request(2, 1).result(SOON_S).n_ingested == 1
    bench.worker.end_run("success", "")
    bench.worker.wait(SOON_S)
    assert bench.records[1].closed == [(bench.worker.latest, "success", "")]


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
        bench.worker.fail(FrameError("frames are NaN"))
        with pytest.raises(WorkerError, match="FrameError: frames are NaN"):
            bench.worker.wait(SOON_S)
        bench.begin()


def test_questions_without_a_scan(bench):
    with pytest.raises(WorkerError, match="no adaptive scan has begun"):
        bench.worker.request(1, 0).result(SOON_S)
    assert bench.begin(ScanArea((0, 0), (1, 1), 1, 5, adaptive=False)).coverage_path_m.shape == (0, 2)
    with pytest.raises(WorkerError, match="no adaptive scan has begun"):
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
    threading.Timer(0.05, rebuild.may_go_on.set).start()
    bench.worker.wait(SOON_S)
    assert [record.info.uid for record in bench.records if record.closed] == ["a", "b"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_ends_leaves_nobody_waiting(make_bench):
    bench = make_bench()
    ticket = bench.begin()
    bench.start(ticket)
    questions = [bench.worker.request(1, 50), bench.worker.request(1, 60)]
    bench.rebuilds[0].fail_with = SystemExit()
    bench.put(1)
    for question in questions:
        with pytest.raises(WorkerError, match="not running"):
            question.result(SOON_S)
    bench.worker._thread.join(SOON_S)
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
    bench.until(lambda: bench.worker._inbox.qsize() >= 3)
    rebuild.may_go_on.set()
    closing.join(3.0)
    assert not closing.is_alive()
    assert not bench.worker._thread.is_alive()


def test_cancelled_questions_are_left_alone(bench):
    bench.start(bench.begin())
    question = bench.worker.request(1, 1)
    assert isinstance(question, Future) and question.cancel()
    bench.put(1)
    bench.until(lambda: bench.worker.latest is not None)
    assert bench.worker.request(1, 1).result(SOON_S) is not None
