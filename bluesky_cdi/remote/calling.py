"""A session's machine calls a host: who is there, and a connection to one that has room."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from bluesky_cdi.config import HostConfig
from bluesky_cdi.errors import DocumentError, HostError
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.remote.keys import identify
from bluesky_cdi.remote.tunnel import HELLO, PING, PONG, REFUSED, VERSION, WELCOME, limit_messages

Context = zmq.Context[zmq.Socket[bytes]]

_REFUSED_KEY = (
    "it does not take this machine's key: make one there with `bluesky-cdi serve-reconstructor --keys FOLDER "
    "--new-client NAME`, start it again, and name the folder that it made in reconstructor.host.keys"
)
_NO_HOST = "what listens there is no such host, or one of the two has keys and the other none (reconstructor.host.keys)"
# What the monitor of a socket tells, and what that means to a user.
_FAILURES = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: _REFUSED_KEY,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: _NO_HOST,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: _NO_HOST,
    zmq.Event.CONNECT_RETRIED: "nobody listens there (is `bluesky-cdi serve-reconstructor` running, is a tunnel open?)",
    zmq.Event.DISCONNECTED: "the connection broke",
}


@dataclass(frozen=True)
class HostState:
    """What a host says of itself.

    Attributes
    ----------
    address : str
    version : str
        Of the package there.
    sessions, max_sessions : int
        That it serves, and may serve.
    devices : tuple of str
        PyTorch devices that it spreads them over.
    """

    address: str
    version: str
    sessions: int
    max_sessions: int
    devices: tuple[str, ...]


class Call:
    """A connection to a host.

    Parameters
    ----------
    context : zmq.Context
    address : str
        ``NAME:PORT``.
    settings : HostConfig
        Keys, and how long an answer is waited for.

    Attributes
    ----------
    socket : zmq.Socket
        Sends and gets a kind and its content.
    events : zmq.Socket
        Has a message when the connection changes.
    """

    def __init__(self, context: Context, address: str, settings: HostConfig) -> None:
        self.address, self._settings = address, settings
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        limit_messages(self.socket)
        self.socket.setsockopt(zmq.SNDTIMEO, 0)
        self.events = self.socket.get_monitor_socket(int(sum(set(_FAILURES))))
        try:
            if settings.keys is not None:
                identify(self.socket, settings.keys)
            self.socket.connect(f"tcp://{address}")
        except zmq.ZMQError as err:
            self.close()
            raise HostError(f"{address} can't be called: {err}") from err
        except BaseException:
            self.close()
            raise

    def ask(self, kind: bytes, *values: object) -> tuple[bytes, bytes]:
        """Send a packed message and wait for its answer.

        Raises
        ------
        HostError
            If there is none in time, or the host refuses.
        """
        self.socket.send_multipart([kind, pack([VERSION, *values])])
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.events, zmq.POLLIN)
        deadline = time.monotonic() + self._settings.connect_s
        while (left_s := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(int(1e3 * left_s) + 1))
            if self.socket in ready:
                answer = self.socket.recv_multipart()
                if len(answer) == 2 and answer[0] == REFUSED:
                    raise HostError(f"the host {self.address} refuses: {answer[1].decode(errors='replace')}")
                if len(answer) == 2 and answer[0] in (PONG, WELCOME):
                    return answer[0], answer[1]
            elif self.events in ready:
                raise HostError(f"no host at {self.address}: {self.failure()}")
        raise HostError(f"no host at {self.address}: no answer within {self._settings.connect_s:g} s")

    def failure(self) -> str:
        """Say what the connection's next event means."""
        event = int(recv_monitor_message(self.events)["event"])
        return next((text for each, text in _FAILURES.items() if each == event), f"event {event} of its socket")

    def close(self) -> None:
        """End the connection."""
        self.socket.disable_monitor()
        self.events.close(0)
        self.socket.close(0)


@contextlib.contextmanager
def called(address: str, settings: HostConfig) -> Iterator[Call]:
    """Open a connection that is closed in the end, with a context of its own.

    Parameters
    ----------
    address : str
        ``NAME:PORT``.
    settings : HostConfig
        Keys and times.
    """
    with zmq.Context() as context:
        call = Call(context, address, settings)
        try:
            yield call
        finally:
            call.close()


def state_of(address: str, settings: HostConfig) -> HostState:
    """Ask a host what it is like.

    Parameters
    ----------
    address : str
        ``NAME:PORT``.
    settings : HostConfig
        Keys, and how long the answer is waited for.

    Raises
    ------
    HostError
        If it does not answer, or refuses.
    ConfigError
        If a key is not usable.
    """
    with called(address, settings) as call:
        _, content = call.ask(PING)
    try:
        version, sessions, most, devices = unpack(content)
        return HostState(address, str(version), int(sessions), int(most), tuple(map(str, devices)))
    except (DocumentError, TypeError, ValueError) as err:
        raise HostError(f"the host {address} answers what can't be understood: {err}") from err


def find_host(settings: HostConfig) -> HostState:
    """Find the first host that answers and has room.

    Parameters
    ----------
    settings : HostConfig
        Addresses, keys and times.

    Raises
    ------
    HostError
        If there is none: why, of each.
    """
    reasons = []
    for address in settings.address:
        try:
            state = state_of(address, settings)
        except (HostError, OSError, ValueError) as err:
            reasons.append(str(err))
            continue
        if state.sessions < state.max_sessions:
            return state
        reasons.append(f"the host {address} is full: it serves {state.sessions} sessions")
    raise HostError("; ".join(reasons))


def greet(context: Context, settings: HostConfig, token: str, name: str) -> Call:
    """Open a session with the first host that takes it.

    Parameters
    ----------
    context : zmq.Context
        Lives longer than the connection.
    settings : HostConfig
        Addresses, keys and times.
    token : str
        Of the session: one that calls again takes the place of what it had before.
    name : str
        Of the session, for the host's log.

    Raises
    ------
    HostError
        If none does: why, of each.
    """
    reasons = []
    for address in settings.address:
        try:
            call = Call(context, address, settings)
            try:
                call.ask(HELLO, token, name)
                return call
            except BaseException:
                call.close()
                raise
        except (HostError, OSError, ValueError) as err:
            reasons.append(str(err))
    raise HostError("; ".join(reasons))
