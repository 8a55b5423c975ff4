"""What the catalog's server refuses; one server for all of these tests."""

import asyncio
import contextlib
import shutil
import socket

import httpx
import pytest

from bluesky_cdi.catalog import serve
from bluesky_cdi.catalog.guard import Guard


@pytest.fixture(scope="module")
def address(empty_catalog, tmp_path_factory):
    directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("guarded") / "catalog")
    with serve(directory, api_key="Key1") as uri:
        yield uri.partition("/api/v1")[0]


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/openapi.json"])
def test_description_needs_the_key(address, page):
    assert httpx.get(address + page, trust_env=False).status_code == 401
    assert httpx.get(address + page, headers={"Authorization": "Apikey Key2"}, trust_env=False).status_code == 401
    for known in ({"headers": {"Authorization": "Apikey Key1"}}, {"params": {"api_key": "Key1"}}):
        assert httpx.get(address + page, trust_env=False, **known).status_code == 200


@pytest.mark.parametrize("key", [None, "Key2", ""])
def test_nothing_is_read_without_the_key(address, key):
    for page in ("/api/v1/search/", "/api/v1/metadata/"):
        params = {} if key is None else {"api_key": key}
        assert httpx.get(address + page, params=params, trust_env=False).status_code == 401
        assert httpx.get(address + page, params={"api_key": "Key1"}, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "passes"),
    [
        ("GET", "/api/v1/metadata/raw", True),
        ("HEAD", "/", True),
        ("POST", "/api/v1/table/full/raw/a/primary/internal", True),
        ("POST", "/api/v1/metadata/raw", False),
        ("POST", "/api/v1/register/raw", False),
        ("PUT", "/api/v1/table/full/raw/a/primary/internal", False),
        ("PATCH", "/api/v1/metadata/raw", False),
        ("DELETE", "/api/v1/metadata/raw", False),
        ("PROPFIND", "/api/v1/metadata/raw", False),
    ],
)
@pytest.mark.parametrize("read_only", [True, False])
def test_a_read_only_server_changes_nothing_even_for_those_who_have_the_key(method, path, passes, read_only):
    """The server proper is not asked."""
    passed, answers = [], []

    async def server(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        answers.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"authorization", b"Apikey Key1")]}
    asyncio.run(Guard(server, "Key1", read_only=read_only)(scope, None, send))
    assert passed == ([path] if passes or not read_only else [])
    assert answers[:1] == ([] if passed else [405])


def request_of(size, *, key=None, kind="application/json", stated=True):
    """The head of a request and its body, which is never sent whole: (head, body)."""
    lines = [
        "POST /api/v1/metadata/ HTTP/1.1",
        "Host: here",
        f"Content-Type: {kind}",
        f"Content-Length: {size}" if stated else "Transfer-Encoding: chunked",
        *([f"Authorization: Apikey {key}"] if key else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    ("size", "key", "kind"),
    [
        (10**8, None, "application/json"),
        (10**8, "wrong", "application/octet-stream"),
        (10**8, "Key1", "application/json"),
        (2 * 10**9, "Key1", "application/octet-stream"),
    ],
)
def test_large_body_is_refused_before_it_is_sent(address, size, key, kind):
    """Only the head is sent: the answer can't have waited for the body."""
    host, port = address.removeprefix("http://").split(":")
    with contextlib.closing(socket.create_connection((host, int(port)), 240.0)) as connection:
        connection.sendall(request_of(size, key=key, kind=kind))
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"a body may have at most" in answer


def test_body_that_states_no_size_is_cut(address):
    """The server ends the connection long before the client has sent what it means to."""
    host, port = address.removeprefix("http://").split(":")
    sent, block = 0, b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with contextlib.closing(socket.create_connection((host, int(port)), 240.0)) as connection:
        connection.sendall(request_of(0, stated=False))
        with pytest.raises(OSError):
            while sent < 2**30:
                connection.sendall(block)
                sent += 0x10000
    assert sent < 2**27


def test_body_of_a_known_client_passes(address):
    body = b'{"structures": [], "metadata": {"text": "' + b"a" * 2**20 + b'"}, "specs": []}'
    answer = httpx.post(
        address + "/api/v1/metadata/",
        content=body,
        headers={"Authorization": "Apikey Key1", "Content-Type": "application/json"},
        trust_env=False,
        timeout=240.0,
    )
    assert answer.status_code != 413
