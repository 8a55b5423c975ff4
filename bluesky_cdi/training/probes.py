"""Probes of training: those of aberrated lenses, and what is assumed of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.physics.probes import orthogonal_modes
from bluesky_cdi.training.draws import Draws

# The assumed probes are wrong in half of the batches: by up to the first strength, or in a share of them the second, as
# guesses of instruments are. A strength of 1 is a phase of about 0.6 rad rms over the pupil.
PROBE_ERRORS, POOR_PROBE_SHARE = (0.8, 4.0), 0.25


def draw_probes(draws: Draws, number: int, size: int, modes: int) -> Tensor:
    """Draw unit-energy probes of aberrated lenses.

    Parameters
    ----------
    draws : Draws
        Draws them.
    number : int
        How many.
    size : int
        Pixels along a side.
    modes : int
        Incoherent modes of each.

    Returns
    -------
    Tensor, shape (number, modes, size, size), complex64
    """
    grid = torch.arange(size, device=draws.device, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")

    def draw(low: float, high: float) -> Tensor:
        return draws.uniform(number, 1, 1, low=low, high=high)

    aperture = draw(0.07, 0.38) * size
    radius = torch.hypot(y, x).expand(number, size, size)
    stop = draw(-0.3, 0.6).clamp_min(0) * aperture
    round_lens = (aperture - radius + 0.5).clamp(0, 1) * (radius - stop + 0.5).clamp(0, 1)
    square_lens = (aperture - y.abs() + 0.5).clamp(0, 1) * (aperture * draw(0.6, 1.2) - x.abs() + 0.5).clamp(0, 1)
    amplitude = torch.where(draws.uniform(number, 1, 1) < 0.7, round_lens, square_lens)
    spot = draw(0.03, 0.27) * torch.where(draws.uniform(number, 1, 1) < 0.5, -1.0, 1.0)
    u, v = y / aperture, x / aperture
    # A phase of pi * spot * aperture at the edge moves the edge ray by `spot` frame widths.
    phase = math.pi * spot * aperture * (u**2 + v**2)
    phase = phase + 0.7 * draws.normal(number, 1, 1) * (u**2 - v**2) + 0.7 * draws.normal(number, 1, 1) * u * v
    phase = phase + 0.5 * draws.normal(number, 1, 1) * (3 * (u**2 + v**2) - 2) * v
    first = to_centre(torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, phase), dim=(-2, -1))))
    if modes == 1:
        return first[:, None] / first.abs().square().sum(dim=(-2, -1)).sqrt()[:, None, None, None]
    basis = orthogonal_modes(first, modes)  # (number, M, N, N)
    share = draws.uniform(number, 1, low=0.7, high=1.0)
    shares = torch.cat([share, (1 - share).expand(number, modes - 1) / (modes - 1)], dim=1)
    return basis * shares.sqrt()[:, :, None, None]


def misjudge(draws: Draws, probe: Tensor) -> Tensor:
    """Give the probe low-order aberrations and an error of scale, half of the time.

    Parameters
    ----------
    draws : Draws
        Draws them.
    probe : Tensor, shape (B, M, N, N), complex
        The true ones.

    Returns
    -------
    Tensor, shape (B, M, N, N), complex
    """
    strength = draws.error(PROBE_ERRORS[draws.chance(POOR_PROBE_SHARE)])
    if strength == 0:
        return probe
    number, size = probe.shape[0], probe.shape[-1]
    grid = torch.fft.fftfreq(size, device=draws.device)
    weight = torch.fft.fft2(probe).abs().square().sum(dim=1)  # (B, N, N)
    squared = grid[:, None] ** 2 + grid[None, :] ** 2  # (N, N)
    extent = ((weight * squared).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1))).sqrt()
    u, v = grid[:, None] / extent[:, None, None], grid[None, :] / extent[:, None, None]
    terms = (u**2 + v**2 - 1, u**2 - v**2, 2 * u * v, u * (u**2 + v**2 - 2), v * (u**2 + v**2 - 2))
    phase = sum(0.4 * strength * draws.normal(number, 1, 1) * t.clamp(-6, 6) for t in terms)
    scale = 1 + 0.05 * strength * draws.normal(number, 1, 1, 1)
    bent: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * torch.polar(torch.ones_like(phase), phase)[:, None])
    return bent * scale
