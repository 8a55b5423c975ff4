"""Steps that several ptychography engines share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.physics.forward import Diffraction, peak_intensity
from bluesky_cdi.physics.illuminated_frames import object_step
from bluesky_cdi.physics.propagators import shift_ramp


def random_order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Draw the order of the frames in an epoch.

    Parameters
    ----------
    count : int
        Number of frames, n.
    seed, epoch : int
        The same of both give the same order, on every device.
    device : torch.device
        Where the order is wanted.

    Returns
    -------
    Tensor, shape (n,), int64
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator).to(device)


def probe_spectrum(patches: Tensor, waves: Tensor, data: Diffraction) -> Tensor:
    """Compute the spectrum of ``sum conj(O) wave`` over frames.

    Every frame is shifted back to whole pixels and weighted with its flux.

    Parameters
    ----------
    patches : Tensor, shape (n, N, N), complex
        Of the object, one a frame.
    waves : Tensor, shape (n, M, N, N), complex
        Exit waves or their changes.
    data : Diffraction
        The same frames.

    Returns
    -------
    Tensor, shape (1, M, N, N), complex
    """
    spectra = torch.fft.fft2(patches.conj()[:, None] * waves)
    strength = None if data.flux is None else data.flux.sqrt()
    ramp = shift_ramp(-data.shift_px.to(patches.real.dtype), spectra.shape[-1], strength)
    # One sum of products, which spares a copy of the largest array.
    return torch.einsum("nmyx,nyx->myx", spectra, ramp)[None]


def transmission(patches: Tensor, data: Diffraction) -> Tensor:
    """Sum ``|O|^2`` over frames, weighted with their flux.

    Parameters
    ----------
    patches : Tensor, shape (n, N, N), complex
        Of the object, one a frame.
    data : Diffraction
        The same frames.

    Returns
    -------
    Tensor, shape (N, N)
    """
    power = patches.real.square() + patches.imag.square()
    if data.flux is None:
        return power.sum(dim=0)
    return (power * data.flux[:, None, None]).sum(dim=0)


def averaged_step(obj: Tensor, probe: Tensor, data: Diffraction, alpha: float = 0.1) -> Tensor:
    """Step the object once by all frames together, which averages the noise that the order of the frames left.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex64
        The object.
    probe : Tensor, shape (B, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames and where they lie.
    alpha : float
        Regularisation, as in rPIE.

    Returns
    -------
    Tensor, shape (B, Y, X)
    """
    numerator, illumination = object_step(obj, probe, data)
    return obj + numerator / ((1 - alpha) * illumination + alpha * peak_intensity(probe))


def orthogonalise(probe: Tensor) -> Tensor:
    """Rotate modes to be orthogonal, strongest first; no intensity changes.

    Parameters
    ----------
    probe : Tensor, shape (1, M, N, N), complex
        Modes of each scene, in sqrt(photons).

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
    """Make the modes of a solution orthogonal, strongest first, if its probe was refined.

    Parameters
    ----------
    solution : Solution
        The one to order.
    refine : Refine
        What was refined.

    Returns
    -------
    Solution
    """
    return replace(solution, probe=orthogonalise(solution.probe)) if refine.probe else solution
