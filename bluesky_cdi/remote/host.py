"""A host of reconstructions: takes sessions of other machines, and gives each a process of its own.

It loads no network library: the processes (`bluesky_cdi.remote.hosted`) do. It hands bytes on between their sockets and
the network (`bluesky_cdi.remote.tunnel`) and does not look into them. All is done by one thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import zmq

from bluesky_cdi import __version__
from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.config import is_loopback
from bluesky_cdi.errors import ConfigError, DocumentError, HostError
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.remote.hosting import OUT_OF_MEMORY, Terms
from bluesky_cdi.remote.keys import guard
from bluesky_cdi.remote.tunnel import (
    ALIVE,
    ALIVE_S,
    BYE,
    CREDIT,
    DATA,
    END,
    GONE_S,
    HELLO,
    PING,
    PONG,
    REFUSED,
    VERSION,
    WELCOME,
    Flow,
    limit_messages,
)

logger = logging.getLogger(__name__)

LOOK_S = 0.25
# How long what was said last may take to be sent when the host ends.
LINGER_S = 1.0
# How long a process may take to be gone when it is killed.
KILL_S = 5.0


@dataclass(frozen=True)
class HostOptions:
    """What a host does for whom.

    Attributes
    ----------
    name : str
        Name or number of the interface that it listens at.
    port : int
        TCP port; 0: any free one.
    keys : Path or None
        Folder of keys; without it, only this machine's own users are served.
    max_sessions : int
        At a time.
    devices : tuple of str
        PyTorch devices that sessions are spread over.
    folder : Path
        Where sessions' processes write while they last.
    paths : SharedFolders
        Folders of the sessions' machines, and where they are seen here.
    factories : tuple of str
        What sessions may name to be run here, ``module:function``, beside the ordinary one.
    """

    name: str = "127.0.0.1"
    port: int = 0
    keys: Path | None = None
    max_sessions: int = 4
    devices: tuple[str, ...] = ("auto",)
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    paths: SharedFolders = field(default_factory=SharedFolders)
    factories: tuple[str, ...] = ()


class Host:
    """Serves sessions until it is stopped.

    Parameters
    ----------
    options : HostOptions

    Attributes
    ----------
    address : str
        Where it listens, ``NAME:PORT``.

    Raises
    ------
    ConfigError
        If other machines could reach it and it has no keys, keys are not usable, or it can't listen there.
    """

    def __init__(self, options: HostOptions) -> None:
        self._options = options
        if options.keys is None and not is_loopback(options.name):
            raise ConfigError(
                f"a host that other machines reach at {options.name} must have keys: whoever can send to it has its "
                "GPU. Make some with `bluesky-cdi serve-reconstructor --keys FOLDER --new-client NAME` and start it "
                "with --keys FOLDER, or listen at 127.0.0.1 and reach it through an SSH tunnel (docs/gpu-host.md)."
            )
        self._sessions: dict[bytes, _Session] = {}
        self._stopping = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._gate = None
        try:
            options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._gate = None if options.keys is None else guard(self._context, self._socket, options.keys)
            limit_messages(self._socket)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._socket.bind(f"tcp://{options.name}:{options.port or '*'}")
        except (zmq.ZMQError, OSError) as err:
            self.close()
            raise ConfigError(f"a host can't listen at {options.name}:{options.port}: {err}") from err
        except BaseException:
            self.close()
            raise
        port = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        self.address = f"{options.name}:{port}"

    def run(self) -> None:
        """Serve until `stop` is called; then tell the sessions, and end their processes."""
        told = time.monotonic()
        while not self._stopping:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            for session in self._sessions.values():
                session.flow.register(poller)
            poller.poll(int(1e3 * LOOK_S))
            self._receive()
            is_due = time.monotonic() > told + ALIVE_S
            told = time.monotonic() if is_due else told
            for identity, session in list(self._sessions.items()):
                self._look_after(identity, session, is_due)
        for identity in list(self._sessions):
            self._end(identity, "the host was stopped")

    def stop(self) -> None:
        """End `run`; may be called from any thread or a signal's handler."""
        self._stopping = True

    def close(self) -> None:
        """Listen no more; only once `run` has ended, which tells the sessions."""
        if self._gate is not None:
            self._gate.stop()
        self._socket.close(int(1e3 * LINGER_S))
        self._context.term()

    def _receive(self) -> None:
        """Take what has come, at most a hundred messages at a time."""
        for _ in range(100):
            try:
                identity, *message = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(message) != 2:
                logger.warning("a message of %d parts is no session's and was ignored", len(message))
                continue
            kind, content = message
            try:
                if kind == PING:
                    self._answer_ping(identity, content)
                elif kind == HELLO:
                    self._begin(identity, content)
                elif identity in self._sessions:
                    self._take(identity, kind, content)
                else:
                    # One whose connection broke, and came again on its own: what was on the way is lost.
                    self._send(identity, REFUSED, b"the session is not known here (any more)")
            except (HostError, DocumentError, TypeError, ValueError) as err:
                logger.warning("what a session says can't be understood: %s", err)
                self._end(identity, f"the host could not understand what was sent: {err}")

    def _take(self, identity: bytes, kind: bytes, content: bytes) -> None:
        session = self._sessions[identity]
        session.heard = time.monotonic()
        if kind == DATA:
            session.flow.take(content)
        elif kind == CREDIT:
            session.flow.credit(content)
        elif kind == BYE:
            self._drop(identity, "it said goodbye")
        elif kind != ALIVE:
            raise HostError(f"the unknown kind {kind[:20]!r}")

    def _answer_ping(self, identity: bytes, content: bytes) -> None:
        if self._speaks_our_version(identity, unpack(content)):
            options = self._options
            answer = [__version__, len(self._sessions), options.max_sessions, list(options.devices)]
            self._send(identity, PONG, pack(answer))

    def _begin(self, identity: bytes, content: bytes) -> None:
        """Start a process for a session, if there is room."""
        said = unpack(content)
        if not self._speaks_our_version(identity, said):
            return
        _, token, name = said
        for other, session in list(self._sessions.items()):
            if session.token == token or other == identity:
                self._drop(other, "it has called again")
        if len(self._sessions) >= self._options.max_sessions:
            self._send(identity, REFUSED, f"it is full: it serves {len(self._sessions)} sessions already".encode())
            return
        used = Counter(session.terms.device for session in self._sessions.values())
        device = min(self._options.devices, key=lambda each: used[each])
        try:
            session = _Session(
                str(token), f"{name!r:.80}", self._options, device, lambda *what: self._send(identity, *what)
            )
        except OSError as err:
            logger.error("a session's process can't be started: %s", err)
            self._send(identity, REFUSED, f"it can't start a process: {err}".encode())
            return
        self._sessions[identity] = session
        logger.info("session %s has process %d on %s", session.name, session.process.pid, device)
        self._send(identity, WELCOME, b"")

    def _speaks_our_version(self, identity: bytes, said: object) -> bool:
        theirs = said[0] if isinstance(said, list) and said else None
        if theirs == VERSION:
            return True
        text = (
            f"it speaks version {VERSION} of the protocol (bluesky_cdi {__version__}), the session version "
            f"{theirs!r:.20}: install the same bluesky_cdi on both machines"
        )
        self._send(identity, REFUSED, text.encode())
        return False

    def _look_after(self, identity: bytes, session: _Session, is_due: bool) -> None:
        session.flow.turn()
        if is_due:
            self._send(identity, ALIVE, b"")
        if time.monotonic() > session.heard + GONE_S:
            self._drop(identity, f"nothing was heard of it for {GONE_S:g} s")
        elif session.flow.is_over and (code := session.process.poll()) is not None:
            self._end(identity, _how(code), code)

    def _send(self, identity: bytes, kind: bytes, content: bytes) -> None:
        """Send to a session; one that is not there any more is dropped when it is looked after next."""
        try:
            self._socket.send_multipart([identity, kind, content], zmq.NOBLOCK)
        except zmq.ZMQError as err:
            logger.debug("a message can't be sent: %s", err)
            if identity in self._sessions:
                self._sessions[identity].heard = -GONE_S

    def _end(self, identity: bytes, how: str, code: int | None = None) -> None:
        """Tell a session how its process ended."""
        self._send(identity, END, pack([how, code]))
        self._drop(identity, how)

    def _drop(self, identity: bytes, why: str) -> None:
        session = self._sessions.pop(identity, None)
        if session is not None:
            session.close()
            logger.info("session %s has ended: %s", session.name, why)


class _Session:
    """A session, its process, and the bytes between them."""

    def __init__(
        self, token: str, name: str, options: HostOptions, device: str, send: Callable[[bytes, bytes], None]
    ) -> None:
        self.token, self.name, self.heard = token, name, time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="session-", dir=options.folder))
        self.terms = Terms(str(self._folder), device, list(options.paths.pairs), list(options.factories))
        near, theirs = socket.socketpair()
        terms = json.dumps(asdict(self.terms))
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "bluesky_cdi.remote.hosted", str(theirs.fileno()), terms],
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "TMPDIR": str(self._folder)},
                    # Ctrl-C is the host's, which tells the sessions.
                    start_new_session=True,
                )
        except OSError:
            near.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.flow = Flow(near, send)

    def close(self) -> None:
        """End the process and what it has written."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # held by a driver: the other sessions don't wait for that
            self.process.wait(KILL_S)
        self.flow.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _how(code: int) -> str:
    if code == 0:
        return "it was closed"
    if code == OUT_OF_MEMORY:
        return "the device is out of memory"
    return f"exit code {code}" if code >= 0 else f"by signal {-code}" + ("; out of memory?" if code == -9 else "")
