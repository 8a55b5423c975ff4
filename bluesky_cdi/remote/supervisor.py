"""The thread that starts the reconstruction's process, feeds it, and starts it again when it ends."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bluesky_cdi.config import HostConfig
from bluesky_cdi.errors import HostError, WorkerError
from bluesky_cdi.live.loop import NOT_RUNNING
from bluesky_cdi.remote.feed import Feed, Item
from bluesky_cdi.remote.link import START_S, Link
from bluesky_cdi.remote.process_state import ProcessState
from bluesky_cdi.remote.questions import Questions
from bluesky_cdi.remote.whereabouts import Whereabouts

logger = logging.getLogger(__name__)

# What a new process is asked again.
KEPT = ("begin", "points_after", "wait")
_WAKE = "wake"


class Supervisor:
    """Has a process from now on until it is closed.

    Parameters
    ----------
    setup : list
        What the process is made from.
    received : callable
        Gets what the process says, in a thread of its link.
    feed : Feed
        Sends it what there is to send; closed with this.
    questions : Questions
        Refused where no process will answer them.
    state : ProcessState
        Learns what becomes of it.
    host : HostConfig, optional
        Which hosts may have it; without any it runs on this machine.

    Attributes
    ----------
    link : Link or None
        To the process that there is now.
    """

    def __init__(
        self,
        setup: list[Any],
        received: Callable[[Link, list[Any]], None],
        feed: Feed,
        questions: Questions,
        state: ProcessState,
        host: HostConfig | None = None,
    ) -> None:
        self._setup, self._received = setup, received
        self._feed, self._questions, self._state = feed, questions, state
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._where = Whereabouts(host or HostConfig(), lambda: self._queue.put(_WAKE))
        self._closing = False
        self.link: Link | None = None
        self._thread = threading.Thread(target=self._run, name="bluesky_cdi-worker-process", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Take what is to be sent; returns at once."""
        self._queue.put(item)
        if not self._thread.is_alive():
            self._questions.refuse(WorkerError(NOT_RUNNING))

    def close(self, timeout_s: float) -> None:
        """End the process after what it is doing.

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

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._state.is_given_up:
                    self._wait_for_a_new_run()
                elif self._where.is_awaited:
                    self._wait_for_a_host()
                else:
                    self._serve()
        finally:
            self._questions.refuse(WorkerError(NOT_RUNNING))
            self._feed.close()
            self._where.close()

    def _serve(self) -> None:
        """Start a process and send what there is to send until it ends."""
        try:
            module = self._where.choose()
        except HostError as err:
            return self._go_without(str(err))
        link = self.link = Link(self._setup, self._received, lambda: self._queue.put(_WAKE), module)
        try:
            if link.wait_until_ready():
                self._feed.send_again(link)
                self._state.is_up()
                while not link.is_dead.is_set():
                    if (item := self._queue.get()) == _WAKE:
                        continue
                    if self._where.is_found and self._is_done and self._feed.begins_a_run(item):
                        # This machine's own process has nothing more to do, and its runs are none of the host's.
                        self._feed.leave()
                        self._feed.note(item)
                        return self._where.come_back()
                    self._feed.send(link, item)
                    if item == "close":
                        link.finish()
                        return
        except OSError:  # the process is gone in the middle of a message
            link.is_dead.wait(START_S)
        finally:
            link.close()
        if not self._closing:
            self._lost(link.how(), link.could_not_begin)

    def _lost(self, how: str, could_not_begin: bool) -> None:
        """Tell that the process has ended, refuse what was asked, and decide whether there will be another."""
        if self._is_done:
            # All runs were reconstructed: a new process has nothing to read again.
            self._feed.leave()
        error = self._state.can_not_begin(how) if could_not_begin else self._state.lost(how)
        logger.error("%s", error)
        if self._state.is_given_up:
            self._feed.leave()
            self._questions.refuse(error)
        else:
            self._questions.refuse(error, KEPT)

    @property
    def _is_done(self) -> bool:
        """Whether all that the process was sent is reconstructed."""
        return self._state.done == self._state.documents

    def _go_without(self, why: str) -> None:
        """Tell that there is no host, and that it is done without or waited for."""
        error = self._state.away(why, self._where.go_without())
        logger.warning("%s", error)
        self._questions.refuse(error, () if self._where.is_awaited else KEPT)

    def _wait_for_a_host(self) -> None:
        """Keep the newest run and scan in mind until there is a host to reconstruct them."""
        while not self._where.is_found:
            item = self._queue.get()
            if item == "close":
                return
            if item == _WAKE:
                continue
            if isinstance(item, Path) and self._feed.begins_a_run(item):
                self._feed.leave_runs()
            self._feed.note(item)
            self._questions.refuse(WorkerError(str(self._state.error)))
        self._where.come_back()

    def _wait_for_a_new_run(self) -> None:
        """Do nothing until another scan is announced or another run starts; or ever, where no process can begin."""
        while True:
            item = self._queue.get()
            if item == "close":
                return
            if self._state.is_hopeless:
                self._questions.refuse(WorkerError(str(self._state.error)))
                continue
            if self._feed.begins_a_run(item):
                self._state.tries_again()
                self._queue.put(item)
                return
            self._questions.refuse(WorkerError(str(self._state.error)), ("begin",))
