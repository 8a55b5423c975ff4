"""Regularised ptychographic iterative engine (rPIE) on mini-batches.

Maiden, Johnson and Li, Optica 4, 736 (2017), eqs. 4 to 6; several incoherent modes as in
Thibault and Menzel, Nature 494, 68 (2013). A mini-batch sums its frames' steps and divides by
its summed illumination, so frames that overlap average and frames that do not act alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import (
    Diffraction,
    canvas_step,
    exit_wave_step,
    intensity,
    object_step,
    peak_intensity,
    shift_fields,
)
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance


@dataclass(frozen=True)
class RpieSettings:
    """Settings of the engine.

    Parameters
    ----------
    alpha : float
        Regularisation of the object step; 1 is ePIE.
    beta : float
        Regularisation of the probe step.
    batch : int
        Frames a mini-batch.
    probe_from : int
        First epoch (from 0) that updates the probe; negative: never.
    """

    alpha: float = 0.1
    beta: float = 0.5
    batch: int = 8
    probe_from: int = 0


def rpie_epoch(
    canvas: Tensor,
    probe: Tensor,
    data: Diffraction,
    settings: RpieSettings,
    generator: torch.Generator,
    update_probe: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go once through all frames in random order.

    Parameters
    ----------
    canvas : Tensor, shape (B, Y, X), complex64
    probe : Tensor, shape (B, M, N, N), complex64
        One scene (B = 1) where the probe is updated.
    data : Diffraction
    settings : RpieSettings
    generator : torch.Generator
        On the CPU; gives the order.
    update_probe : bool

    Returns
    -------
    canvas, probe : Tensor
        Updated; the inputs are unchanged.
    deviance : Tensor, shape (n,)
        Poisson deviance per valid pixel of each frame, as met during the epoch.
    """
    deviance = torch.zeros(len(data), device=canvas.device)
    order = torch.randperm(len(data), generator=generator).to(canvas.device)
    for picked in torch.split(order, settings.batch):
        part = data[picked]
        probes, patches = part.probes(probe), part.patches(canvas)
        step, rate = exit_wave_step(probes, patches, part.counts, part.background, part.mask)
        deviance[picked] = mean_over_valid(poisson_deviance(rate, part.counts), part.mask)
        canvas = canvas + _object_change(probe, probes, step, part, settings.alpha)
        if update_probe:
            probe = probe + _probe_change(patches, step, part, settings.beta)
    return canvas, probe, deviance


def rpie(
    canvas: Tensor,
    probe: Tensor,
    data: Diffraction,
    iterations: int,
    settings: RpieSettings | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `iterations` epochs; arguments and results as in `rpie_epoch`."""
    settings = settings or RpieSettings()
    generator = torch.Generator().manual_seed(seed)
    deviance = torch.full((len(data),), float("nan"), device=canvas.device)
    for epoch in range(iterations):
        update_probe = 0 <= settings.probe_from <= epoch
        canvas, probe, deviance = rpie_epoch(canvas, probe, data, settings, generator, update_probe)
    return canvas, probe, deviance


def averaged_step(canvas: Tensor, probe: Tensor, data: Diffraction, alpha: float = 0.1) -> Tensor:
    """One object step of all frames together, which averages the noise that the order of the frames left.

    Parameters
    ----------
    canvas : Tensor, shape (B, Y, X), complex64
    probe : Tensor, shape (B, M, N, N), complex64
    data : Diffraction
    alpha : float
        As in `RpieSettings`.

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


def _object_change(probe: Tensor, probes: Tensor, step: Tensor, part: Diffraction, alpha: float) -> Tensor:
    numerator, light = object_step(probes, step, part.corner, part.canvas_shape, part.scene)
    return numerator / ((1 - alpha) * light + alpha * peak_intensity(probe))


def _probe_change(patches: Tensor, step: Tensor, part: Diffraction, beta: float) -> Tensor:
    shifted_back = shift_fields(patches.conj()[:, None] * step, -part.shift_px)
    transmission = intensity(patches[:, None]).sum(dim=0)  # (N, N)
    return shifted_back.sum(dim=0, keepdim=True) / ((1 - beta) * transmission + beta * transmission.max())
