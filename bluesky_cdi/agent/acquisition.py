"""What a batch of frames would teach and cover, and the greedy choice of a batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from bluesky_cdi.agent.patterns import IndexArray, MaskArray
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.surrogate import CandidatePosterior
from bluesky_cdi.protocols import FloatArray

# Candidates at which the drop of variance is summed up; more of them change choices little.
REPRESENTATIVES_MAX = 512


class VarianceReduction:
    """Drop of the weighted mean posterior variance that a frame at each candidate would bring.

    ``gain_i = sum_g w_g P_gi**2 / (P_ii + noise)``, as a share of the prior variance (integrated
    variance reduction; Cohn et al., J. Artif. Intell. Res. 4, 129 (1996)). `condition` makes points
    known exactly, whatever their outcome: a rank-one downdate kept apart from `P`.

    Parameters
    ----------
    posterior : CandidatePosterior
        What is known of the candidates.
    weights : ndarray, shape (m,)
        What knowing each candidate is worth.
    pending : ndarray, shape (p,), int64
        Candidates already on their way.
    room : int
        Points that will be conditioned on later.
    rng : Generator
        Draws representatives by weight where there are more than 512 candidates.
    """

    def __init__(
        self,
        posterior: CandidatePosterior,
        weights: FloatArray,
        pending: IndexArray,
        room: int,
        rng: np.random.Generator,
    ) -> None:
        self._covariance, self._hyper = posterior.covariance, posterior.hyper
        self._variance = posterior.variance.clone()
        self._directions = torch.zeros((len(pending) + room, len(weights)), dtype=torch.float32)
        self._known = 0
        for candidate in pending.tolist():
            self._downdate(candidate)
        index, value = _representatives(weights, rng)
        self._index = torch.as_tensor(index)
        self._value = torch.as_tensor(value, dtype=torch.float32)
        known = self._directions[: self._known]
        self._rows = self._covariance[self._index] - known[:, self._index].T @ known  # s x m

    def gain(self) -> FloatArray:
        """Share of the weighted prior variance that a frame at each candidate would remove, shape (m,)."""
        removed = self._value @ (self._rows * self._rows)
        gain = removed / (self._variance + self._hyper.noise) / self._hyper.outputscale
        return np.asarray(gain.numpy(), dtype=np.float64)

    def condition(self, candidate: int) -> None:
        """Take a frame at one candidate as measured.

        Parameters
        ----------
        candidate : int
            Its index.
        """
        u = self._downdate(candidate)
        self._rows.addr_(u[self._index], u, alpha=-1.0)

    def _downdate(self, candidate: int) -> torch.Tensor:
        known = self._directions[: self._known]
        column = self._covariance[candidate] - known[:, candidate] @ known
        u: torch.Tensor = column / float(self._variance[candidate] + self._hyper.noise) ** 0.5
        self._variance = (self._variance - u * u).clamp_min(1e-9)
        self._directions[self._known] = u
        self._known += 1
        return u


class Coverage:
    """How much of the field frames have illuminated, saturating.

    A frame lights the field with a Gaussian of the probe's width, ``phi``; what is left dark at g
    is ``exp(-sum_i phi_i(g))``, so a second frame at one place brings less than a first elsewhere.

    Parameters
    ----------
    space : SearchSpace
        Candidates, which also sample the field.
    width_m : float
        Full width at half maximum of ``abs(probe)**2``, metres.
    """

    def __init__(self, space: SearchSpace, width_m: float) -> None:
        self._candidates_m = space.candidates_m
        self._sigma_m = width_m / np.sqrt(8.0 * np.log(2.0))
        self._taken = self._taken_by_candidates(space)
        self.dark: FloatArray = np.ones(len(space))
        """Share left dark at each candidate, shape (m,)."""

    def copy(self) -> Coverage:
        """Copy it; the illumination of either can go on by itself."""
        twin = copy.copy(self)
        twin.dark = self.dark.copy()
        return twin

    def gain(self) -> FloatArray:
        """Share of the field that a frame at each candidate would light, shape (m,)."""
        return np.asarray(self._taken @ self.dark / len(self.dark))

    def add(self, candidate: int) -> None:
        """Light the field with a frame at one candidate.

        Parameters
        ----------
        candidate : int
            Its index.
        """
        first, last = self._taken.indptr[candidate : candidate + 2]
        self.dark[self._taken.indices[first:last]] *= 1.0 - self._taken.data[first:last]

    def add_positions(self, positions_m: FloatArray) -> None:
        """Light the field with frames anywhere, positions of shape (n, 2), metres.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            (y, x), metres.
        """
        for position in positions_m:
            square = ((self._candidates_m - position) ** 2).sum(axis=1)
            self.dark *= 1.0 - self._share(square)

    def _share(self, square_m2: FloatArray) -> FloatArray:
        return np.asarray(1.0 - np.exp(-np.exp(-square_m2 / (2.0 * self._sigma_m**2))))

    def _taken_by_candidates(self, space: SearchSpace) -> sparse.csr_array:
        pairs = space.tree.query_pairs(3.0 * self._sigma_m, output_type="ndarray")
        m = len(space)
        i = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(m)])
        j = np.concatenate([pairs[:, 1], pairs[:, 0], np.arange(m)])
        square = ((self._candidates_m[i] - self._candidates_m[j]) ** 2).sum(axis=1)
        return sparse.csr_array((self._share(square), (i, j)), shape=(m, m))


@dataclass(frozen=True, eq=False)
class Batch:
    """Chosen candidates in the order of choice, with both gains of each when it was chosen.

    Attributes
    ----------
    index : ndarray, shape (q,), int64
        Candidates in the order of choice.
    learned, covered : ndarray, shape (q,)
        Shares of the weighted prior variance removed and of the field lit.
    best_learned, best_covered : float
        The largest gains of any open candidate when the batch began.
    """

    index: IndexArray
    learned: FloatArray
    covered: FloatArray
    best_learned: float
    best_covered: float


def choose_batch(
    learning: VarianceReduction, coverage: Coverage, allowed: MaskArray, q: int, alpha: float, n_coverage: int
) -> Batch:
    """Choose candidates one by one, each the best given all before it.

    The value of a candidate is ``alpha * learned / best_learned + (1 - alpha) * covered / best_covered``;
    the last `n_coverage` of the batch are chosen by `covered` alone.

    Parameters
    ----------
    learning : VarianceReduction
        With pending points known; changed by the choice.
    coverage : Coverage
        With pending points lit; changed by the choice.
    allowed : ndarray, shape (m,), bool
        Candidates that may be chosen.
    q : int
        Candidates to choose; fewer where fewer are allowed.
    alpha : float
        Weight of learning, 0 to 1.
    n_coverage : int
        How many of the q are pure coverage.

    Returns
    -------
    Batch
    """
    is_open = allowed.copy()
    picks: list[tuple[int, float, float]] = []
    q = min(q, int(is_open.sum()))
    best_learned = best_covered = 0.0
    for k in range(q):
        learned, covered = learning.gain(), coverage.gain()
        if k == 0:
            best_learned, best_covered = _largest(learned, is_open), _largest(covered, is_open)
        value = alpha * learned / best_learned + (1.0 - alpha) * covered / best_covered
        best = int(np.argmax(np.where(is_open, covered if k >= q - n_coverage else value, -1.0)))
        picks.append((best, float(learned[best]), float(covered[best])))
        is_open[best] = False
        learning.condition(best)
        coverage.add(best)
    columns = np.array(picks, dtype=np.float64).reshape(-1, 3)
    return Batch(columns[:, 0].astype(np.int64), columns[:, 1], columns[:, 2], best_learned, best_covered)


def _largest(gain: FloatArray, is_open: MaskArray) -> float:
    return max(float(gain[is_open].max()), 1e-12)


def _representatives(weights: FloatArray, rng: np.random.Generator) -> tuple[IndexArray, FloatArray]:
    """Candidates and weights, summing to one, whose weighted sums stand for those over all candidates."""
    share = weights / weights.sum()
    if len(share) <= REPRESENTATIVES_MAX:
        return np.arange(len(share)), share
    # Systematic sampling: one draw, expected counts in proportion to the weights, little variance.
    marks = (np.arange(REPRESENTATIVES_MAX) + rng.random()) / REPRESENTATIVES_MAX
    index, counts = np.unique(np.searchsorted(np.cumsum(share), marks).clip(max=len(share) - 1), return_counts=True)
    return index, counts / REPRESENTATIVES_MAX
