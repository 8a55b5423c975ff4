"""Gaussian process over position, its exact posterior kept on the candidates.

All outputs share one kernel, so the posterior covariance `P` of the candidates depends on where
was measured and not on what. Outcomes change with every estimate, positions do not: the inverse
Cholesky factor of the measured positions is extended by each batch, and the means follow from the
newest outcomes by two matrix products. Lengths are in probe widths.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim.closures import get_loss_closure_with_grads
from botorch.optim.utils import get_parameters
from botorch.settings import validate_input_scaling
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior

from bluesky_cdi.agent.patterns import MaskArray
from bluesky_cdi.protocols import FloatArray

logger = logging.getLogger(__name__)

# A frame averages over its footprint, so nothing that it reports varies much faster than half a
# probe width; longer scales than 4 would make whole windows look known after a few frames.
LENGTHSCALE_BOUNDS = (0.5, 4.0)
NOISE_MIN = 1e-3
FIT_POINTS_MAX = 300
# Points added at a time: blocks of this size spare most of the products with the factor's zeros.
BLOCK = 256


@dataclass(frozen=True)
class Hyperparameters:
    """Of the kernel that all outputs share; outcomes have unit variance.

    Attributes
    ----------
    lengthscale : tuple of float
        Along (y, x), probe widths.
    outputscale : float
        Prior variance.
    noise : float
        Variance of an outcome's noise.
    """

    lengthscale: tuple[float, float] = (1.0, 1.0)
    outputscale: float = 1.0
    noise: float = 0.05


class CandidatePosterior:
    """Exact posterior of the outcomes at every candidate.

    Parameters
    ----------
    candidates : ndarray, shape (m, 2)
        (y, x), probe widths.
    hyper : Hyperparameters
        Of the kernel.

    Attributes
    ----------
    covariance : Tensor, shape (m, m), float32
        Posterior covariance of the noise-free outcomes, the same for all outputs.
    """

    def __init__(self, candidates: FloatArray, hyper: Hyperparameters) -> None:
        self.hyper = hyper
        self._candidates = torch.as_tensor(np.array(candidates, dtype=np.float64))
        m = len(candidates)
        self.covariance = matern52(self._candidates.float(), self._candidates.float(), hyper)
        self._positions = torch.empty((0, 2), dtype=torch.float64)
        # Rows of the inverse Cholesky factor, float64 because the noise may be as small as 1e-3, and
        # of its product with the kernel between measured positions and candidates.
        self._inverse = torch.empty((0, 0), dtype=torch.float64)
        self._cross = torch.empty((0, m), dtype=torch.float32)
        self._whitened = torch.empty((0, 1), dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def variance(self) -> torch.Tensor:
        """Posterior variance at the candidates, shape (m,), float32."""
        return self.covariance.diagonal().clamp_min(1e-9)

    @property
    def mean(self) -> torch.Tensor:
        """Posterior mean at the candidates for the outcomes last set, shape (m, k), float32."""
        n = len(self._whitened)
        return (self._whitened.float().T @ self._cross[:n]).T  # row by row through the large factor

    @property
    def standardised_residuals(self) -> FloatArray:
        """Each outcome minus its prediction from the earlier ones, over its standard deviation, shape (n, k)."""
        return np.asarray(self._whitened.numpy())

    def extend(self, positions: FloatArray) -> None:
        """Add measured positions; their outcomes come with `set_outcomes`.

        Parameters
        ----------
        positions : ndarray, shape (q, 2)
            (y, x), probe widths; anywhere, also between candidates.
        """
        new = torch.as_tensor(np.array(positions, dtype=np.float64))
        for first in range(0, len(new), BLOCK):
            self._extend_block(new[first : first + BLOCK])

    def set_outcomes(self, outcomes: FloatArray, valid: MaskArray) -> None:
        """Take the newest outcomes of all measured positions.

        Parameters
        ----------
        outcomes : ndarray, shape (n, k)
            Standardised, in the order in which positions were added.
        valid : ndarray, shape (n,), bool
            False leaves an outcome out of the mean.
        """
        n = len(self)
        inverse = self._inverse[:n, :n]
        values = torch.as_tensor(np.where(valid[:, None], outcomes, 0.0), dtype=torch.float64)
        whitened = inverse @ values
        if not valid.any():
            whitened = torch.zeros_like(whitened)
        elif not valid.all():
            # Giving an unknown outcome its expectation under the known ones leaves it out exactly;
            # in whitened coordinates that is a projection.
            unknown = inverse[:, torch.as_tensor(~valid)]
            whitened = whitened - unknown @ torch.linalg.lstsq(unknown, whitened).solution
        self._whitened = whitened

    def _extend_block(self, new: torch.Tensor) -> None:
        n, q = len(self), len(new)
        inverse, cross = self._inverse[:n, :n], self._cross[:n]
        old_block = matern52(new, self._positions, self.hyper) @ inverse.T  # q x n
        schur = matern52(new, new, self.hyper) - old_block @ old_block.T
        schur.diagonal().add_(self.hyper.noise)
        lower = torch.linalg.cholesky(schur)
        corner = torch.linalg.solve_triangular(lower, torch.eye(q, dtype=torch.float64), upper=False)
        below = matern52(new, self._candidates, self.hyper).float() - old_block.float() @ cross
        new_cross = corner.float() @ below  # q x m
        self._reserve(n + q)
        self._inverse[n : n + q, :n] = -corner @ (old_block @ inverse)
        self._inverse[n : n + q, n : n + q] = corner
        self._cross[n : n + q] = new_cross
        self._positions = torch.cat([self._positions, new])
        self.covariance.addmm_(new_cross.T, new_cross, alpha=-1.0)

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._inverse):
            return
        n, capacity = len(self), max(rows, 2 * len(self._inverse), 128)
        inverse = torch.zeros((capacity, capacity), dtype=torch.float64)
        inverse[:n, :n] = self._inverse[:n, :n]
        cross = torch.empty((capacity, self._cross.shape[1]), dtype=torch.float32)
        cross[:n] = self._cross[:n]
        self._inverse, self._cross = inverse, cross


def matern52(a: torch.Tensor, b: torch.Tensor, hyper: Hyperparameters) -> torch.Tensor:
    """Compute the Matern kernel of order 5/2 with one length scale an axis.

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eq. 4.17.

    Parameters
    ----------
    a, b : Tensor, shape (n, 2), (m, 2)
        (y, x), probe widths.
    hyper : Hyperparameters
        Length scales and output scale.

    Returns
    -------
    Tensor, shape (n, m)
    """
    scale = torch.tensor(hyper.lengthscale, dtype=a.dtype)
    # The expansion into a matrix product loses the distances of close neighbours in float32.
    d = torch.cdist(a / scale, b / scale, compute_mode="donot_use_mm_for_euclid_dist").mul_(math.sqrt(5.0))
    # Beyond 27 the kernel is under 1e-9; zero there spares arithmetic on subnormal numbers.
    far = d > 27.0
    return (d * d / 3.0).add_(d).add_(1.0).mul_(d.neg_().exp_()).mul_(hyper.outputscale).masked_fill_(far, 0.0)


def fit_hyperparameters(
    positions: FloatArray, outcomes: FloatArray, start: Hyperparameters, rng: np.random.Generator
) -> Hyperparameters:
    """Fit the shared kernel by maximum a posteriori with BoTorch.

    Parameters
    ----------
    positions : ndarray, shape (n, 2)
        (y, x), probe widths.
    outcomes : ndarray, shape (n, k)
        Standardised, finite.
    start : Hyperparameters
        Where the optimiser begins; returned unchanged if no fit succeeds.
    rng : Generator
        Draws 300 of the points where there are more.

    Returns
    -------
    Hyperparameters
    """
    some = rng.permutation(len(positions))[:FIT_POINTS_MAX]
    # BoTorch wants inputs in a unit cube; here the probe's width is the natural unit and carries the priors.
    with validate_input_scaling(False):
        model = _botorch_model(positions[some], outcomes[some], start)
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    # The explicit closure sums over outputs; BoTorch's own choice would fit each output by itself.
    closure = get_loss_closure_with_grads(mll, parameters=get_parameters(mll, requires_grad=True))
    try:
        fit_gpytorch_mll(mll, closure=closure, optimizer_kwargs={"options": {"maxiter": 25}}, max_attempts=1)
    except ModelFittingError:
        logger.warning("no fit of the surrogate's hyperparameters to %d frames; keeping %s", len(some), start)
        return start
    scale_y, scale_x = model.covar_module.base_kernel.lengthscale.detach().flatten().tolist()
    return Hyperparameters((scale_y, scale_x), model.covar_module.outputscale.item(), model.likelihood.noise.item())


def _botorch_model(positions: FloatArray, outcomes: FloatArray, start: Hyperparameters) -> SingleTaskGP:
    matern = MaternKernel(
        nu=2.5,
        ard_num_dims=2,
        lengthscale_prior=LogNormalPrior(0.0, 0.75),  # about one probe width
        lengthscale_constraint=Interval(*LENGTHSCALE_BOUNDS),
    )
    kernel = ScaleKernel(matern, outputscale_prior=GammaPrior(2.0, 2.0))  # outcomes have unit variance
    likelihood = GaussianLikelihood(noise_prior=LogNormalPrior(-3.0, 1.0), noise_constraint=GreaterThan(NOISE_MIN))
    x = torch.as_tensor(np.array(positions, dtype=np.float64))
    y = torch.as_tensor(np.array(outcomes, dtype=np.float64))
    model = SingleTaskGP(
        x, y, likelihood=likelihood, covar_module=kernel, mean_module=ZeroMean(), outcome_transform=None
    )
    low, high = LENGTHSCALE_BOUNDS
    matern.lengthscale = torch.tensor(start.lengthscale, dtype=torch.float64).clamp(low * 1.01, high * 0.99)
    kernel.outputscale = start.outputscale
    likelihood.noise = max(start.noise, 2 * NOISE_MIN)
    return model
