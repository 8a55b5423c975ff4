"""Results published where their runs came from: to a proxy of 0MQ, or to a topic of Kafka.

Documents go out as msgpack with arrays as msgpack-numpy has them. Publishing never holds up a reconstruction for longer
than some seconds, and never fails it: what could not be published is told in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.follow.wire import encode
from bluesky_cdi.follow.zmq_ends import Curve

logger = logging.getLogger(__name__)

# How long a proxy or broker is waited for, at the beginning and at the end of a run, seconds.
PATIENCE_S = 5.0

Publish = Callable[[str, Mapping[str, Any]], None]


def publisher_of(arguments: Mapping[str, Any]) -> Publish:
    """Make what publishes documents.

    Parameters
    ----------
    arguments : Mapping
        Plain values. ``zmq``: ``address``, ``prefix`` and ``curve`` (two paths, or None). ``kafka``: ``settings`` of
        the client and ``topic``.
    """
    if "zmq" in arguments:
        given = arguments["zmq"]
        curve = None if given["curve"] is None else Curve(*map(Path, given["curve"]))
        return Careful(ZmqPublisher(given["address"], given["prefix"], curve))
    return Careful(KafkaPublisher(arguments["kafka"]["settings"], arguments["kafka"]["topic"]))


class Careful:
    """Publishes; of a run of which something can't be published, the rest is left out, and that is told.

    Parameters
    ----------
    publish : callable
        May raise.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish, self._is_left_out = publish, False

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Publish a document of a derived run."""
        if name == "start":
            self._is_left_out = False
        if self._is_left_out:
            return
        try:
            self._publish(name, doc)
        except Exception as err:  # noqa: BLE001 - whatever a client raises, the result is kept all the same
            self._is_left_out = True
            logger.warning("the result is in the catalog, and not published: %s", err)


class ZmqPublisher:
    """Publishes the documents of one run after the other to a proxy, by a connection each.

    Parameters
    ----------
    address : str
        The proxy's inner one, with its protocol.
    prefix : str
        Of the messages.
    curve : Curve, optional
        Keys.
    """

    def __init__(self, address: str, prefix: str = "", curve: Curve | None = None) -> None:
        self._address, self._prefix, self._curve = address, prefix.encode(), curve
        self._context: Any = None
        self._socket: Any = None

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Publish a document.

        Raises
        ------
        BlueskyCDIError
            If no proxy is there.
        """
        if name == "start":
            self._open()
        if self._socket is not None:
            self._socket.send(b" ".join([self._prefix, name.encode(), encode(doc)]))
        if name == "stop":
            self._close()

    def _open(self) -> None:
        import zmq

        self._close()
        self._context = zmq.Context()
        # Of a subscriber that is not there yet 0MQ throws everything away. This kind of socket hears of the proxy's
        # subscription.
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, int(1000 * PATIENCE_S))
        try:
            if self._curve is not None:
                self._curve.apply(self._socket)
            self._socket.connect(self._address)
            if not self._socket.poll(int(1000 * PATIENCE_S)):
                raise BlueskyCDIError(f"no proxy answers at {self._address} within {PATIENCE_S:g} s")
        except BlueskyCDIError:
            self._close()
            raise

    def _close(self) -> None:
        """Wait until all is sent, at most for the time that it may linger."""
        if self._socket is not None:
            self._socket.close()
            self._context.term()
            self._socket = self._context = None


class KafkaPublisher:
    """Publishes documents to a topic; all of a run to one partition, in order.

    Parameters
    ----------
    settings : Mapping
        Of the client: ``bootstrap.servers`` and what else it needs.
    topic : str
        Where to.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        from bluesky_cdi.follow.kafka_ends import kafka

        self._producer = kafka().Producer({**settings, "enable.idempotence": True})
        self._topic, self._key = topic, b""
        self._refused: list[str] = []

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Publish a document.

        Raises
        ------
        BlueskyCDIError
            If the broker has not taken all when the run has ended.
        """
        if name == "start":
            self._key, self._refused = str(doc["uid"]).encode(), []
        self._producer.produce(self._topic, key=self._key, value=encode([name, doc]), on_delivery=self._delivered)
        self._producer.poll(0)
        if name == "stop":
            if left := self._producer.flush(PATIENCE_S):
                self._producer.purge()
                raise BlueskyCDIError(f"no broker has taken {left} document(s) within {PATIENCE_S:g} s")
            if self._refused:
                raise BlueskyCDIError(f"the broker refuses {len(self._refused)} document(s): {self._refused[0]}")

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._refused.append(str(error))
