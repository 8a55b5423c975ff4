"""The beam shutter of a scan: open while it measures, closed whatever ends or interrupts it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.utils import Msg

from bluesky_cdi.plans._plan import Plan

logger = logging.getLogger(__name__)

T = TypeVar("T")
STREAM = "dose"
# How often a shutter that moves is looked at, seconds.
POLL_S = 0.01


@dataclass(frozen=True, eq=False)
class Shutter:
    """A device that lets the beam through, and what it is set to for that.

    Attributes
    ----------
    device : Movable
    open, closed : object
        Its two values.
    """

    device: Any
    open: Any = "open"
    closed: Any = "closed"


class BeamTime:
    """Opens and closes a shutter, and counts how long it is open; readable, as the events of the stream ``dose``.

    The RunEngine calls `pause` and `resume`: the shutter is closed meanwhile.

    Parameters
    ----------
    shutter : Shutter
    """

    name = "dose"
    parent = None

    def __init__(self, shutter: Shutter) -> None:
        self._shutter = shutter
        self._opened_s: float | None = None
        self._open_s = 0.0
        self._times = 0
        self._is_interrupted = False

    def opened(self) -> Plan[None]:
        """Open the shutter."""
        # So that the RunEngine knows whom to tell of pauses.
        yield Msg("null", self)
        yield from bps.mv(self._shutter.device, self._shutter.open)
        self._count(True)

    def closed(self) -> Plan[None]:
        """Close the shutter, whether or not it is open."""
        yield from bps.mv(self._shutter.device, self._shutter.closed)
        self._count(False)

    async def pause(self) -> None:
        """Close the shutter for the time of a pause."""
        self._is_interrupted = self._opened_s is not None
        await _done(self._shutter.device.set(self._shutter.closed))
        self._count(False)

    async def resume(self) -> None:
        """Open the shutter again, if it was open before."""
        if self._is_interrupted:
            self._is_interrupted = False
            await _done(self._shutter.device.set(self._shutter.open))
            self._count(True)

    def read(self) -> dict[str, dict[str, Any]]:
        """Give how long the shutter was open, seconds, and how often."""
        values = {"dose_open_s": self._open_s, "dose_openings": self._times}
        return {key: {"value": value, "timestamp": time.time()} for key, value in values.items()}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Give the data keys of `read`."""
        source = {"source": "bluesky_cdi", "shape": []}
        return {
            "dose_open_s": {**source, "dtype": "number", "dtype_numpy": "<f8", "units": "s"},
            "dose_openings": {**source, "dtype": "integer", "dtype_numpy": "<i8"},
        }

    def _count(self, is_open: bool) -> None:
        now = time.monotonic()
        if self._opened_s is not None:
            self._open_s += now - self._opened_s
        elif is_open:
            self._times += 1
        self._opened_s = now if is_open else None


def in_beam(plan: Plan[T], beam: BeamTime | None) -> Plan[T]:
    """Do a plan inside a run with the shutter open; it is closed, and the time recorded, however the plan ends.

    Parameters
    ----------
    plan : generator
        What is done.
    beam : BeamTime or None
        Without a shutter the plan is done as it is.

    Returns
    -------
    object
        What `plan` returns.
    """
    if beam is None:
        return (yield from plan)

    def exposed() -> Plan[T]:
        yield from beam.opened()
        return (yield from plan)

    def over() -> Plan[None]:
        yield from beam.closed()
        yield from _recorded([beam])

    return (yield from bpp.finalize_wrapper(exposed(), over))  # type: ignore[no-any-return]


def _recorded(records: Sequence[Any]) -> Plan[None]:
    yield from bps.create(name=STREAM)
    for record in records:
        yield from bps.read(record)
    yield from bps.save()


async def _done(status: Any) -> None:
    """Wait for a status, ophyd's or ophyd-async's."""
    if inspect.isawaitable(status):
        await status
        return
    while not status.done:
        await asyncio.sleep(POLL_S)
    if not status.success:
        raise status.exception()
