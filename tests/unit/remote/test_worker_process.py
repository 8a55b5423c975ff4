"""The session's side of the reconstruction's process; what becomes of scans is tested in tests/faults."""

import contextlib
import logging
import queue
import re
import subprocess
import sys
import threading
from dataclasses import fields, replace

import pytest

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.activity import Silence
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.packing import pack
from bluesky_cdi.protocols import ScanArea
from bluesky_cdi.remote import link, process_state, supervisor
from bluesky_cdi.remote.link import Link
from bluesky_cdi.remote.parent import WorkerProcess

SOON_S = 240.0
AREA = ScanArea((0.0, 0.0), (1e-6, 1e-6), 1e-7, 10, False)


class OtherEnd:
    """In place of a process: keeps what is sent, and says what it is told to say."""

    def __init__(self, setup, received, ended, module):
        self._received, self._ended = received, ended
        self.sent = queue.SimpleQueue()
        self.is_dead = threading.Event()
        self.why, self.could_not_begin = "", False

    def wait_until_ready(self):
        return True

    def send(self, message):
        self.sent.put(message)

    def says(self, *message):
        self._received(self, list(message))

    def beats(self, begun, error=None):
        self.says("beat", begun, error, 0, -1)

    def learn(self, silence):
        pass

    def dies(self, why):
        self.why = why
        self.is_dead.set()
        self._ended()

    def how(self):
        return self.why

    def finish(self):
        pass

    def close(self):
        pass


@pytest.fixture
def ends(monkeypatch):
    """Where each end appears that a worker's process is started as."""
    made = queue.SimpleQueue()

    def start(*args):
        made.put(end := OtherEnd(*args))
        return end

    monkeypatch.setattr(supervisor, "Link", start)
    return made


@pytest.fixture
def worker(ends):
    with contextlib.closing(WorkerProcess("not:used", {})) as opened:
        yield opened


def test_a_late_report_does_not_fail_the_newest_scan_of_a_new_process(worker, ends):
    end = ends.get(timeout=SOON_S)
    for _ in range(2):
        worker.begin(AREA)
        assert end.sent.get(timeout=SOON_S)[0] == "begin"
    end.dies("exit code 3")
    # The new process is told of both, as nobody has answered yet.
    new = ends.get(timeout=SOON_S)
    assert [new.sent.get(timeout=SOON_S)[0] for _ in range(2)] == ["begin", "begin"]
    answer = worker.begin(AREA)
    assert new.sent.get(timeout=SOON_S)[0] == "begin"
    new.beats(2, "numbers went wrong")
    assert worker.error is None
    new.beats(3, "no room")
    assert str(worker.error) == "no room"
    assert not answer.done()


def test_frames_are_looked_at_by_a_question(worker, ends):
    end = ends.get(timeout=SOON_S)
    answer = worker.look(3)
    name, number, after = end.sent.get(timeout=SOON_S)
    assert (name, after) == ("look", 3)
    values = dict.fromkeys((field.name for field in fields(Sight)), None) | {"number": 4, "rate_hz": 2.0}
    end.says("answer", number, values)
    sight = answer.result(SOON_S)
    assert isinstance(sight, Sight) and sight.number == 4
    # A process that is gone answers nothing, and the next one counts from 1: who looks must ask again.
    answer = worker.look(4)
    end.sent.get(timeout=SOON_S)
    end.dies("exit code 3")
    with pytest.raises(WorkerError, match="exit code 3"):
        answer.result(SOON_S)


@pytest.fixture
def once(monkeypatch):
    """No second process is started for a run."""
    monkeypatch.setattr(process_state, "RESTARTS_MAX", 0)


def test_why_a_factory_can_not_open_something_is_told_once(tmp_path, monkeypatch, caplog):
    """Another process could not begin either, for this run or another."""
    (tmp_path / "beamline_parts.py").write_text(
        "def setup(arguments):\n    raise OSError(19, 'No such device', arguments['detector'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with (
        caplog.at_level(logging.ERROR, "bluesky_cdi"),
        contextlib.closing(WorkerProcess("beamline_parts:setup", {"detector": "eiger"})) as worker,
    ):
        told = r"no live reconstruction: its process can't begin \(OSError: \[Errno 19\] No such device: 'eiger'\)"
        for ask in (lambda: worker.wait(SOON_S), lambda: worker.begin(AREA).result(SOON_S), worker.check):
            with pytest.raises(WorkerError, match=told):
                ask()
        assert re.search(told, str(worker.error))
    (record,) = caplog.records
    assert re.search(told, record.getMessage())


@pytest.fixture
def says(monkeypatch, tmp_path):
    """Let processes say these bytes in place of what they are for, and then nothing more."""
    really, script = subprocess.Popen, tmp_path / "child.py"

    def prepare(data):
        script.write_text(
            "import sys\n"
            "from multiprocessing.connection import Connection\n"
            "connection = Connection(int(sys.argv[1]))\n"
            f"connection.send_bytes({data!r})\n"
            "while True:\n"
            "    connection.recv_bytes()\n"
        )

    def start(command, **options):
        return really([sys.executable, str(script), command[-1]], **options)

    monkeypatch.setattr(link.subprocess, "Popen", start)
    return prepare


GARBAGE = [b"\x93\x01", b"\xc1", pack([]), pack(7), pack(None), pack(["beat", 1]), pack(["answer", 1, {"a": 2}])]


@pytest.mark.parametrize("data", GARBAGE)
def test_a_process_that_says_what_is_no_message_is_ended_and_told(says, once, data, caplog):
    says(data)
    with (
        caplog.at_level(logging.ERROR, "bluesky_cdi"),
        contextlib.closing(WorkerProcess("not:used", {})) as worker,
    ):
        with pytest.raises(WorkerError, match="it said what can't be understood and was killed"):
            worker.wait(SOON_S)
        assert worker.link.is_dead.is_set()
    assert "a message of the reconstruction's process can't be understood" in caplog.text


def test_a_link_to_a_process_that_says_what_is_no_message_ends_in_order(says):
    says(b"\x93\x01")
    ended, received = threading.Event(), []
    opened = Link(["not:used", {}], lambda _, message: received.append(message), ended.set)
    try:
        assert opened.is_dead.wait(SOON_S) and ended.wait(SOON_S)
        assert not opened.wait_until_ready() and not received
        assert opened.how() == "it said what can't be understood and was killed"
    finally:
        opened.close()
    with pytest.raises(OSError):
        opened.send(["want"])


def test_a_hang_is_told_once_and_ended_when_it_lasts(says, caplog):
    says(b"\x90")
    opened = Link(["not:used", {}], lambda *_: None, lambda: None)
    silence = Silence("a step", 2.5, 0.5, 30.0)
    try:
        with caplog.at_level(logging.WARNING, "bluesky_cdi"):
            for left_s in (30.0, 29.5, 29.0):
                opened.learn(replace(silence, left_s=left_s))
            assert [record.getMessage() for record in caplog.records] == [
                "the reconstruction has been at a step for 2.5 s, where up to 0.5 s are usual; the scan goes on. "
                "It is started again if that lasts 30 s more."
            ]
            opened.learn(None)
            opened.learn(None)
            assert caplog.records[1].getMessage() == "the reconstruction goes on after 2 s at a step"
            assert len(caplog.records) == 2
            opened.learn(replace(silence, for_s=32.5, left_s=0.0))
        assert opened.is_dead.wait(SOON_S)
        assert opened.how() == "it had been at a step for 32 s without a sign of life and was killed"
    finally:
        opened.close()
