"""Scans of a fixed pattern, reconstructed live where a worker is given."""

from collections.abc import Mapping, Sequence
from typing import Any

from bluesky.protocols import Movable, Readable

from bluesky_cdi.agent.patterns import fermat_spiral, raster
from bluesky_cdi.plans._beside import Beside, OnFailure
from bluesky_cdi.plans._measure import (
    Instrument,
    as_run,
    instrument_of,
    run_metadata,
    safety_args,
    safety_of,
    scan_area,
    window_args,
)
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.protocols import FloatArray, ScanArea, ScanSource


def ptycho_raster(
    detectors: Sequence[Readable],
    axis_y: Movable,
    axis_x: Movable,
    live: ScanSource | None = None,
    *,
    extent_um: Sequence[float],
    step_um: float,
    centre_um: Sequence[float] = (0.0, 0.0),
    on_reconstruction_failure: OnFailure = "continue",
    keep_out_um: Sequence[Sequence[Sequence[float]]] = (),
    shutter: Movable | None = None,
    shutter_states: Sequence[str | int] = ("open", "closed"),
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan a window line by line, to and fro.

    Parameters
    ----------
    detectors : sequence of Readable
        Detector with the frames, and whatever else is read at each point (the flux monitor).
    axis_y, axis_x : Movable
        Stage axes; they state their unit.
    live : ScanSource, optional
        The session's worker.
    extent_um : sequence of float
        Extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Step, micrometres.
    centre_um : sequence of float
        Centre (y, x) of the window, micrometres.
    on_reconstruction_failure : {'continue', 'pause', 'abort'}
        What becomes of the scan when the reconstruction fails. What is measured is kept in any case.
    keep_out_um : sequence of ((y, x), (y, x))
        Low and high corner of each box that the probe must not enter, micrometres: positions in it are left out, and
        ways lead around it.
    shutter : Movable, optional
        Opened for the scan; closed at its end, however it ends, and while it is paused. How long it was open is in the
        stream ``dose``.
    shutter_states : sequence
        What it is set to: open, closed.
    md : Mapping, optional
        Metadata.

    Returns
    -------
    str
        ``"complete"``.

    Raises
    ------
    GeometryError
        If the window or a box is not sound, or no position may be measured.
    DocumentError
        If an axis states no unit of length.
    ConfigError
        If `on_reconstruction_failure` is none of the three.
    WorkerError
        If the reconstruction has failed and that is to end the scan.
    """
    area = scan_area(centre_um, extent_um, step_um, 1, adaptive=False)
    points = raster(area.low_m, area.high_m, area.step_m)
    safety = safety_of(area, keep_out_um, shutter, shutter_states)
    args = {**window_args(centre_um, extent_um, step_um), **safety_args(keep_out_um, shutter)}
    beside = None if live is None else Beside(live, on_reconstruction_failure)
    instrument = yield from instrument_of(detectors, axis_y, axis_x, safety)
    return (yield from _scan("ptycho_raster", instrument, beside, area, points, args, md))


def ptycho_spiral(
    detectors: Sequence[Readable],
    axis_y: Movable,
    axis_x: Movable,
    live: ScanSource | None = None,
    *,
    extent_um: Sequence[float],
    step_um: float,
    centre_um: Sequence[float] = (0.0, 0.0),
    on_reconstruction_failure: OnFailure = "continue",
    keep_out_um: Sequence[Sequence[Sequence[float]]] = (),
    shutter: Movable | None = None,
    shutter_states: Sequence[str | int] = ("open", "closed"),
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan a window along a Fermat spiral with one point for each square of the step.

    Parameters
    ----------
    detectors : sequence of Readable
        Detector with the frames, and whatever else is read at each point (the flux monitor).
    axis_y, axis_x : Movable
        Stage axes; they state their unit.
    live : ScanSource, optional
        The session's worker.
    extent_um : sequence of float
        Extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Side of the square that one point stands for, micrometres.
    centre_um : sequence of float
        Centre (y, x) of the window, micrometres.
    on_reconstruction_failure : {'continue', 'pause', 'abort'}
        What becomes of the scan when the reconstruction fails. What is measured is kept in any case.
    keep_out_um : sequence of ((y, x), (y, x))
        Low and high corner of each box that the probe must not enter, micrometres: positions in it are left out, and
        ways lead around it.
    shutter : Movable, optional
        Opened for the scan; closed at its end, however it ends, and while it is paused. How long it was open is in the
        stream ``dose``.
    shutter_states : sequence
        What it is set to: open, closed.
    md : Mapping, optional
        Metadata.

    Returns
    -------
    str
        ``"complete"``.

    Raises
    ------
    GeometryError
        If the window or a box is not sound, or no position may be measured.
    DocumentError
        If an axis states no unit of length.
    ConfigError
        If `on_reconstruction_failure` is none of the three.
    WorkerError
        If the reconstruction has failed and that is to end the scan.
    """
    area = scan_area(centre_um, extent_um, step_um, 1, adaptive=False)
    points = fermat_spiral(area.low_m, area.high_m, area.step_m)
    safety = safety_of(area, keep_out_um, shutter, shutter_states)
    args = {**window_args(centre_um, extent_um, step_um), **safety_args(keep_out_um, shutter)}
    beside = None if live is None else Beside(live, on_reconstruction_failure)
    instrument = yield from instrument_of(detectors, axis_y, axis_x, safety)
    return (yield from _scan("ptycho_spiral", instrument, beside, area, points, args, md))


def _scan(
    name: str,
    instrument: Instrument,
    beside: Beside | None,
    area: ScanArea,
    points: FloatArray,
    args: Mapping[str, Any],
    md: Mapping[str, Any] | None,
) -> Plan[str]:
    """Measure points in their order."""
    points = instrument.safety.kept(points)
    yield from instrument.check(points)
    area = ScanArea(area.low_m, area.high_m, area.step_m, len(points), adaptive=False)
    metadata = run_metadata(name, instrument, area, args, {"num_points": len(points), **(md or {})})
    if beside is not None:
        metadata |= yield from beside.announced(area)

    def inner() -> Plan[str]:
        for point in points:
            if beside is not None:
                yield from beside.is_well()
            yield from instrument.measure(point)
        return "complete"

    return (yield from as_run(instrument, inner(), metadata))
