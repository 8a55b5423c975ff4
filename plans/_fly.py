"""Fly scans: frames at a fixed rate while a controller moves the stage along a trajectory."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import Flyable, Movable
from bluesky.utils import short_uid

from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.plans._beside import Beside, OnFailure
from bluesky_cdi.plans._flights import check_rate, line_spiral, pieces, through
from bluesky_cdi.plans._known_points import KnownPoints
from bluesky_cdi.plans._measure import Instrument, Window, instrument_of
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.protocols import Flight, FloatArray, ScanSource

logger = logging.getLogger(__name__)

# Streams of a fly scan: one row a frame, and one a sample of the encoders.
FRAMES, POSITIONS = "primary", "positions"
# How often documents of new frames and samples are made, seconds.
FLUSH_S = 0.1
# The exposure's part of the period, where none is stated: detectors need some time to read out.
DUTY = 0.9
# Ways longer than so many steps are no part of a trajectory.
LONGEST_STEPS = 1.5
# A way during an exposure that is longer than this part of the step is told of as a warning.
SMEAR_STEPS = 0.5
PATTERNS: dict[str, Callable[..., FloatArray]] = {"raster": raster, "spiral": line_spiral}


@dataclass(eq=False)
class Flyer:
    """Flies with detectors and a controller, in one run.

    Attributes
    ----------
    instrument : Instrument
        Its detectors fly; its axes go to where a flight begins.
    scanner : Flyable
        The controller.
    is_declared : bool
        Whether the run's streams are.
    """

    instrument: Instrument
    scanner: Any
    is_declared: bool = False

    def fly(self, flight: Flight) -> Plan[int]:
        """Fly once; a pause in between makes it fly again from the flight's beginning, with the same frame numbers.

        Parameters
        ----------
        flight : Flight
            What is flown.

        Returns
        -------
        int
            How many frames came.
        """
        if self.instrument.safety.keep_out.boxes_m:
            yield from self.instrument.go(flight.positions_m[0])
        if not self.is_declared:
            yield from self._prepare(flight)
            yield from bps.declare_stream(*self.instrument.detectors, name=FRAMES, collect=True)
            yield from bps.declare_stream(self.scanner, name=POSITIONS, collect=True)
            self.is_declared = True
        before = yield from self._frames()
        yield from bps.checkpoint()
        yield from bpp.contingency_wrapper(self._flown(flight), except_plan=self._failed)
        yield from bps.checkpoint()
        came = min(flight.n_frames, (yield from self._frames()) - before)
        if came < flight.n_frames:
            logger.warning("%d of %d frames of a flight came: the detector dropped the others", came, flight.n_frames)
        return came

    def _prepare(self, flight: Flight) -> Plan[None]:
        group = short_uid("prepare")
        for device in (*self.instrument.detectors, self.scanner):
            yield from bps.prepare(device, flight, group=group, wait=False)
        yield from bps.wait(group=group)

    def _flown(self, flight: Flight) -> Plan[None]:
        yield from self._prepare(flight)
        # Detectors first: they wait for the pulse with which the motion begins.
        yield from bps.kickoff_all(*self.instrument.detectors, wait=True)
        yield from bps.kickoff(self.scanner, wait=True)
        group = short_uid("complete")
        yield from bps.complete_all(*self.instrument.detectors, self.scanner, group=group, wait=False)
        done = False
        while not done:
            done = yield from bps.wait(group=group, timeout=FLUSH_S, error_on_timeout=False)
            yield from self._collect()

    def _failed(self, _: Exception) -> Plan[None]:
        """Close the shutter, come to rest, and keep what was measured."""
        if (beam := self.instrument.safety.beam) is not None:
            yield from beam.closed()
        for device in (self.scanner, *self.instrument.detectors):
            yield from bps.stop(device)
        yield from self._collect()

    def _collect(self) -> Plan[None]:
        yield from bps.collect(*self.instrument.detectors, name=FRAMES)
        yield from bps.collect(self.scanner, name=POSITIONS)

    def _frames(self) -> Plan[int]:
        """Ask how many frames every detector has."""
        counts = []
        for detector in self.instrument.detectors:
            if inspect.iscoroutinefunction(detector.get_index):
                (asked,) = yield from bps.wait_for([detector.get_index])
                counts.append(int(asked.result()))
            else:
                counts.append(int(detector.get_index()))
        return min(counts)


def ptycho_fly(
    detectors: Sequence[Flyable],
    axis_y: Movable,
    axis_x: Movable,
    scanner: Flyable,
    live: ScanSource | None = None,
    *,
    extent_um: Sequence[float],
    step_um: float,
    rate_hz: float,
    centre_um: Sequence[float] = (0.0, 0.0),
    exposure_s: float | None = None,
    pattern: Literal["raster", "spiral"] = "raster",
    on_reconstruction_failure: OnFailure = "continue",
    keep_out_um: Sequence[Sequence[Sequence[float]]] = (),
    shutter: Movable | None = None,
    shutter_states: Sequence[str | int] = ("open", "closed"),
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan a window without stopping: frames at a fixed rate, a step apart, the stage at constant speed.

    Frames find their positions by time stamps: the middle of each exposure, between the samples of the controller's
    encoders.

    Parameters
    ----------
    detectors : sequence of Flyable
        Detector with the frames (and others with a row for each of them); they take a `bluesky_cdi.protocols.Flight` by
        ``prepare``.
    axis_y, axis_x : Movable
        Stage axes, whose names the samples of the controller have; they state their unit.
    scanner : Flyable
        The controller: takes the flight, moves the stage, and gives samples of the positions with time stamps.
    live : ScanSource, optional
        The session's worker.
    extent_um : sequence of float
        Extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Way from one frame to the next, and from line to line, micrometres.
    rate_hz : float
        Frames a second.
    centre_um : sequence of float
        Centre (y, x) of the window, micrometres.
    exposure_s : float, optional
        Exposure, seconds; by default nine tenths of a period. During it the probe moves, which blurs the frame.
    pattern : {'raster', 'spiral'}
        Lines to and fro, or a spiral in the largest circle.
    on_reconstruction_failure : {'continue', 'pause', 'abort'}
        What becomes of the scan when the reconstruction fails. What is measured is kept in any case.
    keep_out_um : sequence of ((y, x), (y, x))
        Low and high corner of each box that the probe must not enter, micrometres: trajectories end before it, and go
        on behind it.
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
        If window, rate, exposure or a box is not sound, or no position may be measured.
    DocumentError
        If an axis states no unit of length.
    ConfigError
        If `on_reconstruction_failure` is none of the three.
    WorkerError
        If the reconstruction has failed and that is to end the scan.
    """
    window = Window(centre_um, extent_um, step_um, keep_out_um, shutter, shutter_states)
    area, safety = window.area(), window.safety()
    period_s, exposure_s = check_rate(rate_hz, exposure_s, DUTY)
    points = safety.kept(_pattern(pattern)(area.low_m, area.high_m, area.step_m))
    ways = pieces(points, safety.keep_out, LONGEST_STEPS * area.step_m)
    flights = [through(way, period_s, exposure_s) for way in ways]
    flown = {"scanner": scanner.name, "rate_hz": float(rate_hz), "exposure_s": exposure_s, "pattern": pattern}
    beside = None if live is None else Beside(live, on_reconstruction_failure)
    instrument = yield from instrument_of(detectors, axis_y, axis_x, safety)
    md = {**fly_metadata(detectors, flights, area.step_m), **(md or {})}
    args = {**window.as_args(), **flown}
    scan = KnownPoints("ptycho_fly", instrument, beside, area, points, args, md, [scanner])
    flyer = Flyer(instrument, scanner)
    return (yield from scan.measured(flyer.fly(flight) for flight in flights))


def _pattern(name: str) -> Callable[..., FloatArray]:
    if name not in PATTERNS:
        raise GeometryError(f"pattern must be one of {', '.join(PATTERNS)}; got {name!r}")
    return PATTERNS[name]


def fly_metadata(detectors: Sequence[Any], flights: Sequence[Flight], step_m: float) -> dict[str, Any]:
    """Give what a start document says of its flights, and tell how far the probe moves during exposures.

    Parameters
    ----------
    detectors : sequence of Flyable
        One of them may name its count of frames (``frame_number_key``).
    flights : sequence of Flight
        All, or none where they are not known yet.
    step_m : float
        Step of the scan, metres.
    """
    said: dict[str, Any] = {"position_stream": POSITIONS}
    numbers = [key for each in detectors if (key := getattr(each, "frame_number_key", None)) is not None]
    if numbers:
        said["frame_number_key"] = numbers[0]
    if flights:
        smear_m = float(np.median(np.concatenate([flight.smear_m() for flight in flights])))
        said["smear_m"] = smear_m
        logger.log(
            logging.WARNING if smear_m > SMEAR_STEPS * step_m else logging.INFO,
            "the probe moves by %.3g um during each exposure, %.0f %% of the step: frames are blurred by that along "
            "the motion. A shorter exposure_s or a smaller step_um lessens it.",
            smear_m * 1e6, 100 * smear_m / step_m,
        )  # fmt: skip
    return said
