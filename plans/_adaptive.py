"""The adaptive scan: the stage measures one batch while the worker decides the next."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np

from bluesky_cdi.plans._decisions import STREAM, DecisionRecord
from bluesky_cdi.plans._measure import Instrument, Plan, result_of, result_within, run_metadata, scan_area
from bluesky_cdi.protocols import FloatArray, Proposal, ScanArea, ScanSource, ScanTicket

logger = logging.getLogger(__name__)

# Points of the coverage path taken when a decision is late, before it is looked for again.
FALLBACK_POINTS = 4


def adaptive_ptycho(
    detectors: Sequence[Any],
    axis_y: Any,
    axis_x: Any,
    live: ScanSource,
    *,
    extent_um: Sequence[float],
    step_um: float,
    budget: int,
    centre_um: Sequence[float] = (0.0, 0.0),
    batch: int = 16,
    decision_timeout_s: float = 5.0,
    md: Mapping[str, Any] | None = None,
) -> Plan[str]:
    """Scan where the live reconstruction learns most, until the agent stops or the budget is spent.

    Each decision is an event of the stream ``agent``. A decision that is late by more than
    `decision_timeout_s` is bridged with points of a precomputed path that covers the window evenly,
    so beam time is not lost. An error of the worker ends the plan; the raw run is closed as
    usual and holds everything measured.

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
    md : Mapping, optional
        Metadata.

    Returns
    -------
    str
        Why the scan ended.

    Raises
    ------
    GeometryError
        If the window is not sound.
    DocumentError
        If an axis states no unit of length.
    WorkerError
        If the reconstruction failed.
    """
    instrument = Instrument(detectors, axis_y, axis_x)
    args = {"extent_um": list(extent_um), "step_um": step_um, "budget": budget, "centre_um": list(centre_um), "batch": batch}
    area = scan_area(centre_um, extent_um, step_um, budget, adaptive=True)
    _ = instrument.metres
    ticket = yield from result_of(live.begin(area), live)
    metadata = run_metadata("adaptive_ptycho", instrument, area, args, md)
    scan = _AdaptiveScan(instrument, live, area, ticket, batch, decision_timeout_s)

    @bpp.stage_decorator(list(detectors))
    @bpp.run_decorator(md={"reconstruction_uid": ticket.reconstruction_uid, **metadata})
    def inner() -> Plan[str]:
        return (yield from scan.run())

    return (yield from inner())


class _AdaptiveScan:
    """One scan's loop and what it has to remember."""

    def __init__(
        self, instrument: Instrument, live: ScanSource, area: ScanArea, ticket: ScanTicket, batch: int, timeout_s: float
    ) -> None:
        self._instrument, self._live, self._area = instrument, live, area
        self._path = list(ticket.coverage_path_m)
        self._batch, self._timeout_s = batch, timeout_s
        self._record = DecisionRecord(batch)
        self._measured: list[FloatArray] = []

    def run(self) -> Plan[str]:
        """Measure batches until the agent stops or the budget is spent."""
        future = self._live.request(min(self._batch, self._area.budget), 0)
        while True:
            decided = yield from result_within(future, self._live, self._timeout_s)
            bridge = self._bridge() if decided is None else None
            if decided is None and bridge is None:
                decided = yield from result_of(future, self._live)
            proposal = bridge or decided
            points = self._safe(proposal)
            yield from self._save(proposal)
            left = self._area.budget - len(self._measured) - len(points)
            if not len(points):
                return proposal.reason
            if bridge is None and left > 0:
                # Decided while the points below are measured, from what is measured by now.
                future = self._live.request(min(self._batch, left), len(self._measured))
            for point in points:
                self._live.check()
                yield from self._instrument.measure(point)
                self._measured.append(point)
            if left <= 0:
                return "budget"

    def _bridge(self) -> Proposal | None:
        """The next points of the coverage path that nothing measured lies on; None when it is used up."""
        taken: list[FloatArray] = []
        while self._path and len(taken) < min(FALLBACK_POINTS, self._area.budget - len(self._measured)):
            point = self._path.pop(0)
            known = [*self._measured, *taken]
            if not known or np.hypot(*(np.array(known) - point).T).min() > self._area.step_m / 2:
                taken.append(point)
        if not taken:
            return None
        logger.warning("the decision is late by more than %g s: measuring %d points of the coverage path", self._timeout_s, len(taken))
        return Proposal(np.array(taken), np.full(len(taken), np.nan), "coverage path", "decision late")

    def _safe(self, proposal: Proposal) -> FloatArray:
        """Positions that may be moved to: finite, inside the window, within the budget."""
        points = np.asarray(proposal.positions_m, dtype=np.float64).reshape(-1, 2)
        slack = self._area.step_m
        inside = (points >= np.array(self._area.low_m) - slack) & (points <= np.array(self._area.high_m) + slack)
        good = points[inside.all(axis=1)]  # NaN compares false
        if len(good) < len(points):
            logger.warning("%d proposed positions lie outside the window or are not finite: left out", len(points) - len(good))
        return good[: self._area.budget - len(self._measured)]

    def _save(self, proposal: Proposal) -> Plan[None]:
        self._record.put(proposal)
        yield from bps.checkpoint()
        yield from bps.create(name=STREAM)
        yield from bps.read(self._record)
        yield from bps.save()
        yield from bps.checkpoint()
