"""Runs and the workers that they get."""

import logging
import threading

import pytest

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.follow.lanes import LaneRun, Lanes

SOON_S = 120.0


class Worker:
    """Is done with a run when it is told so."""

    def __init__(self):
        self.seen, self.error, self.closed = [], None, False
        self.is_done, self.slow = threading.Semaphore(0), 0

    def appended(self, path):
        self.seen.append(path.name)

    def wait(self, timeout_s):
        assert self.is_done.acquire(timeout=SOON_S)
        if self.slow:
            self.slow -= 1
            raise WorkerError("it takes longer")
        if self.error is not None:
            raise WorkerError(str(self.error))

    def close(self, timeout_s):
        self.closed = True


class Lab:
    def __init__(self, folder, most):
        self.folder, self.workers, self.told = folder, [], {}
        self._changed = threading.Condition()
        self.lanes = Lanes(self._make, most, self._done)

    def _make(self, number):
        assert number == len(self.workers)
        self.workers.append(Worker())
        return self.workers[-1]

    def _done(self, uid, error):
        with self._changed:
            self.told[uid] = error
            self._changed.notify_all()

    def begin(self, uid):
        path = self.folder / uid
        path.write_bytes(b"")
        self.lanes.begin(LaneRun(uid, path))

    def wait_for(self, *uids):
        with self._changed:
            assert self._changed.wait_for(lambda: set(uids) <= self.told.keys(), SOON_S)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, 2)


def test_each_run_has_a_worker_and_a_third_one_waits(lab, tmp_path):
    lab.begin("a")
    lab.lanes.appended("a", has_ended=False)
    assert len(lab.workers) == 1
    lab.begin("b")
    lab.begin("c")
    lab.lanes.appended("c", has_ended=False)
    one, two = lab.workers
    assert (one.seen, two.seen) == (["a", "a"], ["b"])
    lab.lanes.appended("b", has_ended=True)
    two.is_done.release()
    lab.wait_for("b")
    with lab.lanes._changed:
        assert lab.lanes._changed.wait_for(lambda: two.seen == ["b", "b", "c"], SOON_S)
    # Its file was needed until then; what waits has its own still.
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c"}
    lab.lanes.appended("c", has_ended=True)
    lab.lanes.appended("a", has_ended=True)
    for worker in lab.workers:
        worker.is_done.release()
    lab.lanes.close(now=False)
    assert lab.told == {"a": None, "b": None, "c": None}
    assert len(lab.workers) == 2 and all(worker.closed for worker in lab.workers)
    assert list(tmp_path.iterdir()) == []


def test_one_that_ended_while_it_waited_is_read_to_its_end(lab):
    for uid in ("a", "b", "c"):
        lab.begin(uid)
        lab.lanes.appended(uid, has_ended=True)
    for worker in lab.workers:
        for _ in range(2):
            worker.is_done.release()
    lab.lanes.close(now=False)
    assert set(lab.told) == {"a", "b", "c"}


def test_failures_are_told_and_slow_ones_waited_for(lab):
    lab.begin("a")
    lab.begin("b")
    failing, slow = lab.workers
    failing.error, slow.slow = ValueError("no image"), 2
    for uid in ("a", "b"):
        lab.lanes.appended(uid, has_ended=True)
    failing.is_done.release()
    for _ in range(3):
        slow.is_done.release()
    lab.wait_for("a", "b")
    assert str(lab.told["a"]) == "no image" and lab.told["b"] is None
    lab.lanes.close(now=False)


def test_ending_now_leaves_out_what_waits(lab, tmp_path, caplog):
    for uid in ("a", "b", "c"):
        lab.begin(uid)
    # Of b the stop document could not even be kept: its worker ends it.
    lab.lanes.appended("a", has_ended=True)
    lab.workers[0].is_done.release()
    lab.wait_for("a")
    with lab.lanes._changed:
        assert lab.lanes._changed.wait_for(lambda: lab.workers[0].seen[-1] == "c", SOON_S)
    lab.begin("d")
    lab.lanes.appended("d", has_ended=True)
    lab.lanes.close(now=True)
    assert "the run d was not reconstructed" in caplog.text and "bluesky-cdi resume d" in caplog.text
    assert not (tmp_path / "d").exists() and all(worker.closed for worker in lab.workers)


def test_a_worker_that_does_not_end_is_told(lab, caplog):
    caplog.set_level(logging.ERROR)
    lab.begin("a")
    lab.lanes.appended("a", has_ended=True)
    lab.workers[0].is_done.release()

    def close(timeout_s):
        raise WorkerError("it was killed")

    lab.workers[0].close = close
    lab.lanes.close(now=False)
    assert "it was killed" in caplog.text
