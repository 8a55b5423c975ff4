"""What all plans here share: the window, the metadata, and one measured point."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.utils import Msg

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.protocols import FloatArray, ScanArea
from bluesky_cdi.units import metres_per

T = TypeVar("T")
Plan = Generator[Msg, Any, T]


@dataclass(frozen=True, eq=False)
class Instrument:
    """The devices of a scan.

    Attributes
    ----------
    detectors : sequence of Readable
        Triggered and read at each point.
    axis_y, axis_x : Movable
        Stage axes.
    metres : tuple of float
        Metres that one unit of (y, x) is.
    """

    detectors: Sequence[Any]
    axis_y: Any
    axis_x: Any
    metres: tuple[float, float]

    def measure(self, position_m: FloatArray) -> Plan[None]:
        """Go to a position (y, x), metres, and take one event of the stream ``primary``.

        The second checkpoint keeps a pause right after the event from taking the point again.
        """
        y, x = np.asarray(position_m) / self.metres
        yield from bps.checkpoint()
        yield from bps.mv(self.axis_y, float(y), self.axis_x, float(x))
        yield from bps.trigger_and_read([*self.detectors, self.axis_y, self.axis_x])
        yield from bps.checkpoint()


def instrument_of(detectors: Sequence[Any], axis_y: Any, axis_x: Any) -> Plan[Instrument]:
    """Ask the axes for their unit, before anything moves.

    Parameters
    ----------
    detectors : sequence of Readable
        Triggered and read at each point.
    axis_y, axis_x : Movable
        Stage axes. They state their unit as ophyd's do (`egu`), or in what they describe, as those of ophyd-async.

    Returns
    -------
    Instrument

    Raises
    ------
    DocumentError
        If an axis states no unit of length.
    """
    y = metres_per((yield from _unit_of(axis_y)), axis_y.name)
    x = metres_per((yield from _unit_of(axis_x)), axis_x.name)
    return Instrument(detectors, axis_y, axis_x, (y, x))


def _unit_of(axis: Any) -> Plan[str | None]:
    stated = getattr(axis, "egu", None)
    if isinstance(stated, str) and stated.strip():
        return stated
    if inspect.iscoroutinefunction(axis.describe):
        (asked,) = yield from bps.wait_for([axis.describe])
        described = asked.result()
    else:
        described = axis.describe()
    units = [key.get("units") for name, key in described.items() if name == axis.name or len(described) == 1]
    return units[0] if units else None


def scan_area(
    centre_um: Sequence[float], extent_um: Sequence[float], step_um: float, budget: int, adaptive: bool
) -> ScanArea:
    """Check a window given in micrometres and turn it into metres.

    Parameters
    ----------
    centre_um, extent_um : sequence of float
        Centre and extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Step of the full scan, micrometres.
    budget : int
        Most frames.
    adaptive : bool
        Whether positions will be asked for.

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
    """Give the window as plan arguments: plain numbers, whatever sequence came.

    Parameters
    ----------
    centre_um, extent_um : sequence of float
        Centre and extent (y, x) of the window, micrometres.
    step_um : float
        Step of the full scan, micrometres.

    Returns
    -------
    dict
        JSON can hold it, as a queue server needs.
    """
    return {
        "extent_um": [float(v) for v in extent_um],
        "step_um": float(step_um),
        "centre_um": [float(v) for v in centre_um],
    }


def run_metadata(
    name: str, instrument: Instrument, area: ScanArea, args: Mapping[str, Any], md: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Make the start-document metadata of a scan; what is in `md` wins.

    Parameters
    ----------
    name : str
        The plan's.
    instrument : Instrument
        Its devices.
    area : ScanArea
        Its window, step and budget.
    args : Mapping
        The plan's arguments but for the devices.
    md : Mapping or None
        Metadata of the user.
    """
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
    """Do a plan as one run with the detectors staged, and give its result (`run_wrapper` gives the run's uid).

    Parameters
    ----------
    instrument : Instrument
        Its detectors are staged, and unstaged at the end.
    plan : generator
        What is done inside the run.
    metadata : Mapping
        For the start document.

    Returns
    -------
    object
        What `plan` returns.
    """
    results: list[T] = []

    def keep() -> Plan[None]:
        results.append((yield from plan))

    yield from bpp.stage_wrapper(bpp.run_wrapper(keep(), md=dict(metadata)), list(instrument.detectors))
    return results[0]
