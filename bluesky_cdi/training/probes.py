"""Probes of training: those of aberrated lenses, and what is assumed of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bluesky_cdi.models.joint_probe import ABERRATIONS, aberration_terms
from bluesky_cdi.physics.forward import intensity, to_centre
from bluesky_cdi.physics.probes import orthogonal_modes
from bluesky_cdi.training.draws import Draws

# The assumed probes are wrong in half of the batches: by up to the first strength, or in a share of them the second, as
# guesses of instruments are. A strength of 1 is a phase of about 0.6 rad rms over the pupil.
PROBE_ERRORS, POOR_PROBE_SHARE = (0.8, 4.0), 0.25
# Of guesses of instruments: most root mean square phase, radians; how many times too large or too small the aperture is
# at most; share by which the pixel is wrong at most; photons of a mode over another's where powers are wrong.
WIDE_ERROR_RAD, APERTURE_FACTOR, PIXEL_ERROR, POWER_FACTOR = 2.5, 1.3, 0.05, 10.0
# Shares of the batches with wrong aberrations (of these with defocus alone), aperture, powers, and number of modes.
ABERRATED_SHARE, DEFOCUS_SHARE, APERTURE_SHARE, POWERS_SHARE, NUMBER_SHARE = 0.8, 0.5, 0.3, 0.3, 0.15


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


def misjudge_widely(draws: Draws, probe: Tensor, pixel: float = 0.0) -> Tensor:
    """Assume probes as wrongly as instruments do: aberrations, aperture, powers and number of the modes, photons.

    Each kind of error is in a share of the batches, so that some have none; its size differs from scene to scene.

    Parameters
    ----------
    draws : Draws
        Draws the errors.
    probe : Tensor, shape (B, M, N, N), complex
        The true ones.
    pixel : float
        Share by which the sample's pixel is assumed too large, with the detector's distance: the pupil then looks
        larger.

    Returns
    -------
    Tensor, shape (B, M', N, N), complex
        M' is 1 or 3 where the number of modes is assumed wrongly.
    """
    number = len(probe)
    told = probe
    if draws.chance(ABERRATED_SHARE):
        told = aberrated(told, _mixtures(draws, number))
    most = math.log(APERTURE_FACTOR) if draws.chance(APERTURE_SHARE) else 0.0
    if most or pixel:
        told = stretched(told, (1 + pixel) * draws.uniform(number, low=-most, high=most).exp())
    if told.shape[1] > 1 and draws.chance(POWERS_SHARE):
        most = math.log(POWER_FACTOR) / 2
        told = told * draws.uniform(number, told.shape[1], 1, 1, low=-most, high=most).exp().sqrt()
    if draws.chance(NUMBER_SHARE):
        told = told[:, :1] if told.shape[1] > 1 else _with_weak_modes(told)
    scale = 1 + 0.05 * draws.error(1.0) * draws.normal(number, 1, 1, 1)
    before, after = (each.abs().square().sum(dim=(-3, -2, -1), keepdim=True) for each in (probe, told))
    return told * (before / after).sqrt() * scale


def aberrated(probe: Tensor, coefficients: Tensor) -> Tensor:
    """Add aberrations to probes.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Their modes.
    coefficients : Tensor, shape (B, ABERRATIONS)
        Of `models.joint_probe.aberration_terms`: root mean square phases over the pupil's light, radians.

    Returns
    -------
    Tensor, shape (B, M, N, N), complex
    """
    waves = torch.fft.fft2(probe)
    phase = torch.einsum("bk,bkyx->byx", coefficients, aberration_terms(intensity(waves)))
    bent: Tensor = torch.fft.ifft2(waves * torch.polar(torch.ones_like(phase), phase)[:, None])
    return bent


def stretched(probe: Tensor, factor: Tensor) -> Tensor:
    """Stretch the pupils of probes about their middle: the waves become as much smaller.

    The pupil is taken between its pixels by the probe's Fourier series, which is exact for a probe inside its window.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Their modes.
    factor : Tensor, shape (B,)
        How many times larger the pupil becomes. What leaves the window is lost.

    Returns
    -------
    Tensor, shape (B, M, N, N), complex
        With other photons.
    """
    size = probe.shape[-1]
    index = torch.arange(size, device=probe.device, dtype=factor.dtype) - size // 2
    at = index / factor[:, None]  # (B, N): where each pixel of the new pupil was in the old one
    angle = -2 * math.pi / size * at[:, :, None] * index  # (B, N, N)
    # Beyond the old pupil's window there was nothing.
    kernel = torch.polar((at.abs() <= size / 2).to(angle.dtype)[:, :, None].expand_as(angle), angle)[:, None]
    pupil = kernel @ probe @ kernel.transpose(-1, -2)
    small: Tensor = to_centre(torch.fft.ifft2(torch.fft.ifftshift(pupil, dim=(-2, -1))))
    return small


def _mixtures(draws: Draws, number: int) -> Tensor:
    """Draw aberrations of up to `WIDE_ERROR_RAD`, in half of the batches defocus alone, (number, ABERRATIONS)."""
    mixture = draws.normal(number, ABERRATIONS)
    if draws.chance(DEFOCUS_SHARE):
        mixture = mixture * (torch.arange(ABERRATIONS, device=mixture.device) == 0)
    size = draws.uniform(number, 1, high=WIDE_ERROR_RAD)
    sized: Tensor = mixture * size / mixture.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return sized


def _with_weak_modes(probe: Tensor) -> Tensor:
    """Assume three modes of a probe (B, 1, N, N) that has one: 0.85 of the photons in the first."""
    basis = orthogonal_modes(probe[:, 0], 3)
    shares = torch.tensor([0.85, 0.1, 0.05], device=probe.device).sqrt()
    modes: Tensor = basis * shares[:, None, None]
    return modes
