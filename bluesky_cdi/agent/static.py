"""Fixed patterns behind the protocol of the agents."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.agent.observations import Observations, as_suggestions, positions_of
from bluesky_cdi.agent.patterns import coverage_order
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.stopping import StoppingRule
from bluesky_cdi.protocols import FloatArray, Proposal


class StaticAgent:
    """Measures given positions in the given order.

    Parameters
    ----------
    space : SearchSpace
        Where it holds a recorded scan, each position becomes the nearest candidate, once.
    order_m : ndarray, shape (n, 2)
        (y, x), metres.
    name : str
        Name of the pattern.
    budget : int, optional
        Most frames; all positions by default.
    """

    def __init__(self, space: SearchSpace, order_m: FloatArray, name: str, budget: int | None = None) -> None:
        self.name = name
        self._order_m = _snapped(space, order_m) if space.recorded else np.asarray(order_m, dtype=np.float64)
        self._observations = Observations(space.spacing_m / 2)
        self._rule = StoppingRule(len(self._order_m) if budget is None else budget)
        self._n_issued = 0

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Take note of measured points; they change nothing.

        Parameters
        ----------
        points : sequence of Mapping
            One for each measured point.

        Raises
        ------
        SearchSpaceError
            If a position is absent or not finite.
        """
        self._observations.take(points)

    def suggest(self, num_points: int | None = None) -> list[Mapping[str, Any]]:
        """Give the next points: mappings with ``_id``, ``y``, ``x`` (metres); empty means stop.

        Parameters
        ----------
        num_points : int, optional
            Most points; one if absent.
        """
        return self._decide(1 if num_points is None else num_points)[1]

    def propose(self, n: int) -> Proposal:
        """Give the next `n` positions; empty means stop.

        Parameters
        ----------
        n : int
            Most positions.
        """
        return self._decide(n)[0]

    def get_best_points(self) -> list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """Give the ten measured points of the largest novelty: (id, parameters, outcomes)."""
        return self._observations.best()

    def coverage_path(self) -> FloatArray:
        """Give the pattern's positions in an order that covers the window evenly, shape (n, 2), metres."""
        return coverage_order(self._order_m, seed=0)

    def should_stop(self) -> tuple[bool, str | None]:
        """Tell whether to stop, and why."""
        reason = self._rule.reason(self._n_issued, len(self._order_m) - self._n_issued)
        return reason is not None, reason

    def register_suggestions(self, suggestions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Give positions (``y``, ``x`` in metres) that someone else chose an ``_id``; the pattern stays as it is.

        Parameters
        ----------
        suggestions : sequence of Mapping
            Positions by axis, metres.
        """
        positions = positions_of(suggestions)
        return as_suggestions(self._observations.issue(positions), positions)

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        """Learn that points, known by their ``_id``, were not measured; they are not given again.

        Parameters
        ----------
        suggestions : sequence of Mapping
            As `suggest` gave them.
        """
        self._observations.withdraw(point["_id"] for point in suggestions)

    def _decide(self, n: int) -> tuple[Proposal, list[Mapping[str, Any]]]:
        started, pending = time.perf_counter(), len(self._observations.pending_ids)
        stop, reason = self.should_stop()
        last = self._n_issued if stop else min(self._n_issued + n, self._rule.budget)
        chosen = self._order_m[self._n_issued : last]
        self._n_issued += len(chosen)
        ids = self._observations.issue(chosen)
        proposal = Proposal(
            positions_m=chosen,
            expected_gain=np.zeros(len(chosen)),
            acquisition=self.name,
            reason=reason or self.name,
            pending=pending,
            n_ingested=len(self._observations),
            decision_s=time.perf_counter() - started,
        )
        return proposal, as_suggestions(ids, chosen)


def _snapped(space: SearchSpace, order_m: FloatArray) -> FloatArray:
    index = space.nearest(order_m)
    _, first = np.unique(index, return_index=True)
    return space.candidates_m[index[np.sort(first)]]
