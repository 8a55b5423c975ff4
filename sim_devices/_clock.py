"""The time that simulated devices take: the machine's, or one that is moved on by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Alarm(Protocol):
    """An action that a clock will do; `threading.Timer` is one."""

    def cancel(self) -> None:
        """Take the action off the clock, if it has not begun."""


class Clock(Protocol):
    """What a simulated device knows of time."""

    def now_s(self) -> float:
        """Return the time, seconds from an arbitrary zero."""

    def call_at(self, time_s: float, action: Callable[[], None]) -> Alarm:
        """Do an action when the clock shows a time.

        Parameters
        ----------
        time_s : float
            When, seconds as in `now_s`; a time that is past means now, in the caller's thread.
        action : callable
            Called once.

        Returns
        -------
        Alarm
            Takes the action back.
        """


class RealClock:
    """The machine's clock; each action that has to wait gets a thread of its own."""

    def now_s(self) -> float:
        """Return the machine's monotonic time, seconds."""
        return time.monotonic()

    def call_at(self, time_s: float, action: Callable[[], None]) -> Alarm:
        """Do an action when the machine's clock shows a time.

        Parameters
        ----------
        time_s : float
            When, seconds as in `now_s`; a time that is past means now, in the caller's thread.
        action : callable
            Called once.

        Returns
        -------
        Alarm
            Takes the action back.
        """
        left_s = time_s - self.now_s()
        timer = threading.Timer(left_s, action)
        timer.daemon = True
        if left_s > 0:
            timer.start()
        else:
            action()
        return timer


class ManualClock:
    """A clock that stands still until `advance` moves it; it begins at 0.

    Nothing that happens on it depends on how fast the machine is.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._alarms: list[_ManualAlarm] = []
        self._changed = threading.Condition()

    @property
    def alarms_s(self) -> list[float]:
        """Times at which something will happen, ascending, seconds."""
        with self._changed:
            return [alarm.time_s for alarm in self._alarms]

    def now_s(self) -> float:
        """Return what the clock shows, seconds."""
        with self._changed:
            return self._now_s

    def call_at(self, time_s: float, action: Callable[[], None]) -> Alarm:
        """Do an action when the clock shows a time.

        Parameters
        ----------
        time_s : float
            When, seconds as in `now_s`; a time that is past means now, in the caller's thread.
        action : callable
            Called once, in the thread that advances the clock.

        Returns
        -------
        Alarm
            Takes the action back.
        """
        alarm = _ManualAlarm(time_s, action, self._forget)
        with self._changed:
            is_due = time_s <= self._now_s
            if not is_due:
                self._alarms = sorted([*self._alarms, alarm], key=lambda a: a.time_s)
                self._changed.notify_all()
        if is_due:
            action()
        return alarm

    def advance(self, seconds: float) -> None:
        """Move the clock on and do what is due, in the order of time; each action sees its own time on the clock."""
        end_s = self.now_s() + seconds
        while (alarm := self._next_until(end_s)) is not None:
            alarm.action()
        with self._changed:
            self._now_s = end_s

    def wait_for_alarm(self, time_s: float, timeout_s: float = 30.0) -> None:
        """Wait until other threads have come so far that the next thing to happen is at a time.

        Parameters
        ----------
        time_s : float
            When it will happen, seconds of this clock, to within a nanosecond.
        timeout_s : float
            Longest time to wait, seconds of the machine's clock.

        Raises
        ------
        TimeoutError
            If it does not come about.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_next(time_s), timeout_s):
                raise TimeoutError(
                    f"the next thing on this clock should be at {time_s:g} s; after waiting for {timeout_s:g} s there "
                    f"is something at {self.alarms_s} s. Does the device live by this clock, and was it set off?"
                )

    def _is_next(self, time_s: float) -> bool:
        return bool(self._alarms) and abs(self._alarms[0].time_s - time_s) < 1e-9

    def _next_until(self, end_s: float) -> _ManualAlarm | None:
        """Take the first alarm off the clock and set the clock to it; None if it comes later than `end_s`."""
        with self._changed:
            if not self._alarms or self._alarms[0].time_s > end_s:
                return None
            alarm = self._alarms.pop(0)
            self._now_s = alarm.time_s
            return alarm

    def _forget(self, alarm: _ManualAlarm) -> None:
        with self._changed:
            self._alarms = [other for other in self._alarms if other is not alarm]
            self._changed.notify_all()


class _ManualAlarm:
    def __init__(self, time_s: float, action: Callable[[], None], forget: Callable[[_ManualAlarm], None]) -> None:
        self.time_s, self.action, self._forget = time_s, action, forget

    def cancel(self) -> None:
        self._forget(self)
