"""What all plans here share: the window, the metadata, and one measured point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import Msg

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.protocols import FloatArray, ScanArea, ScanSource
from bluesky_cdi.units import metres_per

T = TypeVar("T")
Plan = Generator[Msg, Any, T]

# How often a plan that waits looks whether the worker still lives, seconds.
LOOK_S = 0.5
# How often it looks for the answer, seconds: little beside any decision or move.
POLL_S = 0.005


@dataclass(frozen=True, eq=False)
class Instrument:
    """The devices of a scan.

    Attributes
    ----------
    detectors : sequence of Readable
        Triggered and read at each point.
    axis_y, axis_x : Movable
        Stage axes; their `egu` is a unit of length.
    """

    detectors: Sequence[Any]
    axis_y: Any
    axis_x: Any

    @property
    def metres(self) -> tuple[float, float]:
        """Metres that one unit of (y, x) is."""
        y, x = (metres_per(getattr(axis, "egu", None), axis.name) for axis in (self.axis_y, self.axis_x))
        return y, x

    def measure(self, position_m: FloatArray) -> Plan[None]:
        """Go to a position (y, x), metres, and take one event of the stream ``primary``.

        The second checkpoint keeps a pause right after the event from taking the point again.
        """
        y, x = np.asarray(position_m) / self.metres
        yield from bps.checkpoint()
        yield from bps.mv(self.axis_y, float(y), self.axis_x, float(x))
        yield from bps.trigger_and_read([*self.detectors, self.axis_y, self.axis_x])
        yield from bps.checkpoint()


def scan_area(
    centre_um: Sequence[float], extent_um: Sequence[float], step_um: float, budget: int, adaptive: bool
) -> ScanArea:
    """Check a window given in micrometres and turn it into metres.

    Raises
    ------
    GeometryError
        If a number is not finite, or extent, step or budget not positive.
    """
    try:
        centre, extent = np.asarray(centre_um, dtype=np.float64), np.asarray(extent_um, dtype=np.float64)
        sound = centre.shape == extent.shape == (2,) and bool(np.isfinite([*centre, *extent, step_um]).all())
        sound = sound and bool((extent > 0).all()) and step_um > 0 and budget >= 1
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise GeometryError(
            "a scan needs centre_um and extent_um as two finite numbers (y, x), "
            "extent_um and step_um above 0 and a budget of at least 1; "
            f"got centre_um={centre_um}, extent_um={extent_um}, step_um={step_um}, budget={budget}"
        )
    low, high = (centre - extent / 2) * 1e-6, (centre + extent / 2) * 1e-6
    return ScanArea((low[0], low[1]), (high[0], high[1]), step_um * 1e-6, budget, adaptive)


def window_args(centre_um: Sequence[float], extent_um: Sequence[float], step_um: float) -> dict[str, Any]:
    """The window as plan arguments: plain numbers, whatever sequence came."""
    return {
        "extent_um": [float(v) for v in extent_um],
        "step_um": float(step_um),
        "centre_um": [float(v) for v in centre_um],
    }


def run_metadata(
    name: str, instrument: Instrument, area: ScanArea, args: Mapping[str, Any], md: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Start-document metadata of a scan; what is in `md` wins."""
    axes = [instrument.axis_y.name, instrument.axis_x.name]
    detectors = [d.name for d in instrument.detectors]
    return {
        "plan_name": name,
        "plan_args": {"detectors": detectors, "axis_y": axes[0], "axis_x": axes[1], **args},
        "detectors": detectors,
        "motors": axes,
        "window_m": [list(map(float, area.low_m)), list(map(float, area.high_m))],
        "step_m": float(area.step_m),
        "budget": area.budget,
        "hints": {"dimensions": [(axes, "primary")]},
        **(md or {}),
    }


def as_run(instrument: Instrument, plan: Plan[T], metadata: Mapping[str, Any]) -> Plan[T]:
    """Do a plan as one run with the detectors staged; its result comes back (`run_wrapper` gives the run's uid)."""
    results: list[T] = []

    def keep() -> Plan[None]:
        results.append((yield from plan))

    yield from bpp.stage_wrapper(bpp.run_wrapper(keep(), md=dict(metadata)), list(instrument.detectors))
    return results[0]


def result_of(future: Future[T], live: ScanSource) -> Plan[T]:
    """Wait for an answer of the worker, as long as the worker lives.

    Raises
    ------
    WorkerError
        If the worker failed, or died without answering.
    """
    while not future.done():
        live.check()
        yield from _wait(future, LOOK_S)
    return future.result()


def result_within(future: Future[T], live: ScanSource, timeout_s: float) -> Plan[T | None]:
    """Wait `timeout_s` seconds at most; None when the answer is late. Errors as in `result_of`."""
    deadline = time.monotonic() + timeout_s
    while not future.done() and (left := deadline - time.monotonic()) > 0:
        live.check()
        yield from _wait(future, min(left, LOOK_S))
    return future.result() if future.done() else None


def _wait(future: Future[Any], seconds: float) -> Plan[None]:
    """Let the RunEngine wait without blocking: it can be paused meanwhile, and waits again when resumed."""

    async def done() -> None:
        deadline = time.monotonic() + seconds
        while not future.done() and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)

    yield from bps.wait_for([done])
