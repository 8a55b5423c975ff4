"""The adaptive scan: the stage measures one batch while the worker decides the next."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import bluesky.plan_stubs as bps
import numpy as np
from bluesky.protocols import Flyable, Movable, Readable

from bluesky_cdi.errors import GeometryError, WorkerError
from bluesky_cdi.plans._beside import Beside, OnFailure
from bluesky_cdi.plans._decisions import STREAM, DecisionRecord
from bluesky_cdi.plans._flights import check_rate, pieces, resting
from bluesky_cdi.plans._fly import Flyer, fly_metadata
from bluesky_cdi.plans._measure import Instrument, Window, as_run, instrument_of, run_metadata
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.protocols import FloatArray, Proposal, ScanArea, ScanSource, ScanTicket

logger = logging.getLogger(__name__)

# Points of the coverage path taken when a decision is late, before it is looked for again.
FALLBACK_POINTS = 4
# Why the scan measures its coverage path, or ends.
LATE, FAILED = "decision late", "reconstruction failed"
BUDGET_SPENT = "budget"
# The part of a period for which a flight with rests exposes: the rest is for moving.
DUTY_AT_REST = 0.5
# Positions closer than this share of the step are one place: rounding in the units of the stage.
SAME_PLACE = 1e-3


def adaptive_ptycho(
    detectors: Sequence[Readable],
    axis_y: Movable,
    axis_x: Movable,
    live: ScanSource,
    *,
    extent_um: Sequence[float],
    step_um: float,
    budget: int,
    centre_um: Sequence[float] = (0.0, 0.0),
    batch: int = 16,
    decision_timeout_s: float = 5.0,
    on_reconstruction_failure: OnFailure = "continue",
    scanner: Flyable | None = None,
    rate_hz: float = 100.0,
    exposure_s: float | None = None,
    speed_um_per_s: float | None = None,
    keep_out_um: Sequence[Sequence[Sequence[float]]] = (),
    shutter: Movable | None = None,
    shutter_states: Sequence[str | int] = ("open", "closed"),
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan where the live reconstruction learns most, until the agent stops or the budget is spent.

    Each decision is an event of the stream ``agent``. A decision that is late by more than
    `decision_timeout_s` is bridged with points of a precomputed path that covers the window evenly,
    so beam time is not lost: the scan waits once, and then looks for the decision after every few points. If the
    reconstruction fails, the scan goes on along that path, and asks again when the reconstruction is there again.

    Parameters
    ----------
    detectors : sequence of Readable
        Detector with the frames, and whatever else is read at each point (the flux monitor).
    axis_y, axis_x : Movable
        Stage axes; they state their unit.
    live : ScanSource
        The session's worker.
    extent_um : sequence of float
        Extent (y, x) of the window of probe centres, micrometres.
    step_um : float
        Step of the full scan of that window: spacing of the positions to choose from, micrometres.
    budget : int
        Most frames.
    centre_um : sequence of float
        Centre (y, x) of the window, micrometres.
    batch : int
        Positions a decision.
    decision_timeout_s : float
        How long to wait for a decision, seconds.
    on_reconstruction_failure : {'continue', 'pause', 'abort'}
        What becomes of the scan when the reconstruction fails. What is measured is kept in any case.
    scanner : Flyable, optional
        A controller as `ptycho_fly` takes it: each batch is one flight then, at rest at each position while it is
        exposed, and `detectors` are those that fly.
    rate_hz : float
        Most frames a second of a flight.
    exposure_s : float, optional
        Exposure of a flight's frames, seconds; by default half of 1 / `rate_hz`.
    speed_um_per_s : float, optional
        Highest speed of a flight, micrometres per second: where the next position is far, frames come less often.
    keep_out_um : sequence of ((y, x), (y, x))
        Low and high corner of each box that the probe must not enter, micrometres: proposals in it are left out, and
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
        Why the scan ended.

    Raises
    ------
    GeometryError
        If the window, budget, batch, rate or a box is not sound.
    DocumentError
        If an axis states no unit of length.
    ConfigError
        If `on_reconstruction_failure` is none of the three.
    WorkerError
        If the reconstruction can't begin, or has failed and that is to end the scan.
    """
    beside = Beside(live, on_reconstruction_failure)
    window = Window(centre_um, extent_um, step_um, keep_out_um, shutter, shutter_states)
    area, safety = window.area(budget, adaptive=True), window.safety()
    if batch < 1:
        raise GeometryError(f"a scan needs a batch of at least 1 position; got batch={batch}")
    args = {**window.as_args(), "budget": int(budget), "batch": int(batch)}
    args |= {"decision_timeout_s": float(decision_timeout_s), "on_reconstruction_failure": on_reconstruction_failure}
    area = replace(area, keep_out_m=safety.keep_out.boxes_m)
    instrument = yield from instrument_of(detectors, axis_y, axis_x, safety)
    yield from instrument.check(np.array([area.low_m, area.high_m]))
    batches = None
    if scanner is not None:
        batches = _Batches.of(Flyer(instrument, scanner), rate_hz, exposure_s, speed_um_per_s)
        args |= {"scanner": scanner.name, "rate_hz": float(rate_hz), "exposure_s": batches.exposure_s}
        md = {**fly_metadata(detectors, (), area.step_m), **(md or {})}
    try:
        ticket = yield from beside.begin(area)
    except WorkerError as err:
        raise WorkerError(
            f"an adaptive scan can't begin without anybody who decides where to measure; nothing was measured. {err} "
            "A fixed pattern (ptycho_raster, ptycho_spiral) is measured without a reconstruction too."
        ) from err
    metadata = run_metadata("adaptive_ptycho", instrument, area, args, md)
    scan = _AdaptiveScan(instrument, beside, area, ticket, batch, decision_timeout_s, batches)
    metadata["reconstruction_uid"] = ticket.reconstruction_uid
    return (yield from as_run(instrument, scan.run(), metadata, [] if scanner is None else [scanner]))


@dataclass(frozen=True, eq=False)
class _Batches:
    """Flies the positions of a batch, in one flight if nothing is in the way."""

    flyer: Flyer
    period_s: float
    exposure_s: float
    speed_m_per_s: float

    @classmethod
    def of(cls, flyer: Flyer, rate_hz: float, exposure_s: float | None, speed_um_per_s: float | None) -> "_Batches":
        """Check the plan's arguments; see `adaptive_ptycho`."""
        period_s, exposed_s = check_rate(rate_hz, exposure_s, DUTY_AT_REST)
        return cls(flyer, period_s, exposed_s, np.inf if speed_um_per_s is None else speed_um_per_s * 1e-6)

    def measure(self, points_m: FloatArray) -> Plan[int]:
        """Measure positions, shape (n, 2); give how many frames came."""
        came = 0
        for piece in pieces(points_m, self.flyer.instrument.safety.keep_out):
            came += yield from self.flyer.fly(resting(piece, self.period_s, self.exposure_s, self.speed_m_per_s))
        return came


class _AdaptiveScan:
    """One scan's loop and what it has to remember."""

    def __init__(
        self,
        instrument: Instrument,
        beside: Beside,
        area: ScanArea,
        ticket: ScanTicket,
        batch: int,
        timeout_s: float,
        batches: _Batches | None = None,
    ) -> None:
        self._instrument, self._beside, self._area, self._batches = instrument, beside, area, batches
        path_m = np.asarray(ticket.coverage_path_m).reshape(-1, 2)
        self._path = list(path_m[instrument.safety.keep_out.allows(path_m)])
        # Frames that came: a detector that flies may drop some.
        self._frames = 0
        self._batch, self._timeout_s = batch, timeout_s
        self._record = DecisionRecord(batch)
        self._measured: list[FloatArray] = []
        # Whether points of the coverage path were measured since the agent was asked.
        self._overtaken = False

    def run(self) -> Plan[str]:
        """Measure batches until the agent stops or the budget is spent."""
        future = self._ask(self._area.budget)
        while True:
            decided = yield from self._beside.answer(future, 0.0 if self._overtaken else self._timeout_s)
            asked = decided or (yield from self._bridged(future))
            proposal = self._safe(asked)
            yield from self._save(proposal)
            left = self._area.budget - len(self._measured) - len(proposal.positions_m)
            if not len(proposal.positions_m) and not (len(asked.positions_m) and self._overtaken):
                return "no proposed position can be measured" if len(asked.positions_m) else asked.reason
            self._overtaken = self._overtaken or decided is None
            if left > 0 and (decided is not None or (yield from self._must_ask_again(future))):
                # Decided while the points below are measured, from what is measured by now.
                future = self._ask(left)
            yield from self._measure(proposal.positions_m)
            if left <= 0:
                # The run tells why it ended, as it does where the agent stops it.
                yield from self._save(Proposal(np.empty((0, 2)), np.empty(0), "plan", BUDGET_SPENT))
                return BUDGET_SPENT

    def _measure(self, points_m: FloatArray) -> Plan[None]:
        if self._batches is not None:
            yield from self._beside.is_well()
            self._frames += yield from self._batches.measure(points_m)
            self._measured.extend(points_m)
            return
        for point in points_m:
            yield from self._beside.is_well()
            yield from self._instrument.measure(point)
            self._measured.append(point)
            self._frames += 1

    def _ask(self, left: int) -> Future[Proposal]:
        self._overtaken = False
        return self._beside.request(min(self._batch, left), self._frames)

    def _must_ask_again(self, future: Future[Proposal]) -> Plan[bool]:
        """Tell whether a question went down with a worker that is there again."""
        is_lost = future.done() and future.exception() is not None
        return is_lost and (yield from self._beside.is_well())

    def _bridged(self, future: Future[Proposal]) -> Plan[Proposal]:
        """Give the next points of the coverage path; where it is used up, the decision, or none: that ends the scan."""
        well = yield from self._beside.is_well()
        reason = LATE if well and not (future.done() and future.exception()) else FAILED
        points = self._next_of_path(min(FALLBACK_POINTS, self._batch) if reason == LATE else self._batch)
        if len(points):
            if not self._overtaken and reason == LATE:
                logger.warning(
                    "the decision is late by more than %g s: measuring the coverage path until it comes",
                    self._timeout_s,
                )
            return Proposal(points, np.full(len(points), np.nan), "coverage path", reason)
        if reason == LATE and (decided := (yield from self._beside.answer(future, self._timeout_s))) is not None:
            return decided
        return Proposal(np.empty((0, 2)), np.empty(0), "coverage path", f"{reason}: the coverage path is measured")

    def _next_of_path(self, wanted: int) -> FloatArray:
        """Take up to so many points off the coverage path that nothing measured lies on, shape (n, 2), metres."""
        taken: list[FloatArray] = []
        wanted = min(wanted, self._area.budget - len(self._measured))
        while self._path and len(taken) < wanted:
            point = self._path.pop(0)
            if _distance(point, [*self._measured, *taken]) > self._area.step_m / 2:
                taken.append(point)
        return np.array(taken).reshape(-1, 2)

    def _safe(self, proposal: Proposal) -> Proposal:
        """Keep what can be measured: finite, inside the window, at new places, no more than asked for."""
        points = np.asarray(proposal.positions_m, dtype=np.float64).reshape(-1, 2)
        same = SAME_PLACE * self._area.step_m
        low, high = np.array(self._area.low_m) - same, np.array(self._area.high_m) + same
        inside = ((points >= low) & (points <= high)).all(axis=1)  # NaN compares false
        if not inside.all():
            logger.warning(
                "%d proposed positions lie outside the window or are not finite: left out", int((~inside).sum())
            )
        allowed = self._instrument.safety.keep_out.allows(points)
        if not allowed.all():
            logger.warning("%d proposed positions lie where the probe must not go: left out", int((~allowed).sum()))
        inside &= allowed
        new = np.array([_distance(point, self._measured) > same for point in points], dtype=bool)
        kept = np.flatnonzero(inside & new)[: min(self._batch, self._area.budget - len(self._measured))]
        return replace(proposal, positions_m=points[kept], expected_gain=np.asarray(proposal.expected_gain)[kept])

    def _save(self, proposal: Proposal) -> Plan[None]:
        self._record.put(proposal)
        yield from bps.checkpoint()
        yield from bps.create(name=STREAM)
        yield from bps.read(self._record)
        yield from bps.save()
        yield from bps.checkpoint()


def _distance(point: FloatArray, others: Sequence[FloatArray]) -> float:
    """Compute the distance of a point to the nearest of others; infinite if there are none."""
    return min((float(np.hypot(*(point - other))) for other in others), default=float("inf"))
