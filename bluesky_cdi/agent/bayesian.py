"""The adaptive agent: covers the field once, then goes where most is to be learned."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.agent.audit import GainAudit
from bluesky_cdi.agent.constraints import Box
from bluesky_cdi.agent.field import Field
from bluesky_cdi.agent.learner import Learner
from bluesky_cdi.agent.observations import Observations, as_suggestions, positions_of
from bluesky_cdi.agent.patterns import coverage_order
from bluesky_cdi.agent.phases import AgentState, Gains, choose, nothing
from bluesky_cdi.agent.route import route
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.stopping import StoppingRule
from bluesky_cdi.agent.surrogate import Hyperparameters
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray, Proposal

# The posterior covariance of this many candidates takes 1.6 GB.
CANDIDATES_MAX = 20_000


class BayesianAgent:
    """Chooses positions with a Gaussian process over what the reconstruction says of its frames.

    Parameters
    ----------
    space : SearchSpace
        The positions that may be chosen.
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
    target_resolution_m : float
        Stop when the confirmed resolution of the image is this or finer, metres; 0: never.
    seed : int
        Of what is drawn at random.
    refit : bool
        Fit the kernel to the outcomes; otherwise it stays at `hyperparameters`.
    hyperparameters : Hyperparameters
        Kernel before the first fit, lengths in probe widths.
    keep_out_m : sequence of ((y, x), (y, x))
        Rectangles where nothing may be measured, low and high corners, metres.

    Attributes
    ----------
    space : SearchSpace
        The positions that may be chosen.
    hyperparameters : Hyperparameters
        Kernel as it is.

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
        target_resolution_m: float = 0.0,
        seed: int = 0,
        refit: bool = True,
        hyperparameters: Hyperparameters | None = None,
        keep_out_m: Sequence[Box] = (),
    ) -> None:
        if len(space) > CANDIDATES_MAX:
            raise SearchSpaceError(
                f"the agent plans on at most {CANDIDATES_MAX} candidates; there are {len(space)}. "
                "Use a coarser step, or a smaller window."
            )
        self.space, self._seed = space, seed
        self._rule = StoppingRule(budget, stop_gain, target_std_rad, target_resolution_m)
        rng = np.random.default_rng(seed)
        self._state = AgentState(
            field=Field(space, probe_width_m, keep_out_m),
            observations=Observations(space.spacing_m / 2),
            learner=Learner(
                space.candidates_m,
                probe_width_m,
                rng,
                refit=refit,
                hyperparameters=hyperparameters or Hyperparameters(),
            ),
            audit=GainAudit(),
            gains=Gains(alpha, coverage_share),
            rng=rng,
        )
        self._last_m: FloatArray | None = None
        self._resolution_m: float | None = None

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Kernel as it is, lengths in probe widths."""
        return self._state.learner.hyperparameters

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Learn outcomes; those of known points (same ``seq_num``) replace the earlier ones.

        Parameters
        ----------
        points : sequence of Mapping
            ``y``, ``x`` (metres); optionally ``_id`` and ``seq_num``; outcomes ``uncertainty``
            (radians), ``structure`` and ``embedding`` (d values), of which none may be NaN if the
            point is to count for more than its position; ``resolution_m``, that of the whole image by now.

        Raises
        ------
        SearchSpaceError
            If a position is absent or not finite.
        """
        state = self._state
        if state.observations.take(points):
            state.field.forget()
            state.learner.forget()
        state.field.take(state.observations)
        for point in points:
            self._resolution_m = point.get("resolution_m", self._resolution_m)

    def suggest(self, num_points: int | None = None) -> list[Mapping[str, Any]]:
        """Choose points: mappings with ``_id``, ``y``, ``x`` (metres); empty means stop.

        Parameters
        ----------
        num_points : int, optional
            Most points; one if absent.
        """
        return self._decide(1 if num_points is None else num_points)[1]

    def propose(self, n: int) -> Proposal:
        """Choose up to `n` positions; none of them is chosen again. Empty means stop.

        Parameters
        ----------
        n : int
            Most positions.
        """
        return self._decide(n)[0]

    def get_best_points(self) -> list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """Give the ten measured points of the largest novelty: (id, parameters, outcomes)."""
        return self._state.observations.best()

    def coverage_path(self) -> FloatArray:
        """Give all allowed positions in an order that covers the window evenly, shape (m, 2), metres."""
        return coverage_order(self.space.candidates_m[self._state.field.allowed], self._seed)

    def should_stop(self) -> tuple[bool, str | None]:
        """Tell whether to stop, and why."""
        field, observations = self._state.field, self._state.observations
        has_gap = field.has_gap(field.nearest_m(observations.pending_m))
        uncertainty = None if has_gap else observations.outcome("uncertainty")
        n_used = len(observations) + len(observations.pending_ids)
        resolution_m = None if has_gap else self._resolution_m
        n_open, gains = int(field.is_open.sum()), self._state.gains.of_batches
        reason = self._rule.reason(n_used, n_open, gains, uncertainty, resolution_m)
        return reason is not None, reason

    def register_suggestions(self, suggestions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Take positions that someone else chose as if they were proposed, and give each an ``_id``.

        Parameters
        ----------
        suggestions : sequence of Mapping
            ``y``, ``x`` (metres).
        """
        positions = positions_of(suggestions)
        ids, index = self._state.observations.issue(positions), self.space.nearest(positions)
        self._state.field.visit(index)
        self._state.candidate_of.update(zip(ids, index.tolist(), strict=True))
        return as_suggestions(ids, positions)

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        """Learn that proposals, known by their ``_id``, were not measured; their places are not chosen again.

        Parameters
        ----------
        suggestions : sequence of Mapping
            As `suggest` gave them.
        """
        self._state.observations.withdraw(point["_id"] for point in suggestions)

    def _decide(self, n: int) -> tuple[Proposal, list[Mapping[str, Any]]]:
        started, observations = time.perf_counter(), self._state.observations
        pending, n_ingested = len(observations.pending_ids), len(observations)
        stop, reason = self.should_stop()
        n = 0 if stop else min(n, self._rule.budget - n_ingested - pending)
        choice = choose(self._state, n) if n > 0 else nothing(reason or "no position was asked for")
        order = route(self.space.candidates_m[choice.index], self._last_m)
        index, gain = choice.index[order], choice.gain[order]
        positions = self.space.candidates_m[index]
        ids = observations.issue(positions)
        self._state.field.visit(index)
        self._state.candidate_of.update(zip(ids, index.tolist(), strict=True))
        if choice.not_vacuum is not None:
            self._state.audit.expect(ids, choice.not_vacuum[order])
        if len(index):
            self._last_m = positions[-1]
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
