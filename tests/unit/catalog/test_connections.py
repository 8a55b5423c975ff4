"""Raw sockets at a server that ends connections which take too long; what it serves is a small application."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from bluesky_cdi.catalog import connections, serve

SOON_S = 240.0
LARGE = 32 * 2**20


async def app(scope, receive, send):
    """Answer with the size of the body, or with a large body of its own."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = b"x" * LARGE if scope["path"] == "/large" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    for first in range(0, len(body), 2**16):
        await send({"type": "http.response.body", "body": body[first : first + 2**16], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def limits(monkeypatch):
    """Set limits of the connections."""

    def set_limits(**values):
        for name, value in {"LOOK_S": 0.02, **values}.items():
            monkeypatch.setattr(connections, name, value)

    return set_limits


class Server(uvicorn.Server):
    """Tells how many of its connections are open, and at work."""

    @property
    def n_open(self):
        return len(self.server_state.connections)

    @property
    def n_at_work(self):
        return sum(not each.is_idle for each in list(self.server_state.connections))


@pytest.fixture
def server():
    """A server that runs for as long as the test."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=connections.LimitedProtocol,
            log_config=None,
            lifespan="off",
            timeout_keep_alive=240,
        )
        server = Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop():
            server.should_exit = server.force_exit = True
            thread.join()

        stack.callback(stop)
        server.address = listener.getsockname()
        yield server


@pytest.fixture
def connect(server):
    """Open sockets to the server."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(server.address, SOON_S))


def drip(client, data):
    """Send byte after byte until the server ends the connection."""
    try:
        for k in range(len(data)):
            client.sendall(data[k : k + 1])
            time.sleep(0.02)
    except OSError:
        return
    pytest.fail("the server took a request that came byte by byte")


def is_ended(client):
    """Wait until the server ends the connection; it sends nothing before."""
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True


def answer(client):
    got = b""
    while not got.endswith(b"5"):
        part = client.recv(1000)
        assert part, got
        got += part
    return got


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


def test_a_request_is_answered_and_another_one(connect):
    client = connect()
    for _ in range(3):
        client.sendall(POST + b"12345")
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_silent_clients_and_slow_heads_are_ended(connect, limits):
    limits(HEAD_S=0.3)
    silent = connect()
    drip(connect(), b"GET / HTTP/1.1\r\nHost: " + b"a" * 10_000)
    assert is_ended(silent)


def test_a_slow_second_head_is_ended(connect, limits):
    client = connect()
    client.sendall(POST + b"12345")
    assert answer(client)
    limits(HEAD_S=0.5)
    drip(client, b"GET / HTTP/1.1\r\nHost: " + b"a" * 10_000)


def test_a_head_without_end_is_ended(connect):
    client = connect()
    with contextlib.suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % k for k in range(100_000)))
    answered = b""
    with contextlib.suppress(ConnectionError):
        answered = client.recv(100)
    assert b"200" not in answered


def test_a_slow_body_is_ended(connect, limits):
    limits(BODY_S=0.3, BODY_BYTES_A_SECOND=1e9)
    stopped = connect()
    stopped.sendall(POST + b"1234")
    drip(connect(), b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"1" * 10_000)
    assert is_ended(stopped)


def test_a_long_body_at_the_rate_is_taken(connect, limits):
    limits(BODY_S=0.1, BODY_BYTES_A_SECOND=1.0)
    client = connect()
    client.sendall(POST.replace(b"5", b"1005") + b"1" * 1000)
    # Longer than without the body's beginning, which came with the head, and allows for 1000 s.
    for _ in range(5):
        time.sleep(0.3)
        client.sendall(b"1")
    assert answer(client).endswith(b"1005")


def test_a_client_that_does_not_take_its_answer_is_ended(connect, server, until, limits):
    limits(ANSWER_S=0.3)
    client = connect()
    client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    until(lambda: server.n_at_work == 1)
    until(lambda: server.n_open == 0)
    # The kernel still hands on what it has taken; the rest never comes.
    got, size = None, 0
    with contextlib.suppress(ConnectionError):
        while got != b"":
            got = client.recv(2**20)
            size += len(got)
    assert size < LARGE


def test_the_longest_idle_one_makes_room(connect, server, until, limits):
    limits(CONNECTIONS_MAX=3)
    first, second, third = connect(), connect(), connect()
    for client in (first, second, third):
        client.sendall(POST + b"12345")
        assert answer(client)
    first.sendall(POST)
    until(lambda: server.n_at_work == 1)
    newest = connect()
    assert is_ended(second)
    for client, rest in ((newest, POST + b"12345"), (first, b"12345"), (third, POST + b"12345")):
        client.sendall(rest)
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_where_all_are_at_work_a_new_one_is_refused(connect, server, until, limits):
    limits(CONNECTIONS_MAX=2)
    busy = [connect(), connect()]
    for client in busy:
        client.sendall(POST)
    until(lambda: server.n_at_work == 2)
    assert is_ended(connect())
    for client in busy:
        client.sendall(b"12345")
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_the_catalogs_server_ends_silent_connections(empty_catalog, tmp_path, limits):
    import shutil
    from urllib.parse import urlsplit

    limits(HEAD_S=0.5)
    with serve(shutil.copytree(empty_catalog, tmp_path / "catalog")) as uri:
        address = urlsplit(uri)
        with socket.create_connection((address.hostname, address.port), SOON_S) as client:
            assert is_ended(client)
