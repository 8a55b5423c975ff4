"""Pieces that several ptychography engines are made of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.physics.forward import Diffraction, peak_intensity
from bluesky_cdi.physics.lit_frames import canvas_step
from bluesky_cdi.physics.propagators import shift_ramp


def random_order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """The order of the frames in an epoch, (n,): the same for the same seed and epoch, on every device."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator).to(device)


def probe_spectrum(patches: Tensor, waves: Tensor, data: Diffraction) -> Tensor:
    """Spectrum of ``sum conj(O) wave``, every frame shifted back to whole pixels and weighted with its flux.

    Parameters
    ----------
    patches : Tensor, shape (n, N, N), complex
    waves : Tensor, shape (n, M, N, N), complex
        Exit waves or their changes.
    data : Diffraction
        The same frames.

    Returns
    -------
    Tensor, shape (1, M, N, N), complex
    """
    spectra = torch.fft.fft2(patches.conj()[:, None] * waves)
    strength = None if data.gain is None else data.gain.sqrt()
    ramp = shift_ramp(-data.shift_px.to(patches.real.dtype), spectra.shape[-1], strength)
    # One sum of products, which spares a copy of the largest array.
    return torch.einsum("nmyx,nyx->myx", spectra, ramp)[None]


def transmission(patches: Tensor, data: Diffraction) -> Tensor:
    """``sum |O|^2`` over the frames, weighted with their flux: (n, N, N) to (N, N)."""
    power = patches.real.square() + patches.imag.square()
    if data.gain is None:
        return power.sum(dim=0)
    return (power * data.gain[:, None, None]).sum(dim=0)


def averaged_step(canvas: Tensor, probe: Tensor, data: Diffraction, alpha: float = 0.1) -> Tensor:
    """One object step of all frames together, which averages the noise that the order of the frames left.

    Parameters
    ----------
    canvas : Tensor, shape (B, Y, X), complex64
    probe : Tensor, shape (B, M, N, N), complex64
    data : Diffraction
    alpha : float
        Regularisation, as in rPIE.

    Returns
    -------
    Tensor, shape (B, Y, X)
    """
    numerator, light = canvas_step(canvas, probe, data)
    return canvas + numerator / ((1 - alpha) * light + alpha * peak_intensity(probe))


def orthogonalise(probe: Tensor) -> Tensor:
    """Rotate modes to be orthogonal, strongest first; no intensity changes.

    Parameters
    ----------
    probe : Tensor, shape (1, M, N, N), complex

    Returns
    -------
    Tensor, same shape
    """
    modes = probe[0].reshape(probe.shape[1], -1)  # (M, N*N)
    _, vectors = torch.linalg.eigh((modes @ modes.mH).resolve_conj())
    # eigh orders upwards; rows of vectors.mH combine the modes into orthogonal ones.
    rotated: Tensor = vectors.mH.flip(0) @ modes
    # The strongest mode keeps the phase of the mode that it mostly is, and with it the object's gauge.
    overlap = modes @ rotated[0].conj()  # (M,)
    phase = torch.sgn(overlap[overlap.abs().argmax()])
    return (rotated * phase).reshape(probe.shape)


def ordered(solution: Solution, refine: Refine) -> Solution:
    """The solution with orthogonal modes, strongest first, if the probe was refined."""
    return replace(solution, probe=orthogonalise(solution.probe)) if refine.probe else solution
