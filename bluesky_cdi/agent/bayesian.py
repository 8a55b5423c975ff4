"""The adaptive agent: covers the field once, then goes where most is to be learned."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_cdi.agent.acquisition import Coverage, VarianceReduction, choose_batch
from bluesky_cdi.agent.audit import GainAudit
from bluesky_cdi.agent.constraints import Box, outside_boxes, overlapping
from bluesky_cdi.agent.ledger import Ledger, as_suggestions
from bluesky_cdi.agent.outcomes import LOG_UNCERTAINTY, Targets, candidate_weights, make_targets, predict_not_vacuum
from bluesky_cdi.agent.patterns import IndexArray, MaskArray, coverage_order, farthest_first
from bluesky_cdi.agent.route import route
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.stopping import StoppingRule
from bluesky_cdi.agent.surrogate import CandidatePosterior, Hyperparameters, fit_hyperparameters
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray, Proposal

logger = logging.getLogger(__name__)

# The posterior covariance of this many candidates takes 1.6 GB.
CANDIDATES_MAX = 20_000
# Frames on a square lattice one probe width apart leave no place farther than this many widths.
FILL_GAP = 2**-0.5
# Fewer outcomes than this can't tell structure from vacuum; the agent covers on.
OUTCOMES_MIN = 8
REFIT_AT = (64, 128, 256)
REFIT_GROWTH = 1.5
RESIDUAL_BOUNDS = (0.5, 2.0)
RESIDUAL_FRAMES = 64
REFIT_FRAMES_MIN = 32


@dataclass(frozen=True, eq=False)
class _Choice:
    """Candidates in the order of choice, and what was expected of them."""

    index: IndexArray
    gain: FloatArray
    acquisition: str
    reason: str
    not_vacuum: FloatArray | None = None


class BayesianAgent:
    """Chooses positions with a Gaussian process over what the reconstruction says of its frames.

    Parameters
    ----------
    space : SearchSpace
    probe_width_m : float
        Full width at half maximum of the illumination, metres.
    alpha : float
        Weight of what will be learned of the field against what the image gains in coverage.
    coverage_share : float
        Share of each batch that is pure coverage.
    budget : int
        Most frames.
    stop_gain : float
        Stop when the expected gain of three batches in a row is below this share of the first's.
    target_std_rad : float
        Stop when the median predicted phase error of the frames is below this, radians; 0: never.
    seed : int
    refit : bool
        Fit the kernel to the outcomes; otherwise it stays at `hyperparameters`.
    hyperparameters : Hyperparameters
        Kernel before the first fit, lengths in probe widths.
    keep_out_m : sequence of ((y, x), (y, x))
        Rectangles where nothing may be measured, low and high corners, metres.

    Raises
    ------
    SearchSpaceError
        If no candidate is allowed, there are too many, or the probe's width is not a length.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        probe_width_m: float,
        alpha: float = 0.6,
        coverage_share: float = 0.1,
        budget: int,
        stop_gain: float = 0.01,
        target_std_rad: float = 0.0,
        seed: int = 0,
        refit: bool = True,
        hyperparameters: Hyperparameters | None = None,
        keep_out_m: Sequence[Box] = (),
    ) -> None:
        if not (np.isfinite(probe_width_m) and probe_width_m > 0):
            raise SearchSpaceError(f"the probe's width must be a positive length in metres; it is {probe_width_m!r}")
        if len(space) > CANDIDATES_MAX:
            raise SearchSpaceError(
                f"the agent plans on at most {CANDIDATES_MAX} candidates; there are {len(space)}. "
                "Use a coarser step, or a smaller window."
            )
        self.space = space
        self._width_m, self._alpha, self._coverage_share = probe_width_m, alpha, coverage_share
        self._rule = StoppingRule(budget, stop_gain, target_std_rad)
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._refit, self._hyper = refit, hyperparameters or Hyperparameters()
        self._allowed = outside_boxes(space.candidates_m, keep_out_m)
        self._visited = np.zeros(len(space), bool)
        self._ledger = Ledger(space.spacing_m / 2)
        self._audit = GainAudit()
        self._posterior: CandidatePosterior | None = None
        self._candidate_of: dict[int, int] = {}
        self._predicted: dict[int, float] = {}
        self._n_audited = 0
        self._fitted_at = 0
        self._first_gain: tuple[float, float] | None = None
        self._batch_gains: list[float] = []
        self._coverage_owed = 0.0
        self._last_m: FloatArray | None = None
        self._warned = False
        self._forget_measured()

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Learn outcomes; those of known points (same ``seq_num``) replace the earlier ones.

        Parameters
        ----------
        points : sequence of Mapping
            ``y``, ``x`` (metres); optionally ``_id`` and ``seq_num``; outcomes ``uncertainty``
            (radians), ``structure`` and ``embedding`` (d values), of which none may be NaN if the
            point is to count for more than its position.

        Raises
        ------
        SearchSpaceError
            If a position is absent or not finite.
        """
        if self._ledger.take(points):
            self._forget_measured()
        self._illuminate(self._ledger.positions_m[self._n_lit :])

    def suggest(self, num_points: int | None = None) -> list[Mapping[str, Any]]:
        """Choose points: mappings with ``_id``, ``y``, ``x`` (metres); empty means stop."""
        return self._decide(1 if num_points is None else num_points)[1]

    def propose(self, n: int) -> Proposal:
        """Choose up to `n` positions; none of them is chosen again. Empty means stop."""
        return self._decide(n)[0]

    def get_best_points(self) -> list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """The ten measured points of the largest novelty: (id, parameters, outcomes)."""
        return self._ledger.best()

    def coverage_path(self) -> FloatArray:
        """All allowed positions in an order that covers the window evenly, shape (m, 2), metres."""
        return coverage_order(self.space.candidates_m[self._allowed], self._seed)

    def should_stop(self) -> tuple[bool, str | None]:
        """Whether to stop, and why."""
        uncertainty = None if self._gap_open(self._nearest()) else self._ledger.outcome("uncertainty")
        n_used = len(self._ledger) + self._ledger.n_pending
        reason = self._rule.reason(n_used, int(self._open().sum()), self._batch_gains, uncertainty)
        return reason is not None, reason

    def _decide(self, n: int) -> tuple[Proposal, list[Mapping[str, Any]]]:
        started = time.perf_counter()
        pending, n_ingested = self._ledger.n_pending, len(self._ledger)
        stop, reason = self.should_stop()
        n = 0 if stop else min(n, self._rule.budget - n_ingested - pending)
        choice = self._choose(n) if n > 0 else _nothing(reason or "no position was asked for")
        order = route(self.space.candidates_m[choice.index], self._last_m)
        index, gain = choice.index[order], choice.gain[order]
        positions = self.space.candidates_m[index]
        ids = self._ledger.issue(positions)
        self._remember(ids, index, None if choice.not_vacuum is None else choice.not_vacuum[order])
        proposal = Proposal(
            positions_m=positions,
            expected_gain=gain,
            acquisition=choice.acquisition,
            reason=choice.reason,
            pending=pending,
            n_ingested=n_ingested,
            decision_s=time.perf_counter() - started,
        )
        return proposal, as_suggestions(ids, positions)

    def _remember(self, ids: Sequence[int], index: IndexArray, not_vacuum: FloatArray | None) -> None:
        self._visited[index] = True
        self._candidate_of.update(zip(ids, index.tolist(), strict=True))
        if not_vacuum is not None:
            self._predicted.update(zip(ids, not_vacuum.tolist(), strict=True))
        if len(index):
            self._last_m = self.space.candidates_m[index[-1]]

    # What was measured: distances and illumination of the candidates.

    def _forget_measured(self) -> None:
        self._n_lit = 0
        self._measured_nearest_m = np.full(len(self.space), np.inf)
        self._measured_coverage = Coverage(self.space, self._width_m)
        self._posterior = None

    def _illuminate(self, positions_m: FloatArray) -> None:
        for row, position in enumerate(positions_m, start=self._n_lit):
            distance = np.linalg.norm(self.space.candidates_m - position, axis=1)
            np.minimum(self._measured_nearest_m, distance, out=self._measured_nearest_m)
            nearest = int(distance.argmin())
            # The candidate of a proposal is marked already; nearest may be another one at the same place.
            if self._ledger.ids[row] is None and distance[nearest] <= self.space.spacing_m / 2:
                self._visited[nearest] = True
        self._measured_coverage.add_positions(positions_m)
        self._n_lit += len(positions_m)

    def _nearest(self) -> FloatArray:
        """Distance of each candidate to what is measured or pending, shape (m,), metres."""
        nearest = self._measured_nearest_m.copy()
        for position in self._ledger.pending_m:
            np.minimum(nearest, np.linalg.norm(self.space.candidates_m - position, axis=1), out=nearest)
        return nearest

    def _coverage(self) -> Coverage:
        coverage = self._measured_coverage.copy()
        coverage.add_positions(self._ledger.pending_m)
        return coverage

    def _open(self) -> MaskArray:
        return self._allowed & ~self._visited

    def _gap_open(self, nearest_m: FloatArray) -> bool:
        """Whether the field is not yet covered once by what is measured or pending."""
        return bool((nearest_m[self._open()] > FILL_GAP * self._width_m).any())

    # The phases.

    def _choose(self, n: int) -> _Choice:
        nearest = self._nearest()
        if self._gap_open(nearest):
            return self._cover(n, nearest, FILL_GAP * self._width_m, "fill")
        targets = self._targets()
        if targets.valid.sum() < OUTCOMES_MIN:
            return self._cover(n, nearest, None, "fill")
        posterior = self._refreshed(targets)
        self._audit_gains(posterior, targets)
        if self._audit.failed:
            return self._cover(n, nearest, None, "coverage (audit)")
        return self._adapt(n, nearest, posterior, targets)

    def _cover(self, n: int, nearest_m: FloatArray, gap_m: float | None, reason: str) -> _Choice:
        """Go to the farthest candidates, until no gap wider than `gap_m` is left if that is given."""
        index = farthest_first(self.space.candidates_m, nearest_m, n, self._rng, self._open(), gap_m)
        coverage, gain = self._coverage(), np.zeros(len(index))
        for k, candidate in enumerate(index.tolist()):
            gain[k] = coverage.gain()[candidate]
            coverage.add(candidate)
        return _Choice(index, gain, "farthest first", reason)

    def _adapt(self, n: int, nearest_m: FloatArray, posterior: CandidatePosterior, targets: Targets) -> _Choice:
        mean, variance = posterior.mean.numpy(), posterior.variance.numpy()
        not_vacuum = predict_not_vacuum(mean, variance, targets)
        log_uncertainty = mean[:, LOG_UNCERTAINTY] * targets.scale[LOG_UNCERTAINTY]
        weights = candidate_weights(not_vacuum, log_uncertainty)
        pending = self._pending_candidates()
        learning = VarianceReduction(posterior, weights, pending, n, self._rng)
        allowed = self._open() & overlapping(nearest_m, self._width_m)
        batch = choose_batch(learning, self._coverage(), allowed, n, self._alpha, self._coverage_due(n))
        if self._first_gain is None:
            self._first_gain = batch.best_learned, batch.best_covered
        learned, covered = batch.learned / self._first_gain[0], batch.covered / self._first_gain[1]
        gain = self._alpha * learned + (1.0 - self._alpha) * covered
        self._batch_gains.append(float(gain.mean()))
        return _Choice(batch.index, gain, "variance reduction + coverage", "adapt", not_vacuum[batch.index])

    def _coverage_due(self, n: int) -> int:
        """Positions of a batch of n that are pure coverage; fractions carry over to the next batch."""
        self._coverage_owed += self._coverage_share * n
        due = int(self._coverage_owed + 1e-9)
        self._coverage_owed -= due
        return due

    def _pending_candidates(self) -> IndexArray:
        return np.array([self._candidate_of[key] for key in self._ledger.pending_ids], dtype=np.int64)

    # The surrogate.

    def _targets(self) -> Targets:
        ledger = self._ledger
        targets = make_targets(ledger.outcome("uncertainty"), ledger.outcome("structure"), ledger.embedding)
        n_bad = int((~targets.valid).sum())
        if n_bad and not self._warned:
            self._warned = True
            logger.warning("%d frame(s) have outcomes that are not finite; only their positions count", n_bad)
        return targets

    def _refreshed(self, targets: Targets) -> CandidatePosterior:
        posterior = self._updated(targets)
        if not self._refit_due(posterior, targets):
            return posterior
        positions = self._ledger.positions_m[targets.valid] / self._width_m
        self._hyper = fit_hyperparameters(positions, targets.values[targets.valid], self._hyper, self._rng)
        self._fitted_at, self._posterior = int(targets.valid.sum()), None
        logger.info("surrogate fitted to %d frames: %s", self._fitted_at, self._hyper)
        return self._updated(targets)

    def _updated(self, targets: Targets) -> CandidatePosterior:
        if self._posterior is None:
            self._posterior = CandidatePosterior(self.space.candidates_m / self._width_m, self._hyper)
        new = self._ledger.positions_m[len(self._posterior) :]
        if len(new):
            self._posterior.extend(new / self._width_m)
        self._posterior.set_outcomes(targets.values, targets.valid)
        return self._posterior

    def _refit_due(self, posterior: CandidatePosterior, targets: Targets) -> bool:
        n = int(targets.valid.sum())
        if not self._refit or n <= self._fitted_at:
            return False
        if self._fitted_at == 0 or n >= _next_refit(self._fitted_at):
            return True
        recent = posterior.standardised_residuals[targets.valid][-RESIDUAL_FRAMES:]
        low, high = RESIDUAL_BOUNDS
        return n - self._fitted_at >= REFIT_FRAMES_MIN and not low <= float(np.mean(recent**2)) <= high

    def _audit_gains(self, posterior: CandidatePosterior, targets: Targets) -> None:
        """Compare the frames chosen adaptively since the last audit with what was expected of them."""
        ids = enumerate(self._ledger.ids[self._n_audited :], start=self._n_audited)
        found = {row: self._predicted[key] for row, key in ids if key in self._predicted and targets.valid[row]}
        rows, predicted = list(found), np.array(list(found.values()))
        if self._audit.compare(predicted, targets.not_vacuum[rows], posterior.standardised_residuals[rows]):
            self._n_audited = len(self._ledger)


def _nothing(reason: str) -> _Choice:
    return _Choice(np.empty(0, np.int64), np.empty(0), "none", reason)


def _next_refit(fitted_at: int) -> float:
    """Number of frames at which the kernel is fitted again."""
    return next((n for n in REFIT_AT if n > fitted_at), fitted_at * REFIT_GROWTH)
