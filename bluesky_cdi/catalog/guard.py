"""What stands before the catalog's server: it refuses what would keep it, and the scan beside it, busy."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# Of a body, in bytes. Without the key there is nothing to send but a log-in. JSON takes 25 times its size in memory
# and holds up the whole process while it is parsed; arrays are taken as they are.
UNKNOWN_MAX = 64 * 2**10
JSON_MAX = 16 * 2**20
BINARY_MAX = 2**30
# Pages that describe the server to anybody.
DESCRIPTIONS = ("/docs", "/redoc", "/openapi.json")
# What reads only: by its method, or, where what is asked for may be too long for an address, by its path.
READING = ("GET", "HEAD", "OPTIONS")
ASKING = tuple(f"/api/v1/{what}/" for what in ("table/partition", "table/full", "container/full", "awkward/buffers"))


class Guard:
    """An ASGI application before another one.

    It refuses bodies that are too large before anything of them is parsed: by the size that they state, or, where
    they state none, as soon as more has come. Descriptions of the server are for those who have the key.

    Parameters
    ----------
    app : ASGI application
        The server proper.
    api_key : str
        The key that a request must carry to count as known.
    read_only : bool
        Refuse whatever would change something, whoever asks.
    """

    def __init__(self, app: Any, api_key: str, *, read_only: bool = False) -> None:
        self._app, self._api_key, self._read_only = app, api_key, read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        known = self._is_known(scope, headers)
        if scope["path"].startswith(DESCRIPTIONS) and not known:
            await _answer(send, 401, "the server's description needs its key")
            return
        if self._read_only and not _reads(scope):
            await _answer(send, 405, "this server is read-only")
            return
        most = _most(known, headers)
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > most:
            await _answer(send, 413, f"a body may have at most {most} bytes here")
            return
        ends = not known and b"transfer-encoding" in headers
        await self._app(scope, _Counted(receive, most), _closing(send) if ends else send)

    def _is_known(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        return any(is_key(each, self._api_key) for each in offered_keys(scope, headers, "tiled_api_key"))


def offered_keys(scope: Scope, headers: Mapping[bytes, bytes], cookie: str) -> list[str]:
    """List the keys that a request carries: in its header, in its address, and in a cookie.

    Parameters
    ----------
    scope : Mapping
        Of the request.
    headers : Mapping
        Its headers, by their names in lower case.
    cookie : str
        Name of the cookie.
    """
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    offered = [key.strip()] if kind.lower() == "apikey" else []
    offered += parse_qs(scope.get("query_string", b"").decode("latin-1")).get("api_key", [])
    cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    return offered + ([cookies[cookie].value] if cookie in cookies else [])


def is_key(offered: str, api_key: str) -> bool:
    """Tell whether an offered key is the right one, in a time that does not tell how much of it is."""
    return secrets.compare_digest(offered.encode(), api_key.encode())


class _Counted:
    """Receives a body until it is larger than it may be; then the client counts as gone."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most

    async def __call__(self) -> dict[str, Any]:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        return message if self._left >= 0 else {"type": "http.disconnect"}


def _closing(send: Send) -> Send:
    """Send answers after which the connection ends: what else comes of the body is not read."""

    async def closing(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return closing


def _reads(scope: Scope) -> bool:
    return scope["method"] in READING or (scope["method"] == "POST" and scope["path"].startswith(ASKING))


def _most(known: bool, headers: Mapping[bytes, bytes]) -> int:
    if not known:
        return UNKNOWN_MAX
    return JSON_MAX if b"json" in headers.get(b"content-type", b"json") else BINARY_MAX


async def _answer(send: Send, status: int, detail: str) -> None:
    body = f'{{"detail": "{detail}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of a body that is refused is not read: the connection ends.
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
