"""The host: bytes between a session's machine and a process, and who is served."""

import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest
import zmq

from bluesky_cdi import __version__
from bluesky_cdi.config import Config, HostConfig
from bluesky_cdi.doctor import installation
from bluesky_cdi.errors import ConfigError, HostError
from bluesky_cdi.packing import pack
from bluesky_cdi.remote import calling, host, relay, tunnel
from bluesky_cdi.remote.calling import Call, find_host, greet, state_of
from bluesky_cdi.remote.host import Host, HostOptions
from bluesky_cdi.remote.keys import make_keys
from bluesky_cdi.remote.relay import Tunnel
from bluesky_cdi.remote.tunnel import ALIVE, HELLO, PIECE, REFUSED, VERSION, WINDOW, Flow

SOON_S = 240.0
BEGIN = "import socket, sys, os\nnear = socket.socket(fileno=int(sys.argv[1]))\n"
ECHO = BEGIN + "while data := near.recv(65536):\n    near.sendall(data)\n"


@pytest.fixture
def process(monkeypatch):
    """What a session's process is: a script in place of the reconstruction."""
    really, started = subprocess.Popen, []

    def prepare(script):
        def start(command, **options):
            started.append(really([sys.executable, "-c", script, *command[3:]], **options))
            return started[-1]

        monkeypatch.setattr(host.subprocess, "Popen", start)
        return started

    return prepare


@pytest.fixture
def serve(tmp_path):
    with contextlib.ExitStack() as stack:

        def started(**options):
            made = Host(HostOptions(**{"folder": tmp_path / "host", **options}))
            thread = made.thread = threading.Thread(target=made.run)
            thread.start()

            def end():
                made.stop()
                thread.join()
                made.close()

            stack.callback(end)
            return made

        yield started


@pytest.fixture
def context():
    with zmq.Context() as opened:
        yield opened


def settings(served, **options):
    return HostConfig(address=[served.address], **{"connect_s": SOON_S, **options})


@pytest.fixture
def open_tunnel(context):
    with contextlib.ExitStack() as stack:

        def opened(served, token="a", moves=lambda: None, **options):
            call = greet(context, settings(served, **options), token, "a test")
            near, far = socket.socketpair()
            stack.callback(call.close)
            stack.callback(far.close)
            far.settimeout(SOON_S)
            made = Tunnel(call, near, moves)
            # Before the connection closes, who uses it has ended.
            stack.callback(made.join)
            stack.callback(far.close)
            return far, made

        yield opened


def all_of(far):
    return b"".join(iter(lambda: far.recv(65536), b""))


def test_bytes_go_there_and_back_in_their_order(serve, process, open_tunnel, beside):
    process(ECHO)
    far, _ = open_tunnel(serve())
    data, came = os.urandom(3 * WINDOW), bytearray()
    with beside(lambda: far.sendall(data)):
        while len(came) < len(data):
            came += far.recv(65536)
    assert came == data


def test_what_comes_is_a_sign_of_life_and_silence_is_none(serve, process, open_tunnel, monkeypatch, until):
    """An estimate may take longer on a slow network than a process may be silent."""
    monkeypatch.setattr(relay, "ALIVE_S", 0.01)
    process(ECHO)
    told, moved = [], threading.Event()
    far, made = open_tunnel(serve(), moves=moved.set)
    send = made._send
    monkeypatch.setattr(made, "_send", lambda kind, content: (told.append(kind), send(kind, content)))
    for _ in range(2):
        # Of a message whose rest has not come.
        far.sendall(b"a")
        assert moved.wait(SOON_S)
        moved.clear()
        told.clear()
        until(lambda: told.count(ALIVE) > 2)
        assert not moved.is_set()


def test_who_does_not_read_is_not_sent_more_than_the_window(serve, process, open_tunnel):
    started = process(BEGIN + "near.recv(1)\nnear.sendall(b'x')\n__import__('signal').pause()\n")
    far, _ = open_tunnel(serve())
    far.sendall(b"a")
    assert far.recv(1) == b"x"
    far.settimeout(0.5)
    sent, piece = 0, bytes(PIECE)
    with pytest.raises(TimeoutError):
        while True:
            sent += far.send(piece)
    # What is on its way, and what sockets on both sides hold.
    assert sent < WINDOW + 2**22
    started[0].kill()


def test_what_was_said_before_the_end_comes_and_then_how_it_ended(serve, process, open_tunnel):
    process(BEGIN + "near.sendall(b'last words' * 100000)\nos._exit(3)\n")
    far, made = open_tunnel(serve())
    assert all_of(far) == b"last words" * 100000
    made.join()
    assert made.ended.endswith(": exit code 3") and made.code == 3


def test_a_host_that_is_stopped_tells_its_sessions_and_ends_their_processes(serve, process, open_tunnel, tmp_path):
    started = process(ECHO)
    served = serve()
    far, made = open_tunnel(served)
    far.sendall(b"a")
    assert far.recv(1) == b"a"
    (folder,) = (tmp_path / "host").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    served.stop()
    served.thread.join()
    assert all_of(far) == b""
    made.join()
    assert made.ended.endswith("the host was stopped") and made.code is None
    assert started[0].wait(SOON_S) == -9
    assert not folder.exists()


def test_a_session_that_hangs_up_ends_its_process(serve, process, open_tunnel):
    (started := process(ECHO)).clear()
    far, _ = open_tunnel(serve())
    far.sendall(b"a")
    assert far.recv(1) == b"a"
    far.close()
    assert started[0].wait(SOON_S) == -9


def test_a_session_that_is_silent_ends_its_process(serve, process, context, monkeypatch):
    monkeypatch.setattr(host, "GONE_S", 0.5)
    started = process(ECHO)
    call = greet(context, settings(serve()), "a", "a silent one")
    try:
        assert started[0].wait(SOON_S) == -9
    finally:
        call.close()


def test_a_host_that_is_silent_counts_as_gone(context, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.remote.relay.GONE_S", 0.5)
    with context.socket(zmq.ROUTER) as mute:
        port = mute.bind_to_random_port("tcp://127.0.0.1")
        call = Call(context, f"127.0.0.1:{port}", HostConfig())
        near, far = socket.socketpair()
        with contextlib.closing(call), far:
            made = Tunnel(call, near)
            assert all_of(far) == b""
            made.join()
            assert "nothing was heard of it for 0.5 s" in made.ended and made.code is None


def test_sessions_share_a_host_until_it_is_full(serve, process, open_tunnel, context):
    process(ECHO)
    served = serve(max_sessions=2, devices=("cuda:0", "cuda:1"))
    first, _ = open_tunnel(served, "a")
    second, _ = open_tunnel(served, "b")
    for far, data in ((first, b"one"), (second, b"two")):
        far.sendall(data)
        assert far.recv(10) == data
    state = state_of(served.address, settings(served))
    assert (state.sessions, state.max_sessions, state.devices) == (2, 2, ("cuda:0", "cuda:1"))
    assert sorted(each.terms.device for each in served._sessions.values()) == ["cuda:0", "cuda:1"]
    with pytest.raises(HostError, match="refuses: it is full: it serves 2 sessions already"):
        greet(context, settings(served), "c", "one too many")
    with pytest.raises(HostError, match="is full: it serves 2 sessions"):
        find_host(settings(served))
    # One that has lost its connection has its own place.
    third, _ = open_tunnel(served, "a")
    third.sendall(b"again")
    assert third.recv(10) == b"again"
    assert all_of(first) == b""


def test_the_first_host_with_room_is_taken(serve, process, context, open_tunnel):
    process(ECHO)
    full, free = serve(max_sessions=1), serve()
    far, _ = open_tunnel(full)
    far.sendall(b"a")
    assert far.recv(1) == b"a"
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        absent = f"127.0.0.1:{nobody.getsockname()[1]}"
    both = HostConfig(address=[absent, full.address, free.address], connect_s=SOON_S)
    assert find_host(both).address == free.address
    with contextlib.closing(greet(context, both, "b", "another")) as call:
        assert call.address == free.address
    reasons = rf"no host at {absent}: nobody listens there .*; the host {full.address} is full"
    with pytest.raises(HostError, match=reasons):
        find_host(HostConfig(address=[absent, full.address], connect_s=SOON_S))


def test_another_version_is_told(serve, monkeypatch):
    served = serve()
    monkeypatch.setattr(calling, "VERSION", 0)
    with pytest.raises(HostError, match=f"speaks version {VERSION} of the protocol .* the session version 0: install"):
        state_of(served.address, settings(served))


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    return folder, make_keys(folder, "beamline"), make_keys(tmp_path / "of another host", "stranger")


def test_keys_are_for_their_owner_alone(keys):
    folder, theirs, _ = keys
    secrets = [*folder.rglob("*.key_secret")]
    assert sorted(each.name for each in secrets) == ["client.key_secret", "host.key_secret"]
    assert not any(each.stat().st_mode & 0o077 for each in (*secrets, folder, theirs))
    assert sorted(each.name for each in theirs.iterdir()) == ["client.key_secret", "host.key"]
    with pytest.raises(ConfigError, match="beamline has keys already"):
        make_keys(folder, "beamline")
    before = (folder / "host.key").read_bytes()
    assert (make_keys(folder, "second") / "host.key").read_bytes() == before
    for name in ("", "a/b", "..", "ä"):
        with pytest.raises(ConfigError, match="letters, digits, - and _"):
            make_keys(folder, name)


def test_who_has_a_key_is_served_and_nobody_else(serve, process, open_tunnel, keys):
    process(ECHO)
    folder, theirs, strangers = keys
    served = serve(keys=folder)
    far, _ = open_tunnel(served, keys=theirs)
    far.sendall(b"a")
    assert far.recv(1) == b"a"
    # One that has this host's own key, but is not among those whom it serves.
    (strangers / "host.key").write_bytes((theirs / "host.key").read_bytes())
    with pytest.raises(HostError, match="it does not take this machine's key: make one there"):
        state_of(served.address, settings(served, keys=strangers))
    with pytest.raises(HostError, match="no such host, or one of the two has keys and the other none"):
        state_of(served.address, settings(served))
    assert state_of(served.address, settings(served, keys=theirs)).sessions == 1


def test_keys_that_others_may_read_or_that_are_missing_are_refused(serve, keys, tmp_path):
    folder, theirs, _ = keys
    served = serve(keys=folder)
    (theirs / "client.key_secret").chmod(0o640)
    with pytest.raises(ConfigError, match=r"others than its owner may read .*client.key_secret: chmod 600"):
        state_of(served.address, settings(served, keys=theirs))
    with pytest.raises(ConfigError, match="must be a key that"):
        state_of(served.address, settings(served, keys=tmp_path))
    for path in (folder / "clients").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="must hold keys of those to be served"):
        serve(keys=folder)


def test_without_keys_other_machines_are_kept_out(serve):
    with pytest.raises(ConfigError, match=r"must have keys: .* --new-client NAME"):
        serve(name="0.0.0.0")
    with pytest.raises(ValueError, match="would be open to its whole network"):
        HostConfig(address="gpu1:5991")
    with pytest.raises(ValueError, match="must be NAME:PORT"):
        HostConfig(address="tcp://gpu1:5991", keys="somewhere")
    with pytest.raises(ValueError, match="leave one of them out"):
        Config.model_validate({"reconstructor": {"in_process": True, "host": {"address": "127.0.0.1:5991"}}})
    assert HostConfig(address="[::1]:5991").address == ("[::1]:5991",)


def test_a_port_that_is_taken_is_told(serve):
    port = int(serve().address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"can't listen at 127.0.0.1:{port}: Address already in use"):
        serve(port=port)


GARBAGE = [
    [b""],
    [b"hello"],
    [b"hello", b"\xc1"],
    [b"hello", pack(7)],
    [b"hello", pack([VERSION])],
    [b"hello", pack([VERSION, "a", "b", "c"])],
    [b"ping", b""],
    [b"data", b"x" * 100],
    [b"no kind", b""],
    [b"a", b"b", b"c", b"d"],
]


def test_garbage_harms_nobody(serve, process, context, open_tunnel):
    process(ECHO)
    served = serve()
    far, _ = open_tunnel(served)
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2]))) as raw:
        raw.sendall(os.urandom(4096))
    for message in GARBAGE:
        with contextlib.closing(Call(context, served.address, settings(served))) as call:
            call.socket.send_multipart(message)
            assert state_of(served.address, settings(served)).sessions == 1
    far.sendall(b"still here")
    assert far.recv(10) == b"still here"


def test_a_connection_that_comes_again_on_its_own_is_told_that_it_is_not_known(serve, context):
    served = serve()
    with contextlib.closing(Call(context, served.address, settings(served))) as call:
        call.socket.send_multipart([b"data", b"the second half of something"])
        call.socket.setsockopt(zmq.RCVTIMEO, int(1e3 * SOON_S))
        assert call.socket.recv_multipart() == [REFUSED, b"the session is not known here (any more)"]


@pytest.mark.parametrize(
    "breach", [[b"data", bytes(PIECE)] * (WINDOW // PIECE + 3), [[b"credit", b"\xff\xff\xff\xff"]], [[b"credit", b""]]],
    ids=["too much", "more credit than was sent", "no number"],
)  # fmt: skip
def test_who_does_not_keep_to_the_protocol_is_cut_off(serve, process, context, breach):
    started = process(BEGIN + "__import__('signal').pause()\n")
    messages = [breach[k : k + 2] for k in range(0, len(breach), 2)] if isinstance(breach[0], bytes) else breach
    served = serve()
    with contextlib.closing(Call(context, served.address, settings(served))) as call:
        call.ask(HELLO, "a", "one that breaks the rules")
        call.socket.setsockopt(zmq.SNDTIMEO, int(1e3 * SOON_S))
        for message in messages:
            call.socket.send_multipart(message)
        assert started[0].wait(SOON_S) == -9
    assert state_of(served.address, settings(served)).sessions == 0


def test_a_flow_gives_back_credit_for_what_was_taken_alone():
    near, far = socket.socketpair()
    sent = []
    flow = Flow(near, lambda *message: sent.append(message))
    with far:
        far.sendall(b"up")
        flow.take(b"down")
        flow.turn()
        assert far.recv(10) == b"down"
        assert sent == [(tunnel.CREDIT, b"\x00\x00\x00\x04"), (tunnel.DATA, b"up")]
        flow.credit(b"\x00\x00\x00\x02")
        with pytest.raises(HostError, match="more was acknowledged than was sent"):
            flow.credit(b"\x00\x00\x00\x01")
        with pytest.raises(HostError, match="bytes came at once"):
            flow.take(bytes(WINDOW + 1))
        far.close()
        flow.turn()
        assert flow.is_over
    flow.close()


def test_nothing_is_dropped_however_many_small_messages_wait(context):
    """ZeroMQ's own limit is 1000 of them."""
    with context.socket(zmq.ROUTER) as slow:
        tunnel.limit_messages(slow)
        port = slow.bind_to_random_port("tcp://127.0.0.1")
        with contextlib.closing(Call(context, f"127.0.0.1:{port}", HostConfig())) as call:
            for k in range(20_000):
                call.socket.send_multipart([b"data", b"%d" % k])
            assert [int(slow.recv_multipart()[2]) for _ in range(20_000)] == [*range(20_000)]


def test_a_session_that_greets_twice_has_one_process(serve, process, context):
    started = process(ECHO)
    served = serve()
    with contextlib.closing(Call(context, served.address, settings(served))) as call:
        call.ask(HELLO, "a", "first")
        call.ask(HELLO, "b", "second")
        assert started[0].wait(SOON_S) == -9 and state_of(served.address, settings(served)).sessions == 1


def test_a_process_that_can_not_be_started_is_told_and_the_host_goes_on(serve, process, open_tunnel, tmp_path):
    process(ECHO)
    served = serve()
    (tmp_path / "host").rmdir()
    with pytest.raises(HostError, match=r"it can't start a process: .*No such file or directory"):
        open_tunnel(served)
    (tmp_path / "host").mkdir()
    far, _ = open_tunnel(served)
    far.sendall(b"a")
    assert far.recv(1) == b"a"


def test_the_doctor_asks_each_host(serve, monkeypatch):
    served = serve(max_sessions=1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        absent = f"127.0.0.1:{nobody.getsockname()[1]}"
    for otherwise, level in (("local", "warn"), ("none", "fail")):
        host_section = {"address": [served.address, absent], "otherwise": otherwise, "connect_s": SOON_S}
        config = Config.model_validate({"reconstructor": {"host": host_section}})
        there, away = installation.hosts(config)
        assert (there.level, away.level) == ("ok", level)
        assert there.found == f"{served.address} answers: bluesky_cdi {__version__}, 0 of 1 sessions, auto"
        assert "nobody listens there" in away.found
    monkeypatch.setattr(host, "__version__", "0.0.1")
    assert [each.level for each in installation.hosts(config)] == ["warn", "fail"]
    assert not [*installation.hosts(Config())]
