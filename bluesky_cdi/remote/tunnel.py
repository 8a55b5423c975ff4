"""What goes over the network between a session's machine and a host: a stream of bytes both ways, with credit.

The messages of `bluesky_cdi.remote.messages` are not looked into on the way: the host hands the bytes of its child's
socket on, as they come. Each message of ZeroMQ is a kind and its content:

======== ======== =========================================================================================
from     kind     content
======== ======== =========================================================================================
session  hello    version, token and name of the session, packed
session  ping     version, packed: what is the host like
host     pong     version, sessions, room and devices, packed
host     welcome  nothing: a process was started
host     refused  why not
both     data     bytes of the stream, at most `PIECE`
both     credit   so many bytes were taken out of the stream: as many more may be sent
both     alive    nothing: somebody is there
session  bye      nothing: the process is to end at once
host     end      how the process ended, packed
======== ======== =========================================================================================

At most `WINDOW` bytes are on their way in each direction; whoever sends more is cut off. So nothing piles up where a
network or a process is slow: the sender's own socket fills, and whoever writes to it waits.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

import zmq

from bluesky_cdi.errors import HostError

# Of this protocol and of the messages that go through it.
VERSION = 1

HELLO, PING, PONG, WELCOME, REFUSED = b"hello", b"ping", b"pong", b"welcome", b"refused"
DATA, CREDIT, ALIVE, BYE, END = b"data", b"credit", b"alive", b"bye", b"end"

# Bytes of a message and bytes on their way: some frames of a large detector, and little beside a computer's memory.
PIECE, WINDOW = 2**18, 2**23
MESSAGE_MAX = PIECE + 2**10
# Time between two signs of life, and after how long without any the other side counts as gone.
ALIVE_S, GONE_S = 1.0, 10.0

_NUMBER = struct.Struct(">I")

Send = Callable[[bytes, bytes], None]


def limit_messages(socket: zmq.Socket[bytes]) -> None:
    """Let a socket take what the window lets on its way, in messages of any number, and none that is larger.

    Parameters
    ----------
    socket : zmq.Socket
        Not connected yet.
    """
    # ZeroMQ would drop or refuse what lies beyond its own limits of messages, and the stream would lack it.
    for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.MAXMSGSIZE, MESSAGE_MAX), (zmq.IPV6, 1)):
        socket.setsockopt(option, value)


class Flow:
    """Hands bytes on between a socket of this machine and the network; used by one thread.

    Parameters
    ----------
    near : socket
        Of this machine; becomes non-blocking.
    send : callable
        Sends a kind and its content over the network.

    Attributes
    ----------
    is_over : bool
        Whether the near side has closed: no more comes from it, and nothing is handed to it.
    """

    def __init__(self, near: socket.socket, send: Send) -> None:
        near.setblocking(False)
        self._near, self._send = near, send
        self._room, self._passed = WINDOW, 0
        self._waiting = bytearray()
        self.is_over = False

    @property
    def is_empty(self) -> bool:
        """Whether all that came over the network was handed on."""
        return not self._waiting

    def register(self, poller: zmq.Poller) -> None:
        """Say what is waited for."""
        wanted = (zmq.POLLIN if self._room else 0) | (zmq.POLLOUT if self._waiting else 0)
        if wanted and not self.is_over:
            poller.register(self._near.fileno(), wanted)

    def turn(self) -> None:
        """Hand on what can be handed on now."""
        self._read()
        self._write()

    def take(self, data: bytes) -> None:
        """Take bytes from the network.

        Raises
        ------
        HostError
            If the other side sends more than it may.
        """
        if len(self._waiting) + len(data) > WINDOW:
            raise HostError(f"more than {WINDOW} bytes came at once: the other side does not keep to the protocol")
        if not self.is_over:
            self._waiting += data
            self._write()

    def credit(self, content: bytes) -> None:
        """Learn how much was taken at the other end.

        Raises
        ------
        HostError
            If that is more than was sent.
        """
        if len(content) != _NUMBER.size or self._room + _NUMBER.unpack(content)[0] > WINDOW:
            raise HostError("more was acknowledged than was sent: the other side does not keep to the protocol")
        self._room += _NUMBER.unpack(content)[0]

    def close(self) -> None:
        """Close the near socket."""
        self.is_over = True
        self._waiting.clear()
        self._near.close()

    def _read(self) -> None:
        while self._room and not self.is_over:
            try:
                data = self._near.recv(min(self._room, PIECE))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.is_over = True
                self._waiting.clear()
                return
            self._room -= len(data)
            self._send(DATA, data)

    def _write(self) -> None:
        # Where the near side has closed, reading tells.
        with contextlib.suppress(OSError):
            while self._waiting and not self.is_over:
                written = self._near.send(self._waiting)
                del self._waiting[:written]
                self._passed += written
        if self._passed >= WINDOW // 4 or (self._passed and not self._waiting):
            self._send(CREDIT, _NUMBER.pack(self._passed))
            self._passed = 0
