"""What the reconstruction's process tells of itself."""

import queue
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from bluesky_cdi.config import Config
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live import activity
from bluesky_cdi.live.activity import Silence
from bluesky_cdi.remote import child
from bluesky_cdi.remote.setup import live_arguments, live_setup

SOON_S = 240.0


def test_the_times_of_the_settings_are_those_of_the_first_step(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "bluesky_cdi.live.worker.Activity", lambda *times: given.append(times) or activity.Activity(*times)
    )
    config = Config.model_validate({"reconstructor": {"name": "pinn", "step_budget_s": 100.0, "fine_tune_s": 200.0}})
    worker, documents = live_setup(live_arguments(config, tmp_path), emit=print).start([])
    documents.close()
    worker.close(SOON_S)
    assert given == [(100.0, 200.0)]


def test_each_beat_tells_what_the_worker_is_at(monkeypatch):
    monkeypatch.setattr(child, "BEAT_S", 0.0)
    said, silence = [], Silence("a step", 3.0, 1.0, 29.0)
    looks = iter([None, silence])
    worker = SimpleNamespace(error=None, n_dropped=0, is_idle=False, activity=SimpleNamespace(look=lambda: next(looks)))
    channel = SimpleNamespace(send=lambda *message: said.append(list(message)))
    served = child.Served(channel, worker, SimpleNamespace(drain=lambda _: True), None)
    with pytest.raises(StopIteration):
        served._beat()
    beat = ["beat", 0, None, 0, -1]
    assert said == [beat, ["activity", None], beat, ["activity", vars(silence)], beat]


def test_memory_is_given_back_when_a_run_is_done(monkeypatch):
    monkeypatch.setattr(child, "BEAT_S", 0.0)
    given, busy = [], iter([False, False, True, True, True, False, True, True])
    monkeypatch.setattr(child, "give_memory_back", lambda: given.append(len(given)))

    class Worker:
        error, n_dropped, activity = None, 0, SimpleNamespace(look=lambda: None)

        @property
        def is_idle(self):
            return not next(busy)

    channel = SimpleNamespace(send=lambda *message: None)
    with pytest.raises(StopIteration):
        child.Served(channel, Worker(), SimpleNamespace(drain=lambda _: True), None)._beat()
    assert len(given) == 1


def test_estimates_that_are_wanted_from_the_middle_of_a_wait_on_go_on_to_come(beside, until):
    sent = queue.SimpleQueue()
    channel = SimpleNamespace(send=lambda name, value: sent.put(value) if name == "estimate" else None)
    estimates = child.Estimates(channel)

    def put(n):
        estimates.put(SimpleNamespace(n_frames=n))

    put(1)
    # Two wait for what nobody wants, and somebody begins to want it meanwhile.
    with beside(estimates.flush), beside(estimates.flush):
        until(lambda: estimates._flushing == 2)
        assert sent.get(timeout=SOON_S) == {"n_frames": 1}
        estimates.want()
        estimates.taken()
    put(2)
    assert sent.get(timeout=SOON_S) == {"n_frames": 2}


def test_what_nobody_wants_is_sent_to_those_who_wait_alone(beside):
    sent = queue.SimpleQueue()
    channel = SimpleNamespace(send=lambda name, value: sent.put(value) if name == "estimate" else None)
    estimates = child.Estimates(channel)
    for n in (1, 2):
        estimates.put(SimpleNamespace(n_frames=n))
    estimates.send_last()
    assert sent.empty()
    with beside(estimates.flush):
        assert sent.get(timeout=SOON_S) == {"n_frames": 2}
        estimates.taken()
    estimates.put(SimpleNamespace(n_frames=3))
    estimates.send_last()
    assert sent.empty()


def test_the_frames_can_be_looked_at_while_the_last_run_is_finished():
    """The session's last picture is to have what came last."""
    sent, asked = queue.SimpleQueue(), Future()
    messages, ended = iter([["look", 7, 3]]), threading.Event()

    class Worker:
        def look(self, after):
            asked.set_result((after, ended.set()))
            return answer

        def close(self, timeout_s):
            assert ended.wait(SOON_S)

    answer = Future()
    answer.set_exception(WorkerError("nothing newer"))
    channel = SimpleNamespace(
        send=lambda *message: sent.put(message), has_come=lambda _: not ended.is_set(), receive=lambda: next(messages)
    )
    estimates, documents = SimpleNamespace(send_last=lambda: None), SimpleNamespace(close=lambda: None)
    served = child.Served(channel, Worker(), documents, estimates)
    served._state = lambda: True
    served._close()
    assert asked.result()[0] == 3 and sent.get() == ("refused", 7, "nothing newer")
