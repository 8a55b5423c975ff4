"""Documents through bluesky's own proxy, and results back through it."""

import contextlib
import functools
import logging
import pickle
import socket
import threading
import uuid

import msgpack
import msgpack_numpy
import pytest
import zmq.auth
from bluesky.callbacks.zmq import Publisher

from bluesky_cdi.errors import BlueskyCDIError, ConfigError
from bluesky_cdi.follow.publishing import Careful, ZmqPublisher, publisher_of
from bluesky_cdi.follow.wire import decode
from bluesky_cdi.follow.zmq_ends import Curve, address_of, is_here
from bluesky_cdi.follow.zmq_source import ZmqSource

SOON_S = 120.0
serializer = functools.partial(msgpack.packb, default=msgpack_numpy.encode)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Ends:
    """Addresses of a proxy, as bluesky's class has them."""

    def __init__(self, ports):
        self.in_port, self.out_port = ports


@pytest.fixture(scope="module")
def running(start_zmq_proxy):
    with start_zmq_proxy() as ports:
        yield Ends(ports)


def arrived(source, n):
    found = []
    until = threading.Event()
    timer = threading.Timer(SOON_S, until.set)
    timer.start()
    while len(found) < n and not until.is_set():
        if (message := source.next(0.2)) is not None:
            found.append(message)
    timer.cancel()
    return found


@contextlib.contextmanager
def publishing(made, source, **options):
    """A Publisher whose documents reach the source: what is sent before all are connected is lost."""
    publisher = Publisher(made.in_port, **options)
    done, its_own = threading.Event(), str(uuid.uuid4())

    def knock():
        while not done.wait(0.02):
            publisher("stop", {"run_start": f"knock {its_own}"})

    def wait_for(knock):
        # Those of other publishers may come meanwhile.
        while arrived(source, 1)[0].doc["run_start"] != f"{knock} {its_own}":
            pass

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        wait_for("knock")
        done.set()
        knocking.join()
        publisher("stop", {"run_start": f"last knock {its_own}"})
        wait_for("last knock")
        yield publisher
    finally:
        done.set()
        knocking.join()
        publisher.close()


def warned(caplog):
    """What was warned of; other tests may have a logger say more."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def same(found, run):
    assert [message.name for message in found] == [name for name, _ in run.documents]
    for message, (_, doc) in zip(found, run.documents, strict=True):
        assert serializer(message.doc) == serializer(doc)


def test_documents_of_one_prefix_and_of_all(running, published):
    with (
        contextlib.closing(ZmqSource(running.out_port)) as everything,
        contextlib.closing(ZmqSource(running.out_port, "b")) as only_b,
        publishing(running, only_b, prefix=b"b", serializer=serializer) as b,
        publishing(running, everything, prefix=b"a", serializer=serializer) as a,
    ):
        one, two = published("one"), published("two")
        for documents in zip(one.documents, two.documents, strict=True):
            a(*documents[0])
            b(*documents[1])
        same(arrived(only_b, len(two.documents)), two)
        wanted = len(one.documents) + len(two.documents)
        found = []
        while len(found) < wanted:
            (each,) = arrived(everything, 1)
            if "knock" not in str(each.doc.get("run_start")):
                found.append(each)
        for place, run in (("a", one), ("b", two)):
            same([message for message in found if message.place == place], run)


def test_pickles_are_refused_with_one_line(running, published, caplog):
    with (
        contextlib.closing(ZmqSource(running.out_port)) as source,
        publishing(running, source, prefix=b"good", serializer=serializer) as good,
    ):
        bad = Publisher(running.in_port, prefix=b"bad")
        good("start", {"uid": "x"})
        assert arrived(source, 1)
        while not [record for record in caplog.records if "pickled" in record.getMessage()]:
            bad("start", {"uid": "pickled"})
            source.next(0.02)
        for _ in range(5):
            bad("start", {"uid": "pickled"})
        bad.close()
        good("start", {"uid": "y"})
        assert arrived(source, 1)[0].doc == {"uid": "y"}
    (line,) = warned(caplog)
    assert "prefix 'bad' are refused" in line and "serializer=" in line


def test_pickles_that_are_trusted(running, published, caplog):
    with contextlib.closing(ZmqSource(running.out_port, trust_pickle=True)) as source:
        assert "can run code here" in caplog.text
        with publishing(running, source) as publisher:
            run = published("a")
            for each in run.documents:
                publisher(*each)
            same(arrived(source, len(run.documents)), run)


@pytest.mark.parametrize("address", ["beamline:5578", "tcp://10.0.0.3:5578", "0.0.0.0:5578", "localhost.org:1"])
def test_pickles_from_elsewhere_are_never_trusted(address):
    with pytest.raises(ConfigError, match="by CURVE"):
        ZmqSource(address, trust_pickle=True)


def test_addresses():
    assert address_of("ws1:5578") == "tcp://ws1:5578"
    assert address_of("ipc:///tmp/x") == "ipc:///tmp/x"
    assert [is_here(address_of(each)) for each in ("localhost:1", "127.0.0.9:1", "ipc:///x", "[::1]:1", "ws1:1")] == [
        True, True, True, True, False
    ]  # fmt: skip
    for wrong in ("ws1", "5578", "udp://ws1:1", "ipc://x", "ws1:port", ":1"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            address_of(wrong)
    with pytest.raises(ConfigError, match="no spaces"):
        ZmqSource("localhost:1", "a b")


def test_messages_that_are_no_documents(running, caplog):
    def raw_or_packed(doc):
        return doc if isinstance(doc, bytes) else serializer(doc)

    with (
        contextlib.closing(ZmqSource(running.out_port)) as source,
        publishing(running, source, serializer=raw_or_packed) as publisher,
    ):
        for name, data in (("start", b"\xc1"), ("nonsense", {}), ("start", b"\x01"), ("start", {"uid": "a"})):
            publisher(name, data)
        publisher._socket.send(b"no spaces")
        publisher("stop", {"run_start": "a"})
        assert [message.name for message in arrived(source, 2)] == ["start", "stop"]
    assert len(warned(caplog)) == 3


def test_a_proxy_that_is_dead_is_told_and_waited_for(start_zmq_proxy, published, caplog, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.follow.zmq_source.CONNECT_S", 0.1)
    caplog.set_level(logging.INFO, "bluesky_cdi.follow")
    inner, outer = free_port(), free_port()
    ports = f"tcp://127.0.0.1:{inner}", f"tcp://127.0.0.1:{outer}"

    def until(text):
        for _ in range(int(SOON_S / 0.1)):
            assert source.next(0.1) is None or True
            if any(text in record.getMessage() for record in caplog.records):
                return
        raise AssertionError(text)

    with contextlib.closing(ZmqSource(f"127.0.0.1:{outer}")) as source:
        until("no proxy answers")
        for _ in range(2):
            caplog.clear()
            with start_zmq_proxy(*ports) as made:
                made = Ends(made)
                until("connected to the proxy")
                run = published("a")
                with publishing(made, source, serializer=serializer) as publisher:
                    for each in run.documents:
                        publisher(*each)
                    same(arrived(source, len(run.documents)), run)
            until("is gone, and waited for")
            # On a busy machine it may be said meanwhile that none answers.
            told = [record for record in caplog.records if "no proxy answers" not in record.getMessage()]
            assert len(told) == 2


def make_keys(folder):
    for name in ("proxy", "client", "stranger"):
        zmq.auth.create_certificates(folder, name)
    allowed = folder / "allowed"
    allowed.mkdir()
    (folder / "client.key").rename(allowed / "client.key")
    return str(folder / "proxy.key_secret"), str(allowed)


def test_curve(start_zmq_proxy, tmp_path, caplog):
    keys = make_keys(tmp_path)
    with start_zmq_proxy(keys=keys) as ports:
        made = Ends(ports)
        curve = Curve(tmp_path / "client.key_secret", tmp_path / "proxy.key")
        with (
            contextlib.closing(ZmqSource(made.out_port, curve=curve)) as source,
            publishing(made, source, serializer=serializer) as publisher,
        ):
            publisher("start", {"uid": "a"})
            assert arrived(source, 1)[0].doc == {"uid": "a"}
        stranger = Curve(tmp_path / "stranger.key_secret", tmp_path / "proxy.key")
        with contextlib.closing(ZmqSource(made.out_port, curve=stranger)) as source:
            while "refuses the connection" not in caplog.text:
                assert source.next(0.1) is None


def test_keys_that_can_not_be_read(tmp_path):
    make_keys(tmp_path)
    with pytest.raises(ConfigError, match="can't be read"):
        ZmqSource("localhost:1", curve=Curve(tmp_path / "absent", tmp_path / "proxy.key"))
    with pytest.raises(ConfigError, match="key_secret"):
        ZmqSource("localhost:1", curve=Curve(tmp_path / "proxy.key", tmp_path / "proxy.key"))


def test_results_go_to_the_proxy_whole_and_in_order(running, published):
    with (
        contextlib.closing(ZmqSource(running.out_port, "results")) as source,
        publishing(running, source, prefix=b"results", serializer=serializer),
    ):
        publish = publisher_of({"zmq": {"address": running.in_port, "prefix": "results", "curve": None}})
        for uid in ("first", "second"):
            run = published(uid)
            for each in run.documents:
                publish(*each)
            same(arrived(source, len(run.documents)), run)


def test_without_a_proxy_nothing_is_held_up(published, caplog, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.follow.publishing.PATIENCE_S", 0.05)
    publish = Careful(ZmqPublisher(f"tcp://127.0.0.1:{free_port()}"))
    for each in published("a").documents * 2:
        publish(*each)
    lines = warned(caplog)
    assert len(lines) == 2 and all("and not published: no proxy answers" in line for line in lines)


def test_of_a_run_that_can_not_be_published_the_rest_is_left_out(caplog):
    sent = []

    def publish(name, doc):
        if doc == 2:
            raise BlueskyCDIError("no")
        sent.append(doc)

    careful = Careful(publish)
    for name, doc in [("start", 1), ("event", 2), ("stop", 3), ("start", 4), ("stop", 5)]:
        careful(name, doc)
    assert sent == [1, 4, 5] and len(warned(caplog)) == 1


def test_publishers_pickle_unless_they_are_told_otherwise():
    """What the refusal is for; should a later bluesky change that, the documentation must too."""
    assert Publisher.__init__.__kwdefaults__["serializer"] is pickle.dumps
    assert decode(serializer({"a": 1})) == {"a": 1}
