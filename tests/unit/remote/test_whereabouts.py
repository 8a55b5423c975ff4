"""Where the reconstruction's process runs when hosts come and go."""

import contextlib
import logging
import queue
import threading

import pytest

from bluesky_cdi.config import HostConfig
from bluesky_cdi.errors import HostError, WorkerError
from bluesky_cdi.journal import Journal
from bluesky_cdi.packing import unpack
from bluesky_cdi.protocols import ScanArea
from bluesky_cdi.remote import calling, supervisor
from bluesky_cdi.remote.link import CHILD, RELAY
from bluesky_cdi.remote.parent import WorkerProcess

SOON_S = 240.0
AREA = ScanArea((0.0, 0.0), (1e-6, 1e-6), 1e-7, 10, False)


class End:
    """In place of a process: keeps what is sent."""

    def __init__(self, setup, received, ended, module):
        self.module, self._received, self._ended = module, received, ended
        self.sent, self.is_dead = queue.SimpleQueue(), threading.Event()
        self.could_not_begin = self.is_closed = False

    def wait_until_ready(self):
        return True

    def send(self, message):
        self.sent.put(message)

    def next(self):
        name, *values = self.sent.get(timeout=SOON_S)
        return unpack(values[0])[0] if name == "document" else name

    def is_idle(self, n_documents):
        self._received(self, ["beat", 0, None, 0, n_documents])

    def dies(self):
        self.is_dead.set()
        self._ended()

    def how(self):
        return "the host is gone"

    def finish(self):
        pass

    def close(self):
        self.is_closed = True


class Hosts:
    """In place of what is asked over the network."""

    def __init__(self):
        self.is_there, self.asked = True, queue.SimpleQueue()

    def find(self, settings):
        self.asked.put(self.is_there)
        if not self.is_there:
            raise HostError("no host at gpu1:5991: nobody listens there")
        return calling.HostState("gpu1:5991", "1", 0, 1, ("auto",))


@pytest.fixture
def hosts(monkeypatch):
    made = Hosts()
    monkeypatch.setattr(calling, "find_host", made.find)
    return made


@pytest.fixture
def ends(monkeypatch):
    made = queue.SimpleQueue()

    def start(*args):
        made.put(end := End(*args))
        return end

    monkeypatch.setattr(supervisor, "Link", start)
    return made


@pytest.fixture
def opened(ends, hosts):
    with contextlib.ExitStack() as stack:

        def make(otherwise):
            settings = HostConfig(address="127.0.0.1:5991", otherwise=otherwise, retry_s=0.01)
            return stack.enter_context(contextlib.closing(WorkerProcess("not:used", {}, host=settings)))

        yield make


@pytest.fixture
def measure(tmp_path):
    """Append a run's documents to a journal, and tell a worker."""
    journal = Journal(tmp_path)

    def run(worker, uid, *names):
        for name in names:
            doc = {"uid": uid} if name == "start" else {"uid": f"{name} of {uid}", "run_start": uid}
            journal(name, doc)
            worker.appended(tmp_path / f"{uid}.journal")

    yield run
    journal.close()


def test_a_host_that_answers_has_the_process(opened, ends):
    opened("local")
    assert ends.get(timeout=SOON_S).module == RELAY


def test_without_a_host_this_machine_has_it_until_the_next_run(opened, ends, hosts, measure, caplog):
    hosts.is_there = False
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        worker = opened("local")
        local = ends.get(timeout=SOON_S)
        assert local.module == CHILD
        measure(worker, "a", "start")
        assert local.next() == "start"
        # A host comes while the run goes on: that one stays here, and so does one that begins before it is done.
        hosts.is_there = True
        while not worker._supervisor._where.is_found:
            hosts.asked.get(timeout=SOON_S)
        measure(worker, "a", "stop")
        measure(worker, "b", "start", "stop")
        assert [local.next() for _ in range(3)] == ["stop", "start", "stop"]
        local.is_idle(4)
        answer = worker.begin(AREA)
        far = ends.get(timeout=SOON_S)
    assert far.module == RELAY and local.is_closed
    # Nothing of the runs that this machine has reconstructed.
    assert far.next() == "begin" and not answer.done() and far.sent.empty()
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == (
        "no host at gpu1:5991: nobody listens there. The reconstruction runs on this machine until the next run. "
        "The raw run is intact."
    )
    assert "a host answers again: the reconstruction goes there" in told


def test_a_run_is_not_lost_when_the_host_that_was_found_has_gone_again(opened, ends, hosts, measure):
    hosts.is_there = False
    worker = opened("local")
    local = ends.get(timeout=SOON_S)
    hosts.is_there = True
    while not worker._supervisor._where.is_found:
        hosts.asked.get(timeout=SOON_S)
    hosts.is_there = False
    local.is_idle(0)
    measure(worker, "a", "start", "stop")
    another = ends.get(timeout=SOON_S)
    assert another.module == CHILD and [another.next() for _ in range(2)] == ["start", "stop"]


def test_a_scan_without_a_host_is_told_and_its_run_read_when_there_is_one(opened, ends, hosts, measure):
    hosts.is_there = False
    worker = opened("none")
    with pytest.raises(
        WorkerError, match=r"no host at gpu1:5991: .* Runs are recorded without a reconstruction until one"
    ):
        worker.begin(AREA).result(SOON_S)
    with pytest.raises(WorkerError, match="nobody listens there"):
        worker.check()
    for uid in ("a", "b"):
        measure(worker, uid, "start", "stop")
    # A question is answered after all that came before was noted.
    with pytest.raises(WorkerError, match="no host"):
        worker.request(1, 0).result(SOON_S)
    assert ends.empty()
    hosts.is_there = True
    far = ends.get(timeout=SOON_S)
    # The scan that was announced, and the newest run alone, from its first document.
    assert [far.next() for _ in range(3)] == ["begin", "start", "stop"]
    assert far.module == RELAY and far.sent.empty()
    worker.begin(AREA)
    assert far.next() == "begin" and worker.error is None


def test_a_host_that_dies_is_looked_for_at_once(opened, ends, hosts, measure):
    worker = opened("local")
    for _ in range(2):
        far = ends.get(timeout=SOON_S)
        assert far.module == RELAY
        measure(worker, "a", "start") if not worker.state.restarts else None
        assert far.next() == "start"
        far.dies()
    hosts.is_there = False
    far = ends.get(timeout=SOON_S)
    assert far.next() == "start"
    far.dies()
    local = ends.get(timeout=SOON_S)
    assert local.module == CHILD and local.next() == "start"


def test_who_gets_further_is_started_again_as_often_as_need_be(opened, ends, measure):
    worker = opened("none")
    measure(worker, "a", "start")
    for k in range(7):
        far = ends.get(timeout=SOON_S)
        assert far.next() == "start"
        far._received(far, ["progress", k + 1])
        far.dies()
    for _ in range(3):
        far = ends.get(timeout=SOON_S)
        assert far.next() == "start" and not worker.state.is_given_up
        far.dies()
    with pytest.raises(WorkerError, match="4 times in one run"):
        worker.wait(SOON_S)
