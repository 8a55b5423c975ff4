"""Ending in order when the process is told to: by SIGTERM, or by SIGHUP because its terminal was closed.

The RunEngine takes Ctrl-C (SIGINT) for itself during a run; the other two would end the process in the middle of it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluesky import RunEngine

logger = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGHUP)
# Exit code of a command that Ctrl-C ended.
INTERRUPTED = 130
# A closed terminal and its shell may both tell; one that comes later than this means that it takes too long.
ONE_REQUEST_S = 3.0
# How often the main thread looks up while it waits for a run: a signal that reached another thread waits for that.
LOOK_UP_S = 0.2


class FirstInterrupt:
    """Takes the first Ctrl-C for a wish to end in order; the second is `KeyboardInterrupt` again. A context manager.

    Outside of the main thread, and where something else handles Ctrl-C, all stays as it is.

    Parameters
    ----------
    what_now : str
        What becomes of the work, for the log.
    again : str
        What a second one does, for the log.

    Attributes
    ----------
    came : bool
        Whether it was pressed.
    """

    def __init__(self, what_now: str, again: str = "at once, and nothing is kept") -> None:
        self.came = False
        self._what_now, self._again, self._handles = what_now, again, False

    def __enter__(self) -> FirstInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._handles:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("interrupted: %s (Ctrl-C again: %s)", self._what_now, self._again)


class EndingSignals:
    """Aborts the run when a signal asks the process to end, and then ends it; a context manager.

    The stop document of the run says ``abort`` and names the signal. After it `SystemExit` is raised in the main
    thread, so that everything that is open is closed, and the process ends with 128 plus the signal's number, or, out
    of IPython, by the signal. A second signal, some seconds later, ends it at once.

    Signals that have a handler, or that are ignored (``nohup``), stay as they are, and nothing is done outside of the
    main thread; in the end the handlers are put back. Of several contexts in one process the first one hears of a
    signal.

    Attributes
    ----------
    received : signal.Signals or None
        The signal that came.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[int, Any] = {}
        self._engine: RunEngine | None = None
        self._waited: Any = None
        self._calls = 0

    @property
    def reason(self) -> str:
        """Why runs end, for their stop documents; empty while no signal came."""
        return "" if self.received is None else f"the process was told to end ({self.received.name})"

    def watch(self, engine: RunEngine) -> None:
        """Abort what this RunEngine runs when a signal comes; its calls then raise `SystemExit`.

        Parameters
        ----------
        engine : RunEngine
            The one whose runs are aborted.
        """
        self._engine = engine
        self._listen_while_waiting(engine)
        engine.context_managers = [*engine.context_managers, self._during_a_call]
        engine.preprocessors.append(self._with_reason)

    def _listen_while_waiting(self, engine: RunEngine) -> None:
        """Let an engine look up while it waits, where it does what bluesky has them do unless told otherwise.

        That waits for ever in one call, which only a signal to the main thread itself ends: the kernel may give it to
        any other thread, and it would wait for the end of the run.
        """
        from bluesky.utils import DefaultDuringTask

        # Bluesky has no other way to change it once the engine is made.
        if type(getattr(engine, "_during_task", None)) is DefaultDuringTask:
            self._waited, engine._during_task = engine._during_task, during_task()

    def __enter__(self) -> EndingSignals:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._handle)
            if self._before and ipython_shell() is not None:
                # Registered before whatever closes the session at exit, so that it runs after that.
                atexit.register(self._end_by_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (engine := self._engine) is not None and self.received is None:
            # It may live longer than this.
            engine.context_managers = [each for each in engine.context_managers if each != self._during_a_call]
            # Somebody may have emptied the list meanwhile.
            engine.preprocessors = [each for each in engine.preprocessors if each != self._with_reason]
            if self._waited is not None:
                self._waited, engine._during_task = None, self._waited
            self._engine = None
        if threading.current_thread() is not threading.main_thread():
            return  # Python sets handlers in the main thread only; see `_handle`
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._before.clear()
        if self.received is None:
            atexit.unregister(self._end_by_signal)

    @contextlib.contextmanager
    def _during_a_call(self, engine: RunEngine) -> Iterator[None]:
        """Bluesky enters this while a call of the RunEngine waits in the main thread for its run."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self.received is not None and self._calls == 0:
                self._leave()

    def _with_reason(self, plan: Any) -> Any:
        """Name the signal in the stop document: bluesky forgets the reason where the plan itself closes its run."""
        from bluesky.preprocessors import msg_mutator

        def named(message: Any) -> Any:
            if self.received is None or message.command != "close_run" or message.kwargs.get("reason") is not None:
                return message
            return message._replace(kwargs={**message.kwargs, "reason": self.reason})

        return msg_mutator(plan, named)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._received_at > ONE_REQUEST_S:
                _end_now(number)
            return
        self.received, self._received_at = signal.Signals(number), time.monotonic()
        _let_go_of_terminal()
        if self._calls:
            # Aborting takes a moment, in which the run may need this thread.
            threading.Thread(target=self._abort_running, name="bluesky_cdi-abort", daemon=True).start()
        else:
            self._leave()

    def _abort_running(self) -> None:
        from bluesky.run_engine import TransitionError

        logger.warning("%s: the run is aborted", self.reason)
        engine = self._engine
        while engine is not None and self._calls and engine.state != "paused":
            try:
                engine.abort(self.reason)
                return
            except TransitionError:
                # It has not begun yet, or has just ended.
                time.sleep(0.02)

    def _leave(self) -> None:
        """Abort a run that is paused, and leave whatever the main thread was doing."""
        if self._engine is not None and self._engine.state == "paused":
            with contextlib.suppress(SystemExit):
                self._attempt(self._engine.abort, self.reason)
        if (shell := ipython_shell()) is not None:
            # It would show the SystemExit of a command and go on.
            shell.ask_exit()
        raise SystemExit(128 + int(self.received or 0))

    def _attempt(self, action: Callable[[str], Any], reason: str) -> None:
        try:
            action(reason)
        except Exception as err:
            logger.exception("the paused run could not be aborted: %s", err)

    def _end_by_signal(self) -> None:
        """End a process of IPython, which would end with 0 or 1, as a signal ends others."""
        if self.received is None:
            return
        if (shell := ipython_shell()) is not None:
            # What IPython does at exit, which would come after this.
            shell.atexit_operations()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        _end_now(int(self.received))


def during_task() -> Any:
    """Make what a RunEngine's calls do while they wait: as bluesky does, but hearing signals in any case.

    For ``RunEngine(..., during_task=during_task())``.
    """
    from bluesky.utils import DefaultDuringTask

    class LookingUp(DefaultDuringTask):  # type: ignore[misc]
        def block(self, blocking_event: threading.Event) -> None:
            if "matplotlib" in sys.modules and "qt" in sys.modules["matplotlib"].get_backend().lower():
                super().block(blocking_event)
            while not blocking_event.wait(LOOK_UP_S):
                pass

    return LookingUp()


def _end_now(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def ipython_shell() -> Any:
    """Return the shell that this process runs, if it is one."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


def _let_go_of_terminal() -> None:
    """Send what is still written to nowhere where the terminal is gone: writing to it would raise."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
