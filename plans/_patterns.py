"""Scans of a fixed pattern, reconstructed live where a worker is given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bluesky.protocols import Movable, Readable

from bluesky_cdi.agent.patterns import fermat_spiral, raster
from bluesky_cdi.plans._beside import Beside, OnFailure
from bluesky_cdi.plans._known_points import KnownPoints
from bluesky_cdi.plans._measure import Window, instrument_of
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.protocols import FloatArray, ScanSource


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
    window = Window(centre_um, extent_um, step_um, keep_out_um, shutter, shutter_states)
    beside = None if live is None else Beside(live, on_reconstruction_failure)
    return (yield from _scan("ptycho_raster", raster, window, (detectors, axis_y, axis_x), beside, md))


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
    window = Window(centre_um, extent_um, step_um, keep_out_um, shutter, shutter_states)
    beside = None if live is None else Beside(live, on_reconstruction_failure)
    return (yield from _scan("ptycho_spiral", fermat_spiral, window, (detectors, axis_y, axis_x), beside, md))


def _scan(
    name: str,
    pattern: Callable[..., FloatArray],
    window: Window,
    devices: tuple[Sequence[Readable], Movable, Movable],
    beside: Beside | None,
    md: Mapping[str, Any] | None,
) -> Plan[str]:
    """Measure the points of a pattern in their order, with the detectors and two axes."""
    area, safety = window.area(), window.safety()
    points = safety.kept(pattern(area.low_m, area.high_m, area.step_m))
    instrument = yield from instrument_of(*devices, safety)
    scan = KnownPoints(name, instrument, beside, area, points, window.as_args(), md)
    return (yield from scan.measured(instrument.measure(point) for point in points))
