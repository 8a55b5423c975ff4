"""Documents from the proxy of `bluesky.callbacks.zmq`.

A message is one frame of 0MQ: prefix, kind and document, with a space between them. The prefix may be empty.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from bluesky_cdi.errors import ConfigError, DocumentError
from bluesky_cdi.follow.source import PARENTS, Complaints, Message
from bluesky_cdi.follow.wire import PickleError, decode
from bluesky_cdi.follow.zmq_ends import Curve, address_of, is_here

logger = logging.getLogger(__name__)

# Messages that may wait in this process: 0MQ drops what comes beyond. Its default is 1000.
WAITING_MAX = 10_000
# A longer message is no document: 1 GiB, a detector of 16k x 16k pixels of 4 bytes.
BYTES_MAX = 2**30
# A proxy whose machine is gone says nothing: it is asked so often, and given up after so long, milliseconds.
HEARTBEAT_MS, SILENT_MS = 5_000, 15_000
# How long a connection may take before that is told, seconds.
CONNECT_S = 3.0


class ZmqSource:
    """Subscribes to a proxy, and waits for it where it is not there.

    Parameters
    ----------
    address : str
        The proxy's outer one, as ``HOST:PORT``.
    prefix : str
        Of the documents that are wanted; empty: of all.
    curve : Curve, optional
        Keys, for a proxy that asks for them.
    trust_pickle : bool
        Read pickled documents. Whoever can publish to the proxy can then run code here, as this user.

    Raises
    ------
    ConfigError
        If the address can't be one, a key can't be read, or pickles would be trusted from anywhere: by a connection
        to another machine without CURVE.
    """

    def __init__(
        self, address: str, prefix: str = "", *, curve: Curve | None = None, trust_pickle: bool = False
    ) -> None:
        import zmq

        self.address, self._trust_pickle = address_of(address), trust_pickle
        if " " in prefix:
            raise ConfigError(f"a prefix has no spaces; got {prefix!r}")
        if trust_pickle:
            _check_trust(self.address, curve)
        self._complaints, self._is_connected, self._asked_at = Complaints(), False, time.monotonic()
        self._zmq = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        try:
            self._socket.setsockopt(zmq.RCVHWM, WAITING_MAX)
            self._socket.setsockopt(zmq.MAXMSGSIZE, BYTES_MAX)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)
            self._socket.setsockopt(zmq.SUBSCRIBE, f"{prefix} ".encode() if prefix else b"")
            if curve is not None:
                curve.apply(self._socket)
            self._monitor = self._socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED
                | zmq.EVENT_DISCONNECTED
                | zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            )
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
            self._poller.register(self._monitor, zmq.POLLIN)
            self._socket.connect(self.address)
        except BaseException:
            self._context.destroy(0)
            raise

    def next(self, timeout_s: float) -> Message | None:
        """Give what comes next; None where nothing has come.

        Parameters
        ----------
        timeout_s : float
            How long to wait, seconds.
        """
        until = time.monotonic() + timeout_s
        while (left_s := until - time.monotonic()) > 0:
            ready = dict(self._poller.poll(int(1000 * left_s) + 1))
            if self._monitor in ready:
                self._learn()
            if self._socket in ready and (message := self._read(self._socket.recv())) is not None:
                return message
            if not self._is_connected and time.monotonic() - self._asked_at > CONNECT_S:
                self._complaints.tell("proxy", "no proxy answers at %s: it is waited for", self.address)
        return None

    def done_before(self, offsets: Mapping[str, int]) -> None:
        """Do nothing: a proxy keeps no documents."""

    def close(self) -> None:
        """End the subscription."""
        self._socket.disable_monitor()
        self._context.destroy(0)

    def _learn(self) -> None:
        """Tell what has become of the connection."""
        from zmq.utils.monitor import recv_monitor_message

        event = recv_monitor_message(self._monitor)["event"]
        if event == self._zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._is_connected = True
            self._complaints.forget("proxy")
            logger.info("connected to the proxy at %s", self.address)
        elif event == self._zmq.EVENT_DISCONNECTED:
            if self._is_connected:
                logger.warning(
                    "the proxy at %s is gone, and waited for; what is published meanwhile is lost", self.address
                )
                self._complaints.forget("refused")
            self._is_connected, self._asked_at = False, time.monotonic()
        else:
            self._complaints.tell(
                "refused",
                "the proxy at %s refuses the connection: are these the keys that it knows (CURVE), and is it one of "
                "0MQ? It is asked again",
                self.address,
            )

    def _read(self, data: bytes) -> Message | None:
        """Read a message; None where it is no document."""
        prefix, _, rest = data.partition(b" ")
        kind, _, packed = rest.partition(b" ")
        name, place = kind.decode("ascii", "replace"), prefix.decode("utf-8", "replace")
        if name not in PARENTS and name != "start":
            self._complaints.tell("kind", "what is no document is left out: %.80r", data[:80])
            return None
        try:
            doc: Any = decode(packed, trust_pickle=self._trust_pickle)
        except PickleError as err:
            self._complaints.tell(
                ("pickle", place), "documents of the prefix %r are refused: %s. See docs/follow.md.", place, err
            )
            return None
        except DocumentError as err:
            self._complaints.tell(("packed", place, name), "a %s document is left out: %s", name, err)
            return None
        if not isinstance(doc, dict):
            self._complaints.tell(
                ("type", place), "a %s document must be a mapping; got a %s", name, type(doc).__name__
            )
            return None
        return Message(name, doc, place)


def _check_trust(address: str, curve: Curve | None) -> None:
    """Refuse to run code from anywhere."""
    if curve is None and not is_here(address):
        raise ConfigError(
            f"pickled documents run whatever code their sender wants. They can be trusted from a proxy on this machine "
            f"or by CURVE; {address} is neither. Give the beamline's Publisher another serializer (docs/follow.md), or "
            "give the keys of the proxy."
        )
    logger.warning(
        "pickled documents are trusted: whoever can publish to the proxy at %s can run code here, as this user", address
    )
