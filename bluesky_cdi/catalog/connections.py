"""Connections to the catalog's server: not too many, and none that holds its place without using it.

uvicorn itself closes a connection that is silent after an answer. It waits without end for one that never asks, that
sends its request byte by byte, or that does not take its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# More than a session, its processes and some viewers have open.
CONNECTIONS_MAX = 128
# Of everything before the body; addresses and headers of the server's own clients are below 4 KiB.
HEAD_MAX = 64 * 2**10
HEAD_S = 10.0
# Before a body must come at this rate, on average.
BODY_S = 30.0
BODY_BYTES_A_SECOND = 100_000.0
# As long as a client may take nothing of an answer that waits.
ANSWER_S = 60.0
LOOK_S = 0.5


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc]
    """uvicorn's HTTP protocol, which ends connections that take too long.

    A head must come within `HEAD_S` and have at most `HEAD_MAX` bytes, a body within `BODY_S` or at
    `BODY_BYTES_A_SECOND`, and an answer must be taken within `ANSWER_S`. Where `CONNECTIONS_MAX` are open, the one that
    has waited longest for a request makes room for a new one; if all are at work, the new one is refused.
    """

    _refused = False
    _looking: asyncio.TimerHandle | None = None
    _paused_at: float | None = None
    _received = 0

    def connection_made(self, transport: Any) -> None:
        """Take a connection, if there is room for it."""
        if len(self.connections) >= CONNECTIONS_MAX and not self._make_room():
            self._refused = True
            transport.abort()
            return
        super().connection_made(transport)
        # When it began to wait for a request, or to bring one.
        self._since, self._was_idle = self.loop.time(), True
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take what comes, but for a head without end."""
        if self._refused:
            return
        if self.is_idle and not self._received:
            self._since = self.loop.time()
        self._received += len(data)
        super().data_received(data)
        # The body may begin in what brought the head's end.
        self._notice(len(data))
        if self.is_idle and self._received > HEAD_MAX:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._refused:
            return
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client takes nothing."""
        self._paused_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it does again."""
        self._paused_at = None
        super().resume_writing()

    @property
    def is_idle(self) -> bool:
        """Whether there is no request, or no whole head of one."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def since(self) -> float:
        """When the connection began to be idle, or to bring its request; seconds of the loop's clock."""
        return float(self._since)

    def _make_room(self) -> bool:
        idle = [each for each in self.connections if isinstance(each, LimitedProtocol) and each.is_idle]
        if not idle:
            return False
        longest = min(idle, key=lambda each: each.since)
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    def _notice(self, received: int = 0) -> None:
        """Begin to count anew where a request has come, with bytes of its body, or has been answered."""
        if self.is_idle != self._was_idle:
            self._was_idle, self._since = self.is_idle, self.loop.time()
            self._received = 0 if self.is_idle else received

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # it ends, or has become a web socket
        self._notice()
        if self._takes_too_long(self.loop.time()):
            self.transport.abort()
            return
        self._looking = self.loop.call_later(LOOK_S, self._look)

    def _takes_too_long(self, now: float) -> bool:
        if self._paused_at is not None and now - self._paused_at > ANSWER_S:
            return True
        if self.is_idle:
            # One that is silent after an answer is uvicorn's to close.
            return (self.cycle is None or self._received > 0) and now - self._since > HEAD_S
        if not self.cycle.more_body:
            return False
        if self.flow.read_paused:
            # The server is behind, not the client.
            self._since = now
        return bool(now - self._since > BODY_S + self._received / BODY_BYTES_A_SECOND)
