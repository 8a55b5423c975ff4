"""A session's side of the reconstruction's process: started, fed, looked after, and started again.

The RunEngine's thread only puts things into a queue: the file that the journal has appended to, or a question. A
thread of the `WorkerProcess` owns the process. It reads the records of the journal's files and sends them as they are;
a process that has to be started again gets the current run from its first document.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.activity import Silence
from bluesky_cdi.protocols import Estimate, Proposal, ScanArea, ScanTicket
from bluesky_cdi.remote.link import START_S, Link
from bluesky_cdi.remote.listening import Listener, Listening
from bluesky_cdi.remote.messages import pack_area, unpack_answer, unpack_estimate
from bluesky_cdi.remote.questions import Question, Questions
from bluesky_cdi.remote.run_files import RunFiles

logger = logging.getLogger(__name__)

# So many new processes for one run, and no more.
RESTARTS_MAX = 3
NOT_RUNNING = "the reconstruction worker is not running; start a new session. The raw run is intact."
# What a new process is asked again.
KEPT = ("begin", "points_after", "wait")
_WAKE = "wake"

Item = Path | Question | str


class WorkerProcess:
    """Reconstructs runs in a process of its own; to plans and sessions it is what a `LiveWorker` is.

    Parameters
    ----------
    factory : str
        ``module:function`` of what makes the `Setup` in that process from the arguments.
    arguments : Mapping
        For the factory; values that can be packed.
    listeners : sequence of callable
        Called with estimates, in a thread of this process: the newest, when the one before has been dealt with. One
        that raises hears no more.

    Attributes
    ----------
    n_dropped : int
        Frames of the latest run that were left out because the worker's queue was full.
    """

    def __init__(self, factory: str, arguments: Mapping[str, Any], listeners: Sequence[Listener] = ()) -> None:
        self._factory, self._arguments = factory, dict(arguments)
        self._listening = Listening(listeners)
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._questions, self._runs = Questions(), RunFiles()
        self._announced: Question | None = None
        self._state = _State()
        self._closing = False
        self.n_dropped = 0
        self.link: Link | None = None
        self._thread = threading.Thread(target=self._run, name="bluesky_cdi-worker-process", daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """Why the reconstruction of the newest run failed, if it did; a process that is gone counts as failed."""
        return self._state.error

    @property
    def latest(self) -> Estimate | None:
        """The newest estimate that has come; who looks gets more of them from then on."""
        if self._listening.want():
            self._queue.put("want")
        return self._listening.latest

    def begin(self, area: ScanArea) -> Future[ScanTicket]:
        """Prepare for a scan; forget the one before, and its error."""
        self._state.begin()
        return self._ask("begin", pack_area(area), str(uuid.uuid4()))

    def request(self, n: int, after: int) -> Future[Proposal]:
        """Ask for positions, as `ScanSource.request` does.

        Parameters
        ----------
        n : int
            How many.
        after : int
            Number of the frame that must be in the reconstruction before they are decided.
        """
        return self._ask("request", n, after)

    def points_after(self, after: int) -> Future[Sequence[Mapping[str, Any]]]:
        """Ask what the image says of the frames, as `LiveWorker.points_after` does.

        Parameters
        ----------
        after : int
            Number of the last frame that must be in it or left out.
        """
        return self._ask("points_after", after)

    def check(self) -> None:
        """Raise `WorkerError` if the newest run's reconstruction failed or its process is gone."""
        if (error := self.error) is not None:
            raise WorkerError(str(error)) from error

    def appended(self, path: Path) -> None:
        """Learn that a run's file of the journal has grown; returns at once.

        Parameters
        ----------
        path : path
            The file.
        """
        self._queue.put(path)

    def wait(self, timeout_s: float) -> None:
        """Wait until the latest run's reconstruction has ended.

        Raises
        ------
        WorkerError
            If it failed, or has not ended in time.
        """
        limit_s = timeout_s + START_S
        try:
            self._ask("wait", timeout_s).result(limit_s)
        except TimeoutError as err:
            raise WorkerError(
                f"the reconstruction has not finished within {limit_s:g} s; wait again, or close the session"
            ) from err
        self.check()

    def close(self, timeout_s: float = 120.0) -> None:
        """End the process after what it is doing, the steps after a run's last frame included.

        Raises
        ------
        WorkerError
            If it had not ended after `timeout_s` seconds and was killed.
        """
        self._closing = True
        self._queue.put("close")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            if self.link is not None:
                self.link.kill()
            self._thread.join()
            raise WorkerError(
                f"the reconstruction had not ended {timeout_s:g} s after the session's end: it was killed"
            )

    def _ask(self, name: str, *values: Any) -> Future[Any]:
        question = self._questions.ask(name, *values)
        self._queue.put(question)
        if not self._thread.is_alive():
            self._questions.refuse(WorkerError(NOT_RUNNING))
        return question.answer

    def _run(self) -> None:
        """Have a process as long as the session is open."""
        try:
            while not self._closing:
                if self._state.is_given_up:
                    self._wait_for_a_new_run()
                else:
                    self._serve()
        finally:
            self._questions.refuse(WorkerError(NOT_RUNNING))
            self._runs.close()
            self._listening.close()

    def _serve(self) -> None:
        """Start a process and send what there is to send until it ends."""
        state = self._state
        link = self.link = Link([self._factory, self._arguments], self._received, lambda: self._queue.put(_WAKE))
        try:
            if link.wait_until_ready():
                self._catch_up(link)
                state.is_up()
                while not link.is_dead.is_set():
                    if self._handle(link, self._queue.get()):
                        link.finish()
                        return
        except OSError:  # the process is gone in the middle of a message
            link.is_dead.wait(START_S)
        finally:
            link.close()
        if not self._closing:
            self._lost(link.how(), link.could_not_begin)

    def _handle(self, link: Link, item: Item) -> bool:
        """Send one thing on; True: it was the last."""
        if isinstance(item, Path):
            for record in self._runs.new_records(item):
                link.send(["document", record])
                self._state.documents += 1
        elif isinstance(item, Question):
            if item.message[0] == "begin":
                self._announced = item
                self._state.sends_scan()
            item.was_sent = True
            link.send(item.message)
        elif item != _WAKE:
            link.send([item])
        return item == "close"

    def _catch_up(self, link: Link) -> None:
        """Tell a new process what the one before knew: the scan that was announced, its run, and what was asked."""
        if self._listening.is_wanted:
            link.send(["want"])
        asked = self._questions.sent()
        self._state.starts_anew()
        if self._announced is not None and self._announced.was_sent and self._announced not in asked:
            name, _, *values = self._announced.message
            self._state.sends_scan(again=True)
            link.send([name, 0, *values])
        for question in asked:
            if question.message[0] == "begin":
                self._state.sends_scan(again=True)
                link.send(question.message)
        for record in self._runs.all_records():
            link.send(["document", record])
            self._state.documents += 1
        for question in asked:
            if question.message[0] != "begin":
                link.send(question.message)

    def _lost(self, how: str, could_not_begin: bool) -> None:
        """Tell that the process has ended, refuse what was asked, and decide whether there will be another."""
        if self._state.done == self._state.documents:
            # All runs were reconstructed: a new process has nothing to read again.
            self._runs.leave()
            self._announced = None
        error = self._state.can_not_begin(how) if could_not_begin else self._state.lost(how)
        logger.error("%s", error)
        if self._state.is_given_up:
            self._runs.leave()
            self._announced = None
            self._questions.refuse(error)
        else:
            self._questions.refuse(error, KEPT)

    def _wait_for_a_new_run(self) -> None:
        """Do nothing until another scan is announced or another run starts; or ever, where no process can begin."""
        while True:
            item = self._queue.get()
            if item == "close":
                return
            if self._state.is_hopeless:
                self._questions.refuse(WorkerError(str(self._state.error)))
                continue
            begins = isinstance(item, Question) and item.message[0] == "begin"
            if begins or (isinstance(item, Path) and not self._runs.knows(item)):
                self._state.tries_again()
                self._queue.put(item)
                return
            self._questions.refuse(WorkerError(str(self._state.error)), ("begin",))

    def _received(self, link: Link, message: list[Any]) -> None:
        """Take a message of the process, in its link's thread."""
        name, *values = message
        match name:
            case "beat":
                begun, error, self.n_dropped, self._state.done = values
                self._state.fail(begun, error)
            case "activity":
                link.learn(None if values[0] is None else Silence(**values[0]))
            case "answer":
                self._questions.answer(values[0], unpack_answer(values[1]), None)
            case "refused":
                self._questions.answer(values[0], None, WorkerError(values[1]))
            case "estimate":
                self._listening.put(unpack_estimate(values[0]), lambda: _send(link, "taken"))
            case "log":
                _log(*values)


class _State:
    """What is known of the process: whether it is there, failed or has done all; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: WorkerError | None = None
        self._down: WorkerError | None = None
        self.restarts = self.documents = 0
        # Scans that were announced, those of them that were sent to any process, and to this one.
        self._announced = self._sent = self._sent_here = 0
        # Documents of which the process has said that all is done with them.
        self.done = -1
        self.is_given_up = self.is_hopeless = False

    @property
    def error(self) -> WorkerError | None:
        """Why there is no reconstruction of the newest run now, if so."""
        return self._down or self._error

    def begin(self) -> None:
        """Begin a scan: what was before is forgotten."""
        with self._lock:
            self._announced += 1
            self._error = None
        self.tries_again()

    def tries_again(self) -> None:
        """Forget how often processes have ended: another run comes."""
        with self._lock:
            self.restarts = 0
            if self.is_given_up and not self.is_hopeless:
                self.is_given_up, self._down = False, None

    def is_up(self) -> None:
        """Have a process that has caught up."""
        with self._lock:
            if self._down is not None:
                logger.warning("the reconstruction's process is there again")
            self._down = None

    def starts_anew(self) -> None:
        """Have a process that knows nothing yet."""
        with self._lock:
            self._sent_here, self.documents, self.done = 0, 0, -1

    def sends_scan(self, *, again: bool = False) -> None:
        """Send a scan that was announced to the process; `again`: one before knew of it."""
        with self._lock:
            self._sent += not again
            self._sent_here += 1

    def fail(self, begun: int, error: str | None) -> None:
        """Learn why the newest run's reconstruction failed, or that it did not.

        Parameters
        ----------
        begun : int
            Scans that the process knows of. One that has not heard of the newest scan tells of another.
        error : str or None
            Why.
        """
        with self._lock:
            if begun == self._sent_here and self._sent == self._announced:
                self._error = None if error is None else WorkerError(error)

    def lost(self, how: str) -> WorkerError:
        """Count a process that has ended; what is to be said of it."""
        with self._lock:
            self.restarts += 1
            self.is_given_up = self.restarts > RESTARTS_MAX
            what = f"the reconstruction's process ended ({how})"
            self._down = WorkerError(
                f"{what}, {self.restarts} times in one run: it is given up for this run. The raw run is intact."
                if self.is_given_up
                else f"{what}; it is started again. The raw run is intact."
            )
            return self._down

    def can_not_begin(self, why: str) -> WorkerError:
        """Give up for good: what a process is made from is the same for the next one."""
        with self._lock:
            self.is_given_up = self.is_hopeless = True
            self._down = WorkerError(
                f"there is no live reconstruction: its process can't begin ({why}). Runs are recorded all the same; "
                "mend that and start a new session."
            )
            return self._down


def _send(link: Link, *message: Any) -> None:
    with contextlib.suppress(OSError):  # the process is gone, which its link tells
        link.send(list(message))


def _log(name: str, level: int, text: str, trace: str) -> None:
    """Log here what was logged there."""
    target = logging.getLogger(name)
    if target.isEnabledFor(level):
        record = target.makeRecord(name, level, "", 0, text, (), None)
        record.exc_text = trace.rstrip() or None
        target.handle(record)
