"""A sample stage that takes its time."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ophyd import Component, Device, Signal
from ophyd.positioner import PositionerBase
from ophyd.status import MoveStatus, StatusBase
from ophyd.utils.errors import UnknownStatusFailure

from bluesky_cdi.protocols import Flight, FloatArray
from bluesky_cdi.sim_devices._clock import Alarm, Clock, RealClock
from bluesky_cdi.sim_devices._errors import OutOfRangeError
from bluesky_cdi.sim_devices._signals import BoundedSignal
from bluesky_cdi.units import METRES_PER

UNIT = "um"
SLOWEST_UM_PER_S = 1e-6
UNLIMITED = (-math.inf, math.inf)


@dataclass(eq=False)
class _Move:
    start: float
    target: float
    begun_s: float
    duration_s: float
    status: MoveStatus
    arrival: Alarm | None = None

    def at(self, now_s: float) -> float:
        share = min(1.0, (now_s - self.begun_s) / self.duration_s) if self.duration_s > 0 else 1.0
        return self.start + share * (self.target - self.start)


@dataclass(eq=False)
class _Path(_Move):
    """A move along given positions, at given times from its beginning."""

    times_s: FloatArray = field(default_factory=lambda: np.zeros(1))
    positions: FloatArray = field(default_factory=lambda: np.zeros(1))

    def at(self, now_s: float) -> float:
        return float(np.interp(now_s - self.begun_s, self.times_s, self.positions))


class _Readback(Signal):  # type: ignore[misc]
    def get(self, **kwargs: Any) -> float:
        return float(self.parent.position)

    @property
    def timestamp(self) -> float:
        return time.time()

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = super().describe()
        described[self.name]["units"] = UNIT
        low, high = self.parent.limits
        if math.isfinite(low) and math.isfinite(high):
            described[self.name].update(lower_ctrl_limit=low, upper_ctrl_limit=high)
        return described


class SimAxis(Device, PositionerBase):  # type: ignore[misc]
    """One axis; a move lasts its distance divided by `velocity` on the axis' clock.

    A new target, or `stop`, ends the move in progress where the axis then is.

    Parameters
    ----------
    prefix : str
        Not used; every ophyd device has one.
    limits : tuple of float
        Lowest and highest position, micrometres.
    start : float
        First position, micrometres.
    clock : Clock, optional
        Absent, moves take real time.
    **kwargs
        As for `ophyd.Device`; `name` is required.

    Attributes
    ----------
    velocity : Signal
        Micrometres per second; changes apply from the next move.
    clock : Clock
        Tells how far a move has come, and ends it.
    """

    readback = Component(_Readback, value=0.0, kind="hinted")
    velocity = Component(BoundedSignal, value=200.0, minimum=SLOWEST_UM_PER_S, units="um/s", kind="config")

    def __init__(
        self,
        prefix: str = "",
        *,
        limits: tuple[float, float] = UNLIMITED,
        start: float = 0.0,
        clock: Clock | None = None,
        **kwargs: Any,
    ) -> None:
        self._limits = limits
        self.clock = clock or RealClock()
        self._rest = start
        self._move: _Move | None = None
        self._state_lock = threading.Lock()
        self.readback_from: Callable[[], float] | None = None
        super().__init__(prefix, **kwargs)
        self.readback.name = self.name

    @property
    def egu(self) -> str:
        """Engineering unit of positions."""
        return UNIT

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest position, micrometres."""
        return self._limits

    @property
    def encoder(self) -> float:
        """Where the axis is, micrometres."""
        with self._state_lock:
            return self._rest if self._move is None else self._move.at(self.clock.now_s())

    @property
    def position(self) -> float:
        """Read-back, micrometres: what documents show."""
        return self.encoder if self.readback_from is None else self.readback_from()

    @property
    def moving(self) -> bool:
        """Whether a move is in progress."""
        return self._move is not None

    def restrict(self, limits: tuple[float, float], start: float) -> None:
        """Set the limits and put the axis, at rest, somewhere inside them.

        Parameters
        ----------
        limits : tuple of float
            Lowest and highest position, micrometres.
        start : float
            Where the axis is put, micrometres.

        Raises
        ------
        OutOfRangeError
            If `start` is outside the limits.
        """
        self._limits = limits
        self.check_value(start)
        self._rest = float(start)

    def check_value(self, position: float) -> None:
        """Refuse a position outside the limits.

        Raises
        ------
        OutOfRangeError
            If `position`, micrometres, is outside.
        """
        low, high = self._limits
        if not (math.isfinite(position) and low <= position <= high):
            raise OutOfRangeError(
                f"{self.name} moves between {low:g} and {high:g} {UNIT}; it was asked to go to {position:g} {UNIT}. "
                "Choose a position inside the limits; positions of this axis are in micrometres."
            )

    def move(
        self,
        position: float,
        wait: bool = False,
        moved_cb: Callable[..., None] | None = None,
        timeout: float | None = None,
    ) -> MoveStatus:
        """Start towards a position; `set` is the same without `wait`.

        Parameters
        ----------
        position : float
            Micrometres.
        wait : bool
            Return only when the axis has arrived.
        moved_cb : callable, optional
            Called as ``moved_cb(status, obj=axis)`` when the move has ended.
        timeout : float, optional
            Seconds after which the status fails.

        Returns
        -------
        MoveStatus
            Finished when the axis arrives.

        Raises
        ------
        OutOfRangeError
            If the position is outside the limits; the axis does not move.
        """
        target = float(position)
        self.check_value(target)
        self.stop()
        status = MoveStatus(self, target, timeout=timeout, settle_time=self.settle_time)
        if moved_cb is not None:
            status.add_callback(functools.partial(moved_cb, obj=self))
        start = self.encoder
        self._begin(_Move(start, target, self.clock.now_s(), abs(target - start) / self.velocity.get(), status))
        if wait:
            status.wait()
        return status

    def follow(self, times_s: FloatArray, positions: FloatArray, begun_s: float) -> MoveStatus:
        """Move along positions without stopping, whatever the velocity is set to.

        Parameters
        ----------
        times_s : ndarray, shape (k,)
            Ascending, from 0, seconds.
        positions : ndarray, shape (k,)
            Where the axis is at these times, micrometres.
        begun_s : float
            When it begins, seconds of the axis' clock.

        Returns
        -------
        MoveStatus
            Finished at the end of the motion.

        Raises
        ------
        OutOfRangeError
            If a position is outside the limits; the axis does not move.
        """
        for position in (float(np.min(positions)), float(np.max(positions))):
            self.check_value(position)
        self.stop()
        target = float(positions[-1])
        status = MoveStatus(self, target, settle_time=self.settle_time)
        duration_s = float(times_s[-1])
        self._begin(_Path(float(positions[0]), target, begun_s, duration_s, status, None, times_s, positions))
        return status

    def stop(self, *, success: bool = False) -> None:
        """End the move in progress where the axis is.

        Parameters
        ----------
        success : bool
            Whether the status of that move succeeds; it fails otherwise.
        """
        ended = self._end_move(self._move, arrived=False)
        if ended is None:
            return
        if success:
            ended.status.set_finished()
        else:
            where = f"at {self.position:g} {UNIT} on its way to {ended.target:g} {UNIT}"
            ended.status.set_exception(UnknownStatusFailure(f"{self.name} was stopped {where}"))

    def _begin(self, move: _Move) -> None:
        with self._state_lock:
            self._move = move
        move.arrival = self.clock.call_at(move.begun_s + move.duration_s, functools.partial(self._arrive, move))

    def _arrive(self, move: _Move) -> None:
        if self._end_move(move, arrived=True) is not None:
            self._run_subs(sub_type=self.SUB_DONE, timestamp=time.time(), value=self.position)
            move.status.set_finished()

    def _end_move(self, move: _Move | None, arrived: bool) -> _Move | None:
        """Come to rest; None if `move` is not, or no longer, the move in progress."""
        with self._state_lock:
            if move is None or move is not self._move:
                return None
            self._rest = move.target if arrived else move.at(self.clock.now_s())
            self._move = None
        if move.arrival is not None:
            move.arrival.cancel()
        self._run_subs(sub_type=self.SUB_READBACK, timestamp=time.time(), value=self.position)
        return move


class SimStage(Device):  # type: ignore[misc]
    """Sample stage with the axes `y` and `x`, which move at the same time.

    Parameters
    ----------
    prefix : str
        Not used; every ophyd device has one.
    velocity_um_per_s : float
        Speed of each axis, micrometres per second.
    limits_um : pair of pair of float
        Lowest and highest position of `y`, then of `x`, micrometres.
    start_um : pair of float
        First position (y, x), micrometres.
    snap : callable, optional
        Turns the axes' position (y, x) in metres into the one read back; absent, they are the same.
    clock : Clock, optional
        Absent, moves take real time.
    **kwargs
        As for `ophyd.Device`; `name` is required.
    """

    y = Component(SimAxis)
    x = Component(SimAxis)
    egu = UNIT

    def __init__(
        self,
        prefix: str = "",
        *,
        velocity_um_per_s: float = 200.0,
        limits_um: tuple[tuple[float, float], tuple[float, float]] = (UNLIMITED, UNLIMITED),
        start_um: tuple[float, float] = (0.0, 0.0),
        snap: Callable[[tuple[float, float]], tuple[float, float]] | None = None,
        clock: Clock | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, **kwargs)
        self._snap = snap
        for axis, limits, start in zip((self.y, self.x), limits_um, start_um, strict=True):
            axis.clock = clock or axis.clock
            axis.velocity.put(velocity_um_per_s)
            axis.restrict(limits, start)
        if snap is not None:
            self.y.readback_from = lambda: self.position_m[0] / METRES_PER[UNIT]
            self.x.readback_from = lambda: self.position_m[1] / METRES_PER[UNIT]

    @property
    def position_m(self) -> tuple[float, float]:
        """Read-back (y, x), metres."""
        here = (self.y.encoder * METRES_PER[UNIT], self.x.encoder * METRES_PER[UNIT])
        return here if self._snap is None else self._snap(here)

    def follow(self, flight: Flight, begun_s: float) -> StatusBase:
        """Move both axes along a flight.

        Parameters
        ----------
        flight : Flight
            Its motion.
        begun_s : float
            When it begins, seconds of the axes' clock.

        Returns
        -------
        Status
            Finished when both have arrived.

        Raises
        ------
        OutOfRangeError
            If a position is outside the limits; no axis moves.
        """
        positions_um = flight.positions_m / METRES_PER[UNIT]
        for axis, column in zip((self.y, self.x), positions_um.T, strict=True):
            for position in (column.min(), column.max()):
                axis.check_value(float(position))
        y_um, x_um = positions_um.T
        return self.y.follow(flight.times_s, y_um, begun_s) & self.x.follow(flight.times_s, x_um, begun_s)
