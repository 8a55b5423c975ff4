"""The solution that iterative ptychography engines improve, their protocol, and the loop that runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from bluesky_cdi.engines.flux import with_outliers_flux
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.physics.likelihood import expected_deviance, mean_over_valid, poisson_deviance

logger = logging.getLogger(__name__)

# An engine has diverged when its deviance is this many times the lowest that it reached.
DIVERGED = 10.0


@dataclass(frozen=True, eq=False)
class Solution:
    """Object and probe that explain frames, and how well.

    Attributes
    ----------
    object : Tensor, shape (B, Y, X), complex
        Transmission functions of B objects; vacuum is 1.
    probe : Tensor, shape (B, M, N, N), complex
        Their probes, square root of photons.
    data : Diffraction
        The frames, with positions and fluxes as refined so far.
    deviance : Tensor, shape (n,)
        Poisson deviance per valid pixel of each frame; NaN where not known yet.
    epochs : int
        Epochs made so far.
    """

    object: Tensor
    probe: Tensor
    data: Diffraction
    deviance: Tensor
    epochs: int = 0

    @classmethod
    def start(cls, obj: Tensor, probe: Tensor, data: Diffraction, epochs: int = 0) -> Solution:
        """Begin with a first guess, whose deviance is not known yet.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex
            The object.
        probe : Tensor, shape (B, M, N, N), complex
            Its modes.
        data : Diffraction
            The frames and where they lie.
        epochs : int
            Epochs made before.

        Returns
        -------
        Solution
        """
        return cls(obj, probe, data, torch.full((len(data),), float("nan"), device=obj.device), epochs)

    @property
    def mean_deviance(self) -> float:
        """Mean deviance of the frames."""
        return float(self.deviance.mean())

    def judged(self) -> Solution:
        """Return the same solution with the deviance of its frames."""
        return replace(self, deviance=deviance_of(self.object, self.probe, self.data))

    @property
    def finite(self) -> bool:
        """Whether object and probe are finite everywhere."""
        return bool(torch.isfinite(self.object).all() and torch.isfinite(self.probe).all())


@dataclass(frozen=True)
class Refine:
    """What an epoch may change besides the object.

    Parameters
    ----------
    probe, positions, flux : bool
        The probe, the frames' positions, the frames' fluxes.
    """

    probe: bool = True
    positions: bool = False
    flux: bool = False


class Engine(Protocol):
    """An iterative algorithm. It may keep a state from epoch to epoch of one solution.

    Attributes
    ----------
    name : str
        That of the algorithm, as in `reconstructor.name`.
    warm_up : int
        Number of first epochs whose deviance shows nothing yet about convergence.
    """

    name: str
    warm_up: int

    def epoch(self, solution: Solution, refine: Refine) -> Solution:
        """Use every frame once.

        The deviance that comes back may be that which was met on the way, before the frames' last updates.

        Parameters
        ----------
        solution : Solution
            The one to improve; its state of the frames is taken over.
        refine : Refine
            What may change besides the object.

        Returns
        -------
        Solution
        """

    def finish(self, solution: Solution, refine: Refine) -> Solution:
        """Turn the solution of the last epoch into the result.

        Modes may come out rotated: what the engine remembers of the exit waves before is forgotten, and a further
        epoch begins anew from the result.

        Parameters
        ----------
        solution : Solution
            That of the last epoch.
        refine : Refine
            What that epoch refined.

        Returns
        -------
        Solution
        """


@dataclass(frozen=True)
class Schedule:
    """How long an engine runs, and when it refines what.

    Parameters
    ----------
    epochs : int
        Most epochs.
    probe_from, positions_from, flux_from : int
        First epoch (from 0) that refines the probe, the positions, each frame's flux; negative: never.
    outliers_from : int
        First epoch after which frames whose light stands out get a flux of their own; negative: never. It is looked
        at again 1, 2, 4, 8, ... epochs later.
    tolerance, patience : float, int
        Stop when the lowest mean deviance of the last `patience` epochs is not below that of the
        epochs before by this share. 0: never stop early. Epochs count once the engine is warm and all
        that will be refined is being refined.
    """

    epochs: int
    probe_from: int = 0
    positions_from: int = -1
    flux_from: int = -1
    outliers_from: int = -1
    tolerance: float = 0.0
    patience: int = 5

    def refine(self, epoch: int) -> Refine:
        """Return what epoch number `epoch`, from 0, refines.

        Parameters
        ----------
        epoch : int
            Passes over all frames so far.
        """
        probe, positions, flux = (
            0 <= first <= epoch for first in (self.probe_from, self.positions_from, self.flux_from)
        )
        return Refine(probe, positions, flux)

    def looks_for_outliers(self, epoch: int) -> bool:
        """Tell whether the light of single frames is looked at after epoch number `epoch`, from 0.

        Parameters
        ----------
        epoch : int
            Passes over all frames so far.
        """
        since = epoch - self.outliers_from
        return self.outliers_from >= 0 and since >= 0 and not since & (since - 1)

    @property
    def complete_from(self) -> int:
        """First epoch in which all is refined that will be."""
        return max(0, self.probe_from, self.positions_from, self.flux_from, self.outliers_from)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of an engine's run.

    Attributes
    ----------
    solution : Solution
        The last one; where the engine diverged, that with the lowest deviance.
    history : tuple of float
        Mean deviance of each epoch.
    ended : {'epochs', 'converged', 'diverged'}
        All epochs were made, the stopping criterion was met, or the deviance grew without bound.
    """

    solution: Solution
    history: tuple[float, ...]
    ended: Literal["epochs", "converged", "diverged"]


def iterate(
    engine: Engine, start: Solution, schedule: Schedule, should_continue: Callable[[int, Solution], bool] | None = None
) -> Outcome:
    """Run an engine.

    Parameters
    ----------
    engine : Engine
        Makes the epochs.
    start : Solution
        The first guess.
    schedule : Schedule
        How many epochs there are, and what each refines.
    should_continue : callable, optional
        Asked after each epoch, with the epochs made and the solution, whether there shall be another.

    Returns
    -------
    Outcome
    """
    best = solution = start
    refined = schedule.refine(0)
    history: list[float] = []
    ended: Literal["epochs", "converged"] = "epochs"
    for epoch in range(schedule.epochs):
        refined = schedule.refine(epoch)
        solution = engine.epoch(solution, refined)
        history.append(solution.mean_deviance)
        lowest = min(history)
        # Written so that NaN counts as diverged.
        if not (solution.finite and history[-1] <= DIVERGED * lowest):
            logger.warning(
                "%s diverged in epoch %d: deviance %.3g a pixel, lowest %.3g; the epoch with the lowest is kept",
                engine.name,
                epoch + 1,
                history[-1],
                lowest,
            )
            return Outcome(best, tuple(history), "diverged")
        if history[-1] <= lowest:
            best = solution
        if schedule.looks_for_outliers(epoch):
            solution = replace(solution, data=with_outliers_flux(solution.object, solution.probe, solution.data))
        if should_continue is not None and should_continue(epoch + 1, solution) is False:
            break
        if _stagnates(history[max(schedule.complete_from, engine.warm_up) :], schedule):
            ended = "converged"
            break
    if history:
        solution = engine.finish(solution, refined)
    return Outcome(solution, tuple(history), ended)


def deviance_of(obj: Tensor, probe: Tensor, data: Diffraction) -> Tensor:
    """Compute the Poisson deviance per valid pixel of each frame.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex
        The object.
    probe : Tensor, shape (B, M, N, N), complex
        Its modes.
    data : Diffraction
        The frames and where they lie.

    Returns
    -------
    Tensor, shape (n,)
    """
    parts = []
    for part in data.chunks(frames_at_once(probe)):
        rate = part.rate(part.probes(probe), part.patches(obj))
        parts.append(mean_over_valid(poisson_deviance(rate, part.counts), part.valid))
    return torch.cat(parts)


def noise_of(obj: Tensor, probe: Tensor, data: Diffraction) -> Tensor:
    """Compute the deviance per valid pixel that photon noise alone would give each frame, were the object the true one.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex
        The object.
    probe : Tensor, shape (B, M, N, N), complex
        Its modes.
    data : Diffraction
        Frames; their counts don't count.

    Returns
    -------
    Tensor, shape (n,)
    """
    parts = []
    for part in data.chunks(frames_at_once(probe)):
        rate = part.rate(part.probes(probe), part.patches(obj))
        parts.append(mean_over_valid(expected_deviance(rate), part.valid))
    return torch.cat(parts)


def _stagnates(history: list[float], schedule: Schedule) -> bool:
    if not schedule.tolerance or len(history) <= schedule.patience:
        return False
    before, lately = min(history[: -schedule.patience]), min(history[-schedule.patience :])
    return lately > (1 - schedule.tolerance) * before
