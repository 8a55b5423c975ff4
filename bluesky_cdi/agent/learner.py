"""What the agent has learned: targets from the outcomes, and a surrogate that is fitted again when that is due."""

from __future__ import annotations

import logging

import numpy as np

from bluesky_cdi.agent.observations import Observations
from bluesky_cdi.agent.outcomes import Targets, make_targets
from bluesky_cdi.agent.surrogate import CandidatePosterior, Hyperparameters, fit_hyperparameters
from bluesky_cdi.protocols import FloatArray

logger = logging.getLogger(__name__)

REFIT_AT = (64, 128, 256)
REFIT_GROWTH = 1.5
RESIDUAL_BOUNDS = (0.5, 2.0)
RESIDUAL_FRAMES = 64
REFIT_FRAMES_MIN = 32


class Learner:
    """Keeps a Gaussian process over the candidates up to date with what the frames brought.

    Parameters
    ----------
    candidates_m : ndarray, shape (m, 2)
        (y, x), metres.
    width_m : float
        Full width at half maximum of the illumination, metres: the kernel's unit of length.
    rng : Generator
        Draws the frames that a fit rests on.
    refit : bool
        Fit the kernel to the outcomes; otherwise it stays as it is.
    hyperparameters : Hyperparameters
        Kernel before the first fit.

    Attributes
    ----------
    hyperparameters : Hyperparameters
        The kernel as it is.
    """

    def __init__(
        self,
        candidates_m: FloatArray,
        width_m: float,
        rng: np.random.Generator,
        *,
        refit: bool,
        hyperparameters: Hyperparameters,
    ) -> None:
        self.hyperparameters = hyperparameters
        self._candidates_m, self._width_m, self._rng, self._refit = candidates_m, width_m, rng, refit
        self._posterior: CandidatePosterior | None = None
        self._fitted_at = 0
        self._warned = False

    def forget(self) -> None:
        """Forget the frames; the kernel stays."""
        self._posterior = None

    def targets(self, observations: Observations) -> Targets:
        """Make the surrogate's targets from all outcomes; tell once that some are not finite."""
        targets = make_targets(
            observations.outcome("uncertainty"), observations.outcome("structure"), observations.embedding
        )
        n_bad = int((~targets.valid).sum())
        if n_bad and not self._warned:
            self._warned = True
            logger.warning("%d frame(s) have outcomes that are not finite; only their positions count", n_bad)
        return targets

    def posterior(self, positions_m: FloatArray, targets: Targets) -> CandidatePosterior:
        """Bring the posterior up to date, with the kernel fitted again where that is due.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            Of all measured frames, metres.
        targets : Targets
            Of the same frames.
        """
        posterior = self._updated(positions_m, targets)
        if not self._refit_due(posterior, targets):
            return posterior
        scaled = positions_m[targets.valid] / self._width_m
        self.hyperparameters = fit_hyperparameters(
            scaled, targets.values[targets.valid], self.hyperparameters, self._rng
        )
        self._fitted_at, self._posterior = int(targets.valid.sum()), None
        logger.info("surrogate fitted to %d frames: %s", self._fitted_at, self.hyperparameters)
        return self._updated(positions_m, targets)

    def _updated(self, positions_m: FloatArray, targets: Targets) -> CandidatePosterior:
        if self._posterior is None:
            self._posterior = CandidatePosterior(self._candidates_m / self._width_m, self.hyperparameters)
        new = positions_m[len(self._posterior) :]
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


def _next_refit(fitted_at: int) -> float:
    """Find the number of frames at which the kernel is fitted again."""
    return next((n for n in REFIT_AT if n > fitted_at), fitted_at * REFIT_GROWTH)
