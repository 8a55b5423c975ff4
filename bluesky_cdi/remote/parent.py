"""A session's side of the reconstruction's process.

The RunEngine's thread only puts things into a queue: the file that the journal has appended to, or a question. The
thread of a `Supervisor` owns the process. It reads the records of the journal's files and sends them as they are; a
process that has to be started again gets the current run from its first document.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bluesky_cdi.config import HostConfig
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.activity import Silence
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.protocols import Estimate, Proposal, ScanArea, ScanTicket
from bluesky_cdi.remote.feed import Feed
from bluesky_cdi.remote.link import START_S, Link
from bluesky_cdi.remote.listening import Listener, Listening
from bluesky_cdi.remote.messages import pack_area, unpack_answer, unpack_estimate
from bluesky_cdi.remote.process_state import ProcessState
from bluesky_cdi.remote.questions import Questions
from bluesky_cdi.remote.supervisor import Supervisor


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
    host : HostConfig, optional
        Which hosts may have the process; without any it runs on this machine.

    Attributes
    ----------
    n_dropped : int
        Frames of the latest run that were left out because the worker's queue was full.
    state : ProcessState
        What is known of the process.
    """

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        listeners: Sequence[Listener] = (),
        host: HostConfig | None = None,
    ) -> None:
        self._listening = Listening(listeners)
        self._questions, self.state = Questions(), ProcessState()
        self.n_dropped = 0
        feed = Feed(self._questions, self.state, self._listening)
        setup = [factory, dict(arguments)]
        self._supervisor = Supervisor(setup, self._received, feed, self._questions, self.state, host)

    @property
    def link(self) -> Link | None:
        """To the process that there is now."""
        return self._supervisor.link

    @property
    def error(self) -> Exception | None:
        """Why the reconstruction of the newest run failed, if it did; a process that is gone counts as failed."""
        return self.state.error

    @property
    def latest(self) -> Estimate | None:
        """The newest estimate that has come; who looks gets more of them from then on."""
        if self._listening.want():
            self._supervisor.put("want")
        return self._listening.latest

    def begin(self, area: ScanArea) -> Future[ScanTicket]:
        """Prepare for a scan; forget the one before, and its error."""
        self.state.begin()
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

    def look(self, after: int) -> Future[Sight]:
        """Ask for the next sight of the frames that come, once there is one.

        Parameters
        ----------
        after : int
            Number of the last sight that is known; 0: none.
        """
        return self._ask("look", after)

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
        self._supervisor.put(path)

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
        try:
            self._supervisor.close(timeout_s)
        finally:
            self._listening.close()

    def _ask(self, name: str, *values: Any) -> Future[Any]:
        question = self._questions.ask(name, *values)
        self._supervisor.put(question)
        return question.answer

    def _received(self, link: Link, message: list[Any]) -> None:
        """Take a message of the process, in its link's thread."""
        name, *values = message
        match name:
            case "beat":
                begun, error, self.n_dropped, self.state.done = values
                self.state.fail(begun, error)
            case "activity":
                link.learn(None if values[0] is None else Silence(**values[0]))
            case "answer":
                self._questions.answer(values[0], unpack_answer(values[1]), None)
            case "refused":
                self._questions.answer(values[0], None, WorkerError(values[1]))
            case "progress":
                self.state.progress(values[0])
            case "estimate":
                self._listening.put(unpack_estimate(values[0]), lambda: _send(link, "taken"))
            case "log":
                _log(*values)


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
