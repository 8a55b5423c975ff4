"""What training makes small: errors of an object, and how badly it explains frames."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.likelihood import poisson_deviance

# Light under this share of the probe's peak teaches noise: such pixels are left out of losses and metrics.
LIT = 0.02
# A hundredth of a photon of background keeps the gradient finite where the model is dark.
DARK_PHOTONS = 1e-2


def illumination(probe: Tensor, data: Diffraction) -> Tensor:
    """Summed illumination of each scene, photons per pixel, (B, M, N, N) to (B, Y, X)."""
    return accumulate(intensity(data.probes(probe)), data.corner, data.canvas_shape, data.scene)


def gauge_fixed(canvas: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Scale each scene by the complex number that brings it nearest to the truth."""
    over = (weight * canvas.conj() * truth).sum(dim=(-2, -1), keepdim=True)
    return canvas * over / ((weight * canvas.abs().square()).sum(dim=(-2, -1), keepdim=True) + 1e-9)


def relative_error(canvas: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Squared error over the truth's variance (with a floor for blank scenes), shape (B,)."""
    total = weight.sum(dim=(-2, -1)) + 1e-9
    mean = (weight * truth).sum(dim=(-2, -1), keepdim=True) / total[:, None, None]
    variance = (weight * (truth - mean).abs().square()).sum(dim=(-2, -1)) / total
    error = (gauge_fixed(canvas, truth, weight) - truth).abs().square()
    return (weight * error).sum(dim=(-2, -1)) / total / (variance + 0.02)


def relative_deviance(canvas: Tensor, probe: Tensor, data: Diffraction) -> Tensor:
    """Poisson deviance of each frame over its photons, shape (n,)."""
    rate = data.rate(data.probes(probe), data.patches(canvas)) + DARK_PHOTONS
    valid = torch.ones_like(rate) if data.valid is None else data.valid
    deviance = (poisson_deviance(rate, data.counts) * valid).sum(dim=(-2, -1))
    return deviance / ((data.counts * valid).sum(dim=(-2, -1)) + 1)


def gaussian_nll(canvas: Tensor, truth: Tensor, log_std: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log likelihood of amplitude and phase errors under the predicted deviations."""
    fixed = gauge_fixed(canvas, truth, weight)
    amplitude = fixed.abs() - truth.abs()
    phase = torch.angle(fixed * truth.conj())
    nll = log_std + 0.5 * torch.stack([amplitude, phase], dim=1).square() * torch.exp(-2 * log_std)
    return (weight[:, None] * nll).sum() / (2 * weight.sum() + 1e-9)
