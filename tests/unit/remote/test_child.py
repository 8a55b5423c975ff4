"""What the reconstruction's process tells of itself."""

from types import SimpleNamespace

import pytest

from bluesky_cdi.config import Config
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
