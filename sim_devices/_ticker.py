"""Something that happens again and again on a clock; and the line over which one device sets off others."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ophyd.status import StatusBase
from ophyd.utils.errors import UnknownStatusFailure

from bluesky_cdi.sim_devices._clock import Alarm, Clock


class Ticker:
    """Does an action every so often, until it says that all is done; its status ends then, or with what it raises.

    Parameters
    ----------
    clock : Clock
    every_s : float
        Seconds between two actions.
    action : callable
        Takes the time, seconds of the clock; gives whether all is done.
    status : Status
        Of the whole.
    """

    def __init__(self, clock: Clock, every_s: float, action: Callable[[float], bool], status: StatusBase) -> None:
        self.status = status
        self._clock, self._every_s, self._action = clock, every_s, action
        self._lock = threading.RLock()
        self._alarm: Alarm | None = None
        self._is_over = False

    def begin(self) -> None:
        """Do it for the first time one interval from now."""
        with self._lock:
            if not self._is_over:
                self._alarm = self._clock.call_at(self._clock.now_s() + self._every_s, self._tick)

    def end(self, success: bool, why: str) -> None:
        """Do it for the last time, now; of what has ended nothing more is done.

        Parameters
        ----------
        success : bool
            Whether the status succeeds.
        why : str
            Of a status that fails.
        """
        with self._lock:
            if self._is_over:
                return
            if self._alarm is not None:
                self._alarm.cancel()
            self._do()
            if not self._is_over:
                self._is_over = True
                if success:
                    self.status.set_finished()
                else:
                    self.status.set_exception(UnknownStatusFailure(why))

    def _tick(self) -> None:
        with self._lock:
            if not self._is_over:
                self._do()
                self.begin()

    def _do(self) -> None:
        try:
            is_done = self._action(self._clock.now_s())
        except Exception as err:  # noqa: BLE001 (whatever it is, who waits for the device must hear of it)
            self._is_over = True
            self.status.set_exception(err)
            return
        if is_done:
            self._is_over = True
            self.status.set_finished()


class TriggerLine:
    """A cable: what a device sends at the beginning of its motion, others hear at once."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[float], None]] = []

    def connect(self, listener: Callable[[float], None]) -> None:
        """Call something with the time of each pulse, seconds of the devices' clock."""
        self._listeners.append(listener)

    def fire(self, time_s: float) -> None:
        """Send a pulse."""
        for listener in self._listeners:
            listener(time_s)
