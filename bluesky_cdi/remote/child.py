"""The reconstruction's process: a `LiveWorker` at the other end of a channel.

Started by `bluesky_cdi.remote.link`, with the number of an open socket as its argument. It ends when told, or when
the other end is gone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from bluesky_cdi.document_buffer import DocumentBuffer
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.worker import LiveWorker
from bluesky_cdi.log import ROOT_NAME
from bluesky_cdi.memory import give_memory_back, keep_loaded
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.remote.messages import BEAT_S, pack_answer, pack_estimate, unpack_area
from bluesky_cdi.remote.setup import Setup, factory_of

logger = logging.getLogger("bluesky_cdi.remote.child")

DRAIN_S = 600.0
LOOK_S = 0.1


def _leave() -> None:
    # The session is gone, and so is whoever would want to hear of it.
    os._exit(1)


class Channel:
    """Sends messages from any thread; says nothing when nobody is there any more.

    Parameters
    ----------
    connection : Connection
        To the session.
    lost : callable
        Called when something can't be sent: by default the process ends.
    """

    def __init__(self, connection: Connection, lost: Callable[[], None] = _leave) -> None:
        self._connection, self._lost = connection, lost
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        """Send a message: its name and values."""
        self.hand_on(pack(list(message)))

    def hand_on(self, data: bytes) -> None:
        """Send a message that is packed."""
        with self._lock:
            try:
                self._connection.send_bytes(data)
            except OSError:
                self._lost()

    def has_come(self, seconds: float) -> bool:
        """Wait for a message, or the end of the session, for some seconds; whether there is one."""
        return self._connection.poll(seconds)

    def receive_packed(self) -> bytes:
        """Wait for the next message; give it as it is.

        Raises
        ------
        EOFError
            If the session is gone.
        """
        try:
            return self._connection.recv_bytes()
        except OSError as err:
            raise EOFError(str(err)) from err

    def receive(self) -> list[Any]:
        """Wait for the next message.

        Raises
        ------
        EOFError
            If the session is gone.
        """
        message: list[Any] = unpack(self.receive_packed())
        return message


class Estimates:
    """Sends estimates in a thread of its own: the newest, one at a time.

    Parameters
    ----------
    channel : Channel
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._changed = threading.Condition()
        self._newest: Estimate | None = None
        self._wanted = self._on_its_way = False
        self._flushing = 0
        threading.Thread(target=self._run, name="bluesky_cdi-estimates", daemon=True).start()

    def put(self, estimate: Estimate) -> None:
        """Take an estimate in place of one that has not been sent."""
        self._channel.send("progress", estimate.n_frames)
        with self._changed:
            self._newest = estimate
            self._changed.notify_all()

    def want(self) -> None:
        """Send estimates from now on, as they come."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def taken(self) -> None:
        """Learn that the estimate has arrived."""
        with self._changed:
            self._on_its_way = False
            self._changed.notify_all()

    def flush(self) -> None:
        """Send the newest, wanted or not, and wait until it has arrived."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._newest is None and not self._on_its_way)
            self._flushing -= 1

    def send_last(self) -> None:
        """Wait until the newest has arrived, if estimates are wanted."""
        if self._wanted:
            self.flush()

    def _is_due(self) -> bool:
        return (self._wanted or self._flushing > 0) and self._newest is not None and not self._on_its_way

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due)
                estimate, self._newest, self._on_its_way = self._newest, None, True
            if estimate is not None:
                self._channel.send("estimate", pack_estimate(estimate))


class Served:
    """Answers a session's messages with a worker.

    Parameters
    ----------
    channel : Channel
    worker : LiveWorker
    documents : DocumentBuffer
        Hands the frames of documents to the worker.
    estimates : Estimates
    told : callable, optional
        Takes the answers to what this process asks of the session's machine.
    look : callable, optional
        Called with why the newest run's reconstruction failed, or None, before that is told.
    """

    def __init__(
        self,
        channel: Channel,
        worker: LiveWorker,
        documents: DocumentBuffer,
        estimates: Estimates,
        told: Callable[..., None] | None = None,
        look: Callable[[Exception | None], None] = lambda _: None,
    ) -> None:
        self._channel, self._worker, self._documents, self._estimates = channel, worker, documents, estimates
        self._told, self._look = told, look
        self._received = self._begun = 0

    def run(self) -> None:
        """Handle messages until the session closes or is gone."""
        threading.Thread(target=self._beat, name="bluesky_cdi-beat", daemon=True).start()
        while True:
            name, *values = self._channel.receive()
            match name:
                case "document":
                    self._received += 1
                    self._documents(*unpack(values[0]))
                case "begin":
                    self._begin(*values)
                case "request":
                    number, n, after = values
                    self._answer(number, self._worker.request(n, after))
                case "points_after":
                    number, after = values
                    self._answer(number, self._worker.points_after(after))
                case "look" if self._worker.look is not None:
                    number, after = values
                    self._answer(number, self._worker.look(after))
                case "wait":
                    threading.Thread(target=self._wait, args=values, daemon=True).start()
                case "want":
                    self._estimates.want()
                case "taken":
                    self._estimates.taken()
                case "told" if self._told is not None:
                    self._told(*values)
                case "close":
                    return self._close()

    def _close(self) -> None:
        """Finish what is under way; until then the session still answers for what it is sent and asked."""

        def finish() -> None:
            self._documents.close()
            self._worker.close(DRAIN_S)
            self._estimates.send_last()

        with ThreadPoolExecutor(1, "bluesky_cdi-finishing") as pool:
            finished = pool.submit(finish)
            while not finished.done():
                if not self._channel.has_come(LOOK_S):
                    continue
                name, *values = self._channel.receive()
                if name == "taken":
                    self._estimates.taken()
                elif name == "look" and self._worker.look is not None:
                    number, after = values
                    self._answer(number, self._worker.look(after))
                elif name == "told" and self._told is not None:
                    self._told(*values)
        finished.result()

    def _begin(self, number: int, area: list[Any], uid: str) -> None:
        answer = self._worker.begin(unpack_area(area), uid)
        self._begun += 1
        self._answer(number, answer)

    def _answer(self, number: int, answer: Future[Any]) -> None:
        def send(done: Future[Any]) -> None:
            if (error := done.exception()) is not None:
                self._state()
                self._channel.send("refused", number, str(error))
            else:
                self._channel.send("answer", number, pack_answer(done.result()))

        answer.add_done_callback(send)

    def _wait(self, number: int, seconds: float) -> None:
        try:
            if not self._documents.drain(seconds):
                raise WorkerError(
                    f"the frames of the run could not all be read within {seconds:g} s; wait again, or close "
                    "the session"
                )
            self._worker.wait(seconds)
        except WorkerError as err:
            self._estimates.flush()
            self._state()
            self._channel.send("refused", number, str(err))
        else:
            self._estimates.flush()
            self._state()
            self._channel.send("answer", number, None)

    def _beat(self) -> None:
        pause, is_idle = threading.Event(), True
        while not pause.wait(BEAT_S):
            was_idle, is_idle = is_idle, self._state()
            if is_idle and not was_idle:
                # What a run needed, the next one, of another size perhaps, takes anew.
                give_memory_back()
            silence = self._worker.activity.look()
            self._channel.send("activity", None if silence is None else vars(silence))

    def _state(self) -> bool:
        """Tell the session how things are; whether nothing is to be done."""
        # First how much is known here, then what of it: not the other way round.
        worker, begun, received = self._worker, self._begun, self._received
        is_idle = self._documents.drain(0.0) and worker.is_idle
        self._look(worker.error)
        error = None if worker.error is None else str(worker.error)
        self._channel.send("beat", begun, error, worker.n_dropped, received if is_idle else -1)
        return is_idle


class LogSender(logging.Handler):
    """Sends the package's log to the session, where the user sees it.

    Parameters
    ----------
    channel : Channel
        To the session.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, with its traceback."""
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._channel.send("log", record.name, record.levelno, record.getMessage(), trace)


def serve(
    number: int,
    make: Callable[[Channel, str, Any], Setup],
    told: Callable[..., None] | None = None,
    look: Callable[[Exception | None], None] = lambda _: None,
) -> None:
    """Serve the session at the other end of a socket; does not return.

    Parameters
    ----------
    number : int
        Of the socket.
    make : callable
        From the channel, factory and arguments to what the worker is made of.
    told, look : callable, optional
        As for `Served`.
    """
    import faulthandler

    faulthandler.enable()
    channel = Channel(Connection(number))
    log = logging.getLogger(ROOT_NAME)
    log.setLevel(logging.INFO)
    log.addHandler(LogSender(channel))
    log.propagate = False
    try:
        _, factory, arguments = channel.receive()
    except EOFError:
        os._exit(1)
    try:
        estimates = Estimates(channel)
        worker, documents = make(channel, factory, arguments).start([estimates.put])
    except Exception as err:  # noqa: BLE001 - whatever it is, the session must hear why there is no worker
        channel.send("failed", f"{type(err).__name__}: {err}")
        os._exit(1)
    keep_loaded()
    channel.send("ready")
    try:
        Served(channel, worker, documents, estimates, told, look).run()
    except EOFError:
        # The session was killed. What it measured is in its journal; nothing more is to be done here.
        os._exit(1)
    except Exception:
        logger.exception("the reconstruction's process fails")
        os._exit(1)
    # All is closed. At the interpreter's end libraries wait for locks that threads may have had.
    os._exit(0)


def main() -> None:
    """Serve the session at the other end of the socket that the first argument numbers."""
    serve(int(sys.argv[1]), lambda _, factory, arguments: factory_of(factory)(arguments))


if __name__ == "__main__":
    main()
