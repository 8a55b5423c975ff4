"""Who may see the page, and what a browser may do with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from bluesky_cdi.catalog.guard import Receive, Scope, Send, is_key, offered_keys

# Frameworks name the types of the three in ways of their own.
App = Callable[[Any, Any, Any], Awaitable[None]]

# Nothing from elsewhere is loaded, no script runs but the page's own files, and no other page may show this one.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# What is shown to those who have no key: the question for it, and that there is a server.
OPEN = ("/page/static/style.css", "/healthz")


class Access:
    """An ASGI application before the page: it lets those in who have the key, and adds what browsers must be told.

    A key that comes in the address goes into a cookie, and the address is told again without it, so that it stays in no
    history, bookmark or log.

    Parameters
    ----------
    app : ASGI application
        The page proper.
    api_key : str
        The key.
    public : bool
        Let those in who have none.
    ask : bytes
        HTML that asks for the key.
    """

    def __init__(self, app: App, api_key: str, *, public: bool, ask: bytes) -> None:
        self._app, self._api_key, self._public, self._ask = app, api_key, public, ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, [(b"allow", b"GET, HEAD")], b"the page is only looked at\n")
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        cookie = f"bluesky_cdi_{(scope.get('server') or ('', 0))[1]}"
        known = any(is_key(each, self._api_key) for each in offered_keys(scope, headers, cookie))
        query = scope.get("query_string", b"").decode("latin-1")
        if known and scope["path"] == "/page/" and "api_key" in query:
            rest = urlencode([(name, value) for name, value in parse_qsl(query) if name != "api_key"])
            keep = f"{cookie}={self._api_key}; Path=/page; HttpOnly; SameSite=Strict"
            to = f"/page/?{rest}" if rest else "/page/"
            await _answer(send, 303, [(b"location", to.encode()), (b"set-cookie", keep.encode())], b"")
            return
        if not (known or self._public or scope["path"] in OPEN):
            await self._refuse(scope, send)
            return
        await self._app(scope, receive, _with_headers(send))

    async def _refuse(self, scope: Scope, send: Send) -> None:
        if scope["path"] == "/page/":
            await _answer(send, 401, [(b"content-type", b"text/html; charset=utf-8")], self._ask)
        else:
            await _answer(send, 401, [(b"content-type", b"application/json")], b'{"detail": "the page needs its key"}')


def _with_headers(send: Send) -> Send:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    told = [*headers, length, (b"cache-control", b"no-store"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})
