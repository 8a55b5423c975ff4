"""The session's side of a reconstruction on a host: a process of its own between the session and the network.

To the session it is what `bluesky_cdi.remote.child` is: started by `bluesky_cdi.remote.link` with the number of an open
socket. It connects to a host, hands messages on, keeps the results that come back in the session's folder, as a process
of this machine would, and reads files for the host. Whatever the network does, the session's own process does not wait
for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from bluesky_cdi.callbacks import FrameFiles, local_path
from bluesky_cdi.catalog.feeder import PROCESSED
from bluesky_cdi.config import Config
from bluesky_cdi.errors import HostError, ScanFileError
from bluesky_cdi.journal import Journal
from bluesky_cdi.live.parts import Recorder
from bluesky_cdi.log import ROOT_NAME
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.remote.calling import Call, greet
from bluesky_cdi.remote.carried import carry
from bluesky_cdi.remote.child import Channel, LogSender
from bluesky_cdi.remote.messages import unpack_estimate, unpack_part, unpack_run
from bluesky_cdi.remote.setup import make_recorder
from bluesky_cdi.remote.tunnel import ALIVE, ALIVE_S, BYE, CREDIT, DATA, END, GONE_S, REFUSED, Flow

logger = logging.getLogger("bluesky_cdi.remote.relay")

LOOK_S = 0.25
# The kind of a document stands in the first bytes of its message, behind the message's own name.
_RESOURCE, HEAD = b"resource", 40
# A host is not trusted with names of files.
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")
# What stands first in a question of the process, behind how many parts it has.
_ASK = pack("ask")


class Tunnel:
    """Hands the bytes of a socket on to a host and back, in a thread of its own.

    Parameters
    ----------
    call : Call
        To a host that has taken the session.
    near : socket
        Its other end is written and read by whoever talks to the process there.
    moves : callable, optional
        Called now and then while bytes come, in the tunnel's thread: of a message that takes long, none is whole yet.

    Attributes
    ----------
    ended : str
        How it ended, once it has.
    code : int or None
        Exit code of the process there; None: that is not known.
    """

    def __init__(self, call: Call, near: socket.socket, moves: Callable[[], None] = lambda: None) -> None:
        self._call, self._moves, self._has_moved = call, moves, False
        self._flow = Flow(near, self._send)
        self._heard = time.monotonic()
        self.ended, self.code = "", None
        self._thread = threading.Thread(target=self._run, name="bluesky_cdi-tunnel", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _run(self) -> None:
        """Hand on until the process or the host has ended; what came before is handed on first."""
        try:
            told = time.monotonic()
            while not self.ended:
                poller = zmq.Poller()
                poller.register(self._call.socket, zmq.POLLIN)
                poller.register(self._call.events, zmq.POLLIN)
                self._flow.register(poller)
                ready = dict(poller.poll(int(1e3 * LOOK_S)))
                while self._call.socket in ready and self._call.socket.poll(0) and not self.ended:
                    self._take(*self._call.socket.recv_multipart())
                self._flow.turn()
                if self._flow.is_over:
                    self._send(BYE, b"")
                    return
                if time.monotonic() > told + ALIVE_S:
                    told = time.monotonic()
                    self._send(ALIVE, b"")
                    if self._has_moved:
                        self._has_moved = False
                        self._moves()
                if not self.ended and self._call.events in ready:
                    self._lost(self._call.failure())
                elif time.monotonic() > self._heard + GONE_S:
                    self._lost(f"nothing was heard of it for {GONE_S:g} s")
            self._drain()
        except (HostError, zmq.ZMQError) as err:
            self._lost(str(err))
        finally:
            self._flow.close()

    def _take(self, kind: bytes, content: bytes) -> None:
        self._heard = time.monotonic()
        if kind == DATA:
            self._has_moved = True
            self._flow.take(content)
        elif kind == CREDIT:
            self._flow.credit(content)
        elif kind == END:
            how, self.code = unpack(content)
            self.ended = f"on the host {self._call.address}: {how}"
        elif kind == REFUSED:
            self._lost(content.decode(errors="replace"))
        elif kind != ALIVE:
            raise HostError(f"the host says what can't be understood: {kind[:20]!r}")

    def _drain(self) -> None:
        """Hand on what came before the end; who reads it takes it sooner or later, or is gone."""
        while not self._flow.is_empty and not self._flow.is_over:
            poller = zmq.Poller()
            self._flow.register(poller)
            poller.poll(int(1e3 * LOOK_S))
            self._flow.turn()

    def _lost(self, why: str) -> None:
        self.ended = self.ended or f"the host {self._call.address} is gone: {why}"

    def _send(self, kind: bytes, content: bytes) -> None:
        self._call.socket.send_multipart([kind, content])


class Answers:
    """Does what the process on the host asks for: keeps results, reads files.

    Parameters
    ----------
    config : Config
        The session's.
    directory : path
        Its folder.
    answer : callable
        Takes a message to the process.
    """

    def __init__(self, config: Config, directory: Path, answer: Callable[..., None]) -> None:
        self._config, self._directory, self._answer = config, directory, answer
        self._journal = Journal(directory / "journal" / PROCESSED)
        self._recorders: dict[str, Recorder] = {}
        self._files = FrameFiles()
        self._announced: set[str] = set()
        # Each in its own turn: a file that is slow holds no result up.
        self._pools = {"rows": ThreadPoolExecutor(1), "": ThreadPoolExecutor(1)}

    def ask(self, number: int, what: str, *values: Any) -> None:
        """Do something, in a thread of its own, and answer."""
        self._pools.get(what, self._pools[""]).submit(self._do, number, what, values)

    def announce(self, name: str, doc: Mapping[str, Any]) -> None:
        """Learn of a file of the session's runs: no other is read for the host.

        Parameters
        ----------
        name : str
            Kind of the document.
        doc : Mapping
            A resource or a stream resource.
        """
        with contextlib.suppress(ScanFileError, KeyError, TypeError):  # what names no file, names none that may be read
            if name == "stream_resource":
                self._announced.add(os.path.normpath(local_path(doc)))
            elif name == "resource":
                self._announced.add(os.path.normpath(os.path.join("/", doc["root"], doc["resource_path"])))

    def close(self, why: str) -> None:
        """End the runs whose results won't be finished; the next process makes others.

        Parameters
        ----------
        why : str
            What happened.
        """
        self._pools[""].shutdown()
        for uid, recorder in self._recorders.items():
            try:
                recorder.close(None, "fail", why)
            except Exception as err:
                logger.exception("the derived run %s can't be closed: %s", uid, err)
        self._journal.close()

    def _do(self, number: int, what: str, values: tuple[Any, ...]) -> None:
        do: dict[str, Callable[..., Any]] = {
            "rows": self._rows,
            "record": self._record,
            "publish": self._publish,
            "end": self._end,
        }
        try:
            value = do[what](*values)
        except Exception as err:  # who asked must hear of it
            if what != "rows":
                logger.exception("a result that a host made can't be kept: %s", err)
            self._answer("told", number, str(err) or type(err).__name__, None)
        else:
            self._answer("told", number, None, value)

    def _rows(self, resource: Mapping[str, Any], start: int, stop: int, part: Any) -> Any:
        path = os.path.normpath(local_path(resource))
        if path not in self._announced:
            raise ScanFileError(f"{resource['uri']} is no file of this session's runs: it is not read for a host")
        # Not by another spelling of its name, which links may lead elsewhere.
        resource = {**resource, "uri": Path(path).as_uri()}
        try:
            return self._files.raw(resource, start, stop, unpack_part(part))
        except ScanFileError:
            # Opened anew: what a file held is not looked up again where its writer is no SWMR writer.
            self._files.close()
            raise

    def _record(self, uid: str, run: Mapping[str, Any]) -> None:
        if not _UID.fullmatch(uid):
            raise HostError(
                f"files are named by a result's uid: it must be letters, digits and hyphens; got {uid!r:.80}"
            )
        self._recorders[uid] = make_recorder(self._config, self._directory, self._journal, unpack_run(run), uid)

    def _publish(self, uid: str, fields: Mapping[str, Any]) -> None:
        self._recorders[uid].publish(unpack_estimate(fields))

    def _end(self, uid: str, fields: Mapping[str, Any] | None, status: Any, reason: str) -> None:
        self._recorders.pop(uid).close(None if fields is None else unpack_estimate(fields), status, reason)
        # Of a session of many runs not all files stay open; by the thread that reads them.
        self._pools["rows"].submit(self._files.close)


def main() -> None:
    """Stand between the session at the other end of the socket that the first argument numbers, and a host."""
    faulthandler.enable()
    session = Channel(Connection(int(sys.argv[1])))
    log = logging.getLogger(ROOT_NAME)
    log.setLevel(logging.INFO)
    log.addHandler(LogSender(session))
    log.propagate = False
    try:
        _, factory, arguments = session.receive()
        config = Config.model_validate(arguments["config"])
        carried = {**arguments, "files": carry(arguments["config"])}
    except EOFError:
        os._exit(1)
    except Exception as err:  # noqa: BLE001 - whatever it is, the session must hear why there is no worker
        session.send("failed", f"{type(err).__name__}: {err}")
        os._exit(1)
    directory = Path(arguments["directory"])
    try:
        # The folder's name is the session's: one that has died and calls again takes its place.
        token = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{socket.getfqdn()}:{uuid.getnode()}:{directory}"))
        call = greet(zmq.Context(), config.reconstructor.host, token, f"{socket.gethostname()}:{directory}")
    except HostError as err:
        session.send("ended", str(err))
        os._exit(1)
    near, far = socket.socketpair()
    # What can't be sent any more is not missed: the tunnel's end is told below.
    host, tunnel = Channel(Connection(far.detach()), lambda: None), Tunnel(call, near, lambda: session.send("moves"))
    host.send("setup", factory, carried)
    answers = Answers(config, directory, host.send)
    threading.Thread(target=_upwards, args=(session, host, answers), name="bluesky_cdi-upwards", daemon=True).start()
    _downwards(session, host, answers)
    tunnel.join()
    answers.close(tunnel.ended)
    session.send("ended", tunnel.ended)
    os._exit(tunnel.code or 0)


def _upwards(session: Channel, host: Channel, answers: Answers) -> None:
    """Hand on what the session says, and note which files its documents name."""
    try:
        while True:
            data = session.receive_packed()
            if _RESOURCE in data[:HEAD]:
                name, *values = unpack(data)
                if name == "document":
                    answers.announce(*unpack(values[0]))
            host.hand_on(data)
    except EOFError:
        # The session is gone: so is the process of the host, when its connection ends.
        os._exit(1)


def _downwards(session: Channel, host: Channel, answers: Answers) -> None:
    """Hand on what the process of the host says, until it is gone; what it asks for is done here."""
    while True:
        try:
            data = host.receive_packed()
        except EOFError:
            return
        if data[1 : 1 + len(_ASK)] == _ASK:
            _, *question = unpack(data)
            answers.ask(*question)
        else:
            session.hand_on(data)


if __name__ == "__main__":
    main()
