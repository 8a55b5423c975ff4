"""What all plans here share: the window, the metadata, and one measured point."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.plans._keep_out import KeepOut
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.plans._shutter import BeamTime, Shutter, in_beam
from bluesky_cdi.protocols import FloatArray, ScanArea
from bluesky_cdi.units import metres_per

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Safety:
    """What a scan must heed.

    Attributes
    ----------
    keep_out : KeepOut
        Where the probe must not go.
    low_m, high_m : tuple of float
        Corners (y, x) of the window that ways around that stay in, metres.
    beam : BeamTime or None
        The shutter, where the scan opens one.
    """

    keep_out: KeepOut = field(default_factory=KeepOut)
    low_m: tuple[float, float] = (-np.inf, -np.inf)
    high_m: tuple[float, float] = (np.inf, np.inf)
    beam: BeamTime | None = None

    def kept(self, points_m: FloatArray) -> FloatArray:
        """Leave out what must not be measured, and tell of it.

        Parameters
        ----------
        points_m : ndarray, shape (n, 2)
            (y, x), metres.

        Raises
        ------
        GeometryError
            If nothing is left.
        """
        allowed = self.keep_out.allows(points_m)
        if not allowed.any():
            raise GeometryError(
                f"all {len(points_m)} positions of the scan lie where the probe must not go (keep_out_um)"
            )
        if not allowed.all():
            logger.warning("%d positions lie where the probe must not go: left out", int((~allowed).sum()))
        return points_m[allowed]


@dataclass(frozen=True, eq=False)
class Window:
    """The window of a scan as its plan was given it, and what the scan must heed there.

    Attributes
    ----------
    centre_um, extent_um : sequence of float
        Centre and extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Step of the full scan, micrometres.
    keep_out_um : sequence of ((y, x), (y, x))
        Low and high corner of each box that the probe must not enter, micrometres.
    shutter : Movable or None
        Opened for the scan, and closed at its end.
    shutter_states : sequence
        What it is set to: open, closed.
    """

    centre_um: Sequence[float]
    extent_um: Sequence[float]
    step_um: float
    keep_out_um: Sequence[Sequence[Sequence[float]]] = ()
    shutter: Any = None
    shutter_states: Sequence[str | int] = ("open", "closed")

    def area(self, budget: int = 1, *, adaptive: bool = False) -> ScanArea:
        """Check the window, and turn it into metres.

        Parameters
        ----------
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
            centre, extent = (np.asarray(each, dtype=np.float64) for each in (self.centre_um, self.extent_um))
            sound = centre.shape == extent.shape == (2,)
            sound = sound and bool(np.isfinite([*centre, *extent, self.step_um]).all())
            sound = sound and bool((extent > 0).all()) and self.step_um > 0 and budget >= 1
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise GeometryError(
                "a scan needs centre_um and extent_um as two finite numbers (y, x), "
                "extent_um and step_um above 0 and a budget of at least 1; "
                f"got centre_um={self.centre_um}, extent_um={self.extent_um}, step_um={self.step_um}, budget={budget}"
            )
        low, high = (centre - extent / 2) * 1e-6, (centre + extent / 2) * 1e-6
        return ScanArea((low[0], low[1]), (high[0], high[1]), self.step_um * 1e-6, budget, adaptive)

    def safety(self) -> Safety:
        """Check what must be heeded, before anything moves.

        Raises
        ------
        GeometryError
            If window or a box is not sound.
        """
        area, beam = self.area(), None
        if self.shutter is not None:
            is_open, is_closed = self.shutter_states
            beam = BeamTime(Shutter(self.shutter, is_open, is_closed))
        return Safety(KeepOut.of_um(self.keep_out_um), area.low_m, area.high_m, beam)

    def as_args(self) -> dict[str, Any]:
        """Give it as plan arguments: plain numbers and names, as a queue server needs; what heeds nothing is left out.

        Returns
        -------
        dict
            JSON can hold it.
        """
        args = {
            "extent_um": [float(v) for v in self.extent_um],
            "step_um": float(self.step_um),
            "centre_um": [float(v) for v in self.centre_um],
        }
        if len(self.keep_out_um):
            args["keep_out_um"] = np.asarray(self.keep_out_um, dtype=np.float64).tolist()
        return args if self.shutter is None else {**args, "shutter": self.shutter.name}


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
    safety : Safety
        What it must heed.
    """

    detectors: Sequence[Any]
    axis_y: Any
    axis_x: Any
    metres: tuple[float, float]
    safety: Safety = field(default_factory=Safety)

    def check(self, points_m: FloatArray) -> Plan[None]:
        """Ask the axes whether they reach positions; nothing moves.

        Parameters
        ----------
        points_m : ndarray, shape (n, 2)
            (y, x), metres.

        Raises
        ------
        Exception
            What an axis raises for a position outside its limits; one without ``check_value`` can't be asked.
        """
        for axis, column, metres in zip((self.axis_y, self.axis_x), np.asarray(points_m).T, self.metres, strict=True):
            ask = getattr(axis, "check_value", None)
            if ask is None:
                continue
            for value in (float(column.min()) / metres, float(column.max()) / metres):
                if inspect.iscoroutinefunction(ask):
                    (asked,) = yield from bps.wait_for([lambda ask=ask, value=value: ask(value)])
                    asked.result()
                else:
                    ask(value)

    def go(self, position_m: FloatArray) -> Plan[None]:
        """Go to a position (y, x), metres, around what must be kept out of.

        Raises
        ------
        GeometryError
            If there is no way.
        """
        safety = self.safety
        way: list[FloatArray] | None = [np.asarray(position_m)]
        if safety.keep_out.boxes_m:
            here = yield from self._here()
            if not safety.keep_out.allows(here[None]).all():
                raise GeometryError(
                    f"the stage is at {_um(here)} um (y, x), where the probe must not go (keep_out_um): move it out of "
                    "there by hand before the scan"
                )
            way = safety.keep_out.way(here, np.asarray(position_m), np.array(safety.low_m), np.array(safety.high_m))
            if way is None:
                raise GeometryError(
                    f"there is no way from {_um(here)} to {_um(position_m)} um (y, x) inside the window around what "
                    "the probe must not enter (keep_out_um)"
                )
        for place in way or ():
            yield from bps.checkpoint()
            y, x = place / self.metres
            yield from bps.mv(self.axis_y, float(y), self.axis_x, float(x))

    def _here(self) -> Plan[FloatArray]:
        y = yield from bps.rd(self.axis_y)
        x = yield from bps.rd(self.axis_x)
        return np.array([y, x], dtype=np.float64) * self.metres

    def measure(self, position_m: FloatArray) -> Plan[None]:
        """Go to a position (y, x), metres, and take one event of the stream ``primary``.

        The second checkpoint keeps a pause right after the event from taking the point again.
        """
        yield from self.go(position_m)
        yield from bps.trigger_and_read([*self.detectors, self.axis_y, self.axis_x])
        yield from bps.checkpoint()


def _um(position_m: FloatArray) -> str:
    y, x = np.asarray(position_m) * 1e6
    return f"({y:.6g}, {x:.6g})"


def instrument_of(detectors: Sequence[Any], axis_y: Any, axis_x: Any, safety: Safety | None = None) -> Plan[Instrument]:
    """Ask the axes for their unit, before anything moves.

    Parameters
    ----------
    detectors : sequence of Readable
        Triggered and read at each point.
    axis_y, axis_x : Movable
        Stage axes. They state their unit as ophyd's do (`egu`), or in what they describe, as those of ophyd-async.
    safety : Safety, optional
        What the scan must heed.

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
    return Instrument(detectors, axis_y, axis_x, (y, x), safety or Safety())


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


def as_run(instrument: Instrument, plan: Plan[T], metadata: Mapping[str, Any], others: Sequence[Any] = ()) -> Plan[T]:
    """Do a plan as one run with the detectors staged, and give its result (`run_wrapper` gives the run's uid).

    Where the scan has a shutter, it is open meanwhile.

    Parameters
    ----------
    instrument : Instrument
        Its detectors are staged, and unstaged at the end.
    plan : generator
        What is done inside the run.
    metadata : Mapping
        For the start document.
    others : sequence of Stageable
        Staged beside the detectors.

    Returns
    -------
    object
        What `plan` returns.
    """
    results: list[T] = []

    def keep() -> Plan[None]:
        results.append((yield from in_beam(plan, instrument.safety.beam)))

    devices = [*instrument.detectors, *others]
    yield from bpp.stage_wrapper(bpp.run_wrapper(keep(), md=dict(metadata)), devices)
    return results[0]
