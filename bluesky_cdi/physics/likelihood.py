"""Misfit of an expected rate and measured counts."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import RATE_FLOOR


def poisson_deviance(rate: Tensor, counts: Tensor) -> Tensor:
    """Compute the Poisson deviance of each pixel, ``2 (k log(k / r) - k + r)``.

    Zero where the rate equals the counts; its mean is near 1 for bright pixels of a true model
    and smaller than 1 where less than about one photon is expected (McCullagh and Nelder,
    Generalized Linear Models, 1989, section 2.3).

    Parameters
    ----------
    rate, counts : Tensor, same shape
        Expected and measured photons; `rate` is clamped at 1e-8.

    Returns
    -------
    Tensor, same shape
    """
    expected = rate.clamp_min(RATE_FLOOR)
    # Where nothing was counted the logarithm is finite, and counts for nothing.
    ratio = (counts / expected).clamp_min(torch.finfo(expected.dtype).tiny)
    return 2 * (counts * ratio.log() - counts + expected)


def expected_deviance(rate: Tensor) -> Tensor:
    """Compute the mean Poisson deviance of counts around their own rate: what photon noise alone gives.

    Parameters
    ----------
    rate : Tensor, any shape
        Expected photons.

    Returns
    -------
    Tensor, same shape
        1 for bright pixels, ``-2 rate log(rate)`` for dark ones; to a per cent.
    """
    logs, values = (each.to(rate.device) for each in _noise_table())
    # The table's logarithms are evenly spaced.
    first, last, intervals = float(logs[0]), float(logs[-1]), len(logs) - 1
    place = (rate.clamp_min(RATE_FLOOR).log().clamp(first, last) - first) * (intervals / (last - first))
    # What is no number stays so, by the share.
    lower = place.nan_to_num(0.0).long().clamp_max(intervals - 1)
    return torch.lerp(values[lower], values[lower + 1], place - lower)


@cache
def _noise_table() -> tuple[Tensor, Tensor]:
    """Sum the deviance over Poisson's distribution for rates up to 200: their logarithms, and the means."""
    rates = torch.logspace(-8, 2.3, 400, dtype=torch.float64)[:, None]
    counts = torch.arange(400, dtype=torch.float64)
    chance = (torch.special.xlogy(counts, rates) - rates - torch.lgamma(counts + 1)).exp()
    deviance = poisson_deviance(rates, counts)
    return rates[:, 0].log().float(), (chance * deviance).sum(dim=1).float()


def amplitude_loss(rate: Tensor, counts: Tensor) -> Tensor:
    """Compute ``(sqrt(rate) - sqrt(counts))^2`` of each pixel: a quarter of the deviance at high counts.

    Parameters
    ----------
    rate, counts : Tensor, same shape
        Expected and measured photons; `rate` is clamped at 1e-8.

    Returns
    -------
    Tensor, same shape
    """
    return (rate.clamp_min(RATE_FLOOR).sqrt() - counts.sqrt()).square()


def mean_over_valid(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average each frame's valid pixels.

    Parameters
    ----------
    values : Tensor, shape (n, N, N)
        One for each pixel.
    mask : Tensor, shape (N, N) or (n, N, N), bool, or None
        True where a pixel is valid; what others hold is not looked at. None: all are.

    Returns
    -------
    Tensor, shape (n,)
        0 where a frame has no valid pixel.
    """
    if mask is None:
        return values.mean(dim=(-2, -1))
    # Selected, not multiplied: a masked pixel may hold anything, and NaN times 0 is NaN.
    return torch.where(mask, values, 0.0).sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1)).clamp_min(1)
