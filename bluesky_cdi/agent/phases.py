"""The phases of an adaptive scan: fill the field, then go where most is to be learned, or cover it on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from bluesky_cdi.agent.acquisition import Batch, VarianceReduction, choose_batch
from bluesky_cdi.agent.audit import GainAudit
from bluesky_cdi.agent.constraints import overlapping
from bluesky_cdi.agent.field import Field
from bluesky_cdi.agent.learner import Learner
from bluesky_cdi.agent.observations import Observations
from bluesky_cdi.agent.outcomes import LOG_UNCERTAINTY, Targets, candidate_weights, predict_not_vacuum
from bluesky_cdi.agent.patterns import IndexArray, farthest_first
from bluesky_cdi.agent.surrogate import CandidatePosterior
from bluesky_cdi.protocols import FloatArray

# Fewer outcomes than this can't tell structure from vacuum; the agent covers on.
OUTCOMES_MIN = 8


@dataclass(frozen=True, eq=False)
class Choice:
    """Candidates in the order of choice, and what is expected of them.

    Attributes
    ----------
    index : ndarray, shape (q,), int64
    gain : ndarray, shape (q,)
        The acquisition's value of each.
    acquisition : str
        Name of the rule that chose.
    reason : str
        The phase, or why nothing is chosen.
    not_vacuum : ndarray, shape (q,), or None
        How surely each shows something else than vacuum; None where nothing predicts it.
    """

    index: IndexArray
    gain: FloatArray
    acquisition: str
    reason: str
    not_vacuum: FloatArray | None = None


@dataclass(eq=False)
class Gains:
    """How learning and coverage are weighed, and what each adaptive batch was expected to gain.

    Attributes
    ----------
    alpha : float
        Weight of what will be learned of the field against what the image gains in coverage.
    coverage_share : float
        Share of each batch that is pure coverage.
    of_batches : list of float
        Mean expected gain of each adaptive batch.
    """

    alpha: float
    coverage_share: float
    of_batches: list[float] = dataclasses.field(default_factory=list)
    _owed: float = 0.0
    _first: tuple[float, float] | None = None

    def coverage_due(self, n: int) -> int:
        """Count the positions of a batch of n that are pure coverage; fractions carry over to the next batch."""
        self._owed += self.coverage_share * n
        due = int(self._owed + 1e-9)
        self._owed -= due
        return due

    def weigh(self, batch: Batch) -> FloatArray:
        """Weigh the gains of a batch against the best of the first one, shape (q,), and keep their mean."""
        if self._first is None:
            self._first = batch.best_learned, batch.best_covered
        learned, covered = batch.learned / self._first[0], batch.covered / self._first[1]
        gain = self.alpha * learned + (1.0 - self.alpha) * covered
        self.of_batches.append(float(gain.mean()))
        return np.asarray(gain)


@dataclass(frozen=True, eq=False)
class AgentState:
    """What the phases decide from.

    Attributes
    ----------
    field : Field
    observations : Observations
    learner : Learner
    audit : GainAudit
    gains : Gains
    rng : Generator
    candidate_of : dict
        From the id of a proposal to its candidate.
    """

    field: Field
    observations: Observations
    learner: Learner
    audit: GainAudit
    gains: Gains
    rng: np.random.Generator
    candidate_of: dict[int, int] = dataclasses.field(default_factory=dict)


def nothing(reason: str) -> Choice:
    """Choose nothing, and say why."""
    return Choice(np.empty(0, np.int64), np.empty(0), "none", reason)


def choose(state: AgentState, n: int) -> Choice:
    """Choose candidates in the phase that is due.

    Parameters
    ----------
    state : AgentState
        The surrogate, the audit and the gains in it go on.
    n : int
        How many, at most.
    """
    field, observations = state.field, state.observations
    nearest = field.nearest_m(observations.pending_m)
    if field.has_gap(nearest):
        return cover(state, n, nearest, "fill", field.gap_m)
    targets = state.learner.targets(observations)
    if targets.valid.sum() < OUTCOMES_MIN:
        return cover(state, n, nearest, "fill")
    posterior = state.learner.posterior(observations.positions_m, targets)
    state.audit.review(observations.ids, targets.not_vacuum, targets.valid, posterior.standardised_residuals)
    if state.audit.failed:
        return cover(state, n, nearest, "coverage (audit)")
    return adapt(state, n, nearest, posterior, targets)


def cover(state: AgentState, n: int, nearest_m: FloatArray, reason: str, gap_m: float | None = None) -> Choice:
    """Go to the farthest candidates.

    Parameters
    ----------
    state : AgentState
        What is known.
    n : int
        How many, at most.
    nearest_m : ndarray, shape (m,)
        Distance of each candidate to what is measured or pending, metres.
    reason : str
        Name of the phase.
    gap_m : float, optional
        Stop where no gap wider than this is left, metres.
    """
    field = state.field
    index = farthest_first(field.space.candidates_m, nearest_m, n, state.rng, field.is_open, gap_m)
    coverage, gain = field.coverage(state.observations.pending_m), np.zeros(len(index))
    for k, candidate in enumerate(index.tolist()):
        gain[k] = coverage.gain()[candidate]
        coverage.add(candidate)
    return Choice(index, gain, "farthest first", reason)


def adapt(state: AgentState, n: int, nearest_m: FloatArray, posterior: CandidatePosterior, targets: Targets) -> Choice:
    """Go where most is to be learned, and a share of the batch where most is dark.

    Parameters
    ----------
    state : AgentState
        What is known; its gains go on.
    n : int
        How many, at most.
    nearest_m : ndarray, shape (m,)
        As in `cover`.
    posterior : CandidatePosterior
        What the surrogate says of the candidates.
    targets : Targets
        What the frames brought.
    """
    field, observations = state.field, state.observations
    mean, variance = posterior.mean.numpy(), posterior.variance.numpy()
    not_vacuum = predict_not_vacuum(mean, variance, targets)
    log_uncertainty = mean[:, LOG_UNCERTAINTY] * targets.scale[LOG_UNCERTAINTY]
    weights = candidate_weights(not_vacuum, log_uncertainty)
    pending = np.array([state.candidate_of[key] for key in observations.pending_ids], dtype=np.int64)
    learning = VarianceReduction(posterior, weights, pending, n, state.rng)
    allowed = field.is_open & overlapping(nearest_m, field.width_m)
    coverage, due = field.coverage(observations.pending_m), state.gains.coverage_due(n)
    batch = choose_batch(learning, coverage, allowed, n, state.gains.alpha, due)
    gain = state.gains.weigh(batch)
    return Choice(batch.index, gain, "variance reduction + coverage", "adapt", not_vacuum[batch.index])
