"""Scans of a fixed pattern, reconstructed live where a worker is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bluesky_cdi.agent.patterns import fermat_spiral, raster
from bluesky_cdi.plans._measure import Instrument, Plan, as_run, result_of, run_metadata, scan_area, window_args
from bluesky_cdi.protocols import FloatArray, ScanArea, ScanSource


def ptycho_raster(
    detectors: Sequence[Any],
    axis_y: Any,
    axis_x: Any,
    live: ScanSource | None = None,
    *,
    extent_um: Sequence[float],
    step_um: float,
    centre_um: Sequence[float] = (0.0, 0.0),
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan a window line by line, to and fro.

    Parameters
    ----------
    detectors : sequence of Readable
    axis_y, axis_x : Movable
    live : ScanSource, optional
        The session's worker; its failure ends the scan.
    extent_um : sequence of float
        Extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Step, micrometres.
    centre_um : sequence of float
        Centre (y, x) of the window, micrometres.
    md : Mapping, optional
        Metadata.

    Returns
    -------
    str
        ``"complete"``.

    Raises
    ------
    GeometryError
        If the window is not sound.
    WorkerError
        If the reconstruction failed.
    """
    area = scan_area(centre_um, extent_um, step_um, 1, adaptive=False)
    points = raster(area.low_m, area.high_m, area.step_m)
    args = window_args(centre_um, extent_um, step_um)
    return (yield from _scan("ptycho_raster", Instrument(detectors, axis_y, axis_x), live, area, points, args, md))


def ptycho_spiral(
    detectors: Sequence[Any],
    axis_y: Any,
    axis_x: Any,
    live: ScanSource | None = None,
    *,
    extent_um: Sequence[float],
    step_um: float,
    centre_um: Sequence[float] = (0.0, 0.0),
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan a window along a Fermat spiral with one point for each square of the step.

    Parameters, result and errors as in `ptycho_raster`.
    """
    area = scan_area(centre_um, extent_um, step_um, 1, adaptive=False)
    points = fermat_spiral(area.low_m, area.high_m, area.step_m)
    args = window_args(centre_um, extent_um, step_um)
    return (yield from _scan("ptycho_spiral", Instrument(detectors, axis_y, axis_x), live, area, points, args, md))


def _scan(
    name: str,
    instrument: Instrument,
    live: ScanSource | None,
    area: ScanArea,
    points: FloatArray,
    args: Mapping[str, Any],
    md: Mapping[str, Any] | None,
) -> Plan[str]:
    """Measure points in their order."""
    area = ScanArea(area.low_m, area.high_m, area.step_m, len(points), adaptive=False)
    _ = instrument.metres
    metadata = run_metadata(name, instrument, area, args, {"num_points": len(points), **(md or {})})
    if live is not None:
        ticket = yield from result_of(live.begin(area), live)
        metadata["reconstruction_uid"] = ticket.reconstruction_uid

    def inner() -> Plan[str]:
        for point in points:
            if live is not None:
                live.check()
            yield from instrument.measure(point)
        return "complete"

    return (yield from as_run(instrument, inner(), metadata))
