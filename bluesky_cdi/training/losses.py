"""What training makes small: errors of an object, and how badly it explains frames."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.likelihood import poisson_deviance

# A hundredth of a photon of background keeps the gradient finite where the model is dark.
DARK_PHOTONS = 1e-2


def gauge_fixed(obj: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Scale each scene by the complex number that brings it nearest to the truth.

    Parameters
    ----------
    obj, truth : Tensor, shape (B, Y, X), complex
        The objects.
    weight : Tensor, shape (B, Y, X)
        How much each pixel counts.
    """
    over = (weight * obj.conj() * truth).sum(dim=(-2, -1), keepdim=True)
    return obj * over / ((weight * obj.abs().square()).sum(dim=(-2, -1), keepdim=True) + 1e-9)


def relative_error(obj: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Compute the squared error over the truth's variance (with a floor for blank scenes).

    Parameters
    ----------
    obj, truth : Tensor, shape (B, Y, X), complex
        The objects.
    weight : Tensor, shape (B, Y, X)
        How much each pixel counts.

    Returns
    -------
    Tensor, shape (B,)
    """
    total = weight.sum(dim=(-2, -1)) + 1e-9
    mean = (weight * truth).sum(dim=(-2, -1), keepdim=True) / total[:, None, None]
    variance = (weight * (truth - mean).abs().square()).sum(dim=(-2, -1)) / total
    error = (gauge_fixed(obj, truth, weight) - truth).abs().square()
    return (weight * error).sum(dim=(-2, -1)) / total / (variance + 0.02)


def worsening(error: Tensor, before: Tensor) -> Tensor:
    """Compute how much larger errors are than before, as the logarithm of their ratio; 0 where they are not.

    Parameters
    ----------
    error, before : Tensor, shape (B,)
        Positive errors.
    """
    return (error / before).log().clamp_min(0)


def relative_deviance(obj: Tensor, probe: Tensor, data: Diffraction) -> Tensor:
    """Compute the Poisson deviance of each frame over its photons.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex
        The objects.
    probe : Tensor, shape (B, M, N, N), complex
        Their probes.
    data : Diffraction
        The frames.

    Returns
    -------
    Tensor, shape (n,)
    """
    rate = data.rate(data.probes(probe), data.patches(obj)) + DARK_PHOTONS
    valid = torch.ones_like(rate) if data.valid is None else data.valid
    deviance = (poisson_deviance(rate, data.counts) * valid).sum(dim=(-2, -1))
    return deviance / ((data.counts * valid).sum(dim=(-2, -1)) + 1)


def gaussian_nll(obj: Tensor, truth: Tensor, log_std: Tensor, weight: Tensor, mean: Tensor | None = None) -> Tensor:
    """Compute the mean negative log likelihood of amplitude and phase errors under the predicted deviations.

    Parameters
    ----------
    obj, truth : Tensor, shape (B, Y, X), complex
        The objects.
    log_std : Tensor, shape (B, 2, Y, X)
        Natural logarithm of the predicted deviations of amplitude and phase (radians).
    weight : Tensor, shape (B, Y, X)
        How much each pixel counts.
    mean : Tensor, shape (B, 2, Y, X), optional
        The predicted errors; 0 if absent.
    """
    error = errors(obj, truth, weight)
    if mean is not None:
        phase = error[:, 1] - mean[:, 1]
        error = torch.stack([error[:, 0] - mean[:, 0], torch.atan2(phase.sin(), phase.cos())], dim=1)
    nll = log_std + 0.5 * error.square() * torch.exp(-2 * log_std)
    return (weight[:, None] * nll).sum() / (2 * weight.sum() + 1e-9)


def errors(obj: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Compute the errors of amplitude and phase (radians, wrapped) in the truth's gauge, (B, 2, Y, X).

    Parameters
    ----------
    obj, truth : Tensor, shape (B, Y, X), complex
        The objects.
    weight : Tensor, shape (B, Y, X)
        How much each pixel counts for the gauge.
    """
    fixed = gauge_fixed(obj, truth, weight)
    return torch.stack([fixed.abs() - truth.abs(), torch.angle(fixed * truth.conj())], dim=1)
