"""The overlap constraint: exit waves of one object under one probe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.engines.steps import probe_spectrum, transmission
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.lit_frames import frames_at_once

# Shares of the brightest pixel's light (transmission) below which object (probe) stays as it was.
OBJECT_FLOOR, PROBE_FLOOR = 1e-3, 1e-2

# Waves of some frames, (n, M, N, N): given the frames, and which of all they are.
WavesOf = Callable[[Diffraction, slice], Tensor]


def parts_of(data: Diffraction, size: int) -> list[tuple[Diffraction, slice]]:
    """The frames `size` at a time, and which of all they are."""
    return [(data[slice(i, i + size)], slice(i, min(i + size, len(data)))) for i in range(0, len(data), size)]


def exit_waves(canvas: Tensor, probe: Tensor, data: Diffraction) -> Tensor:
    """Exit waves of all frames, (n, M, N, N)."""
    parts = data.chunks(frames_at_once(probe))
    return torch.cat([part.probes(probe) * part.patches(canvas)[:, None] for part in parts])


def overlap(solution: Solution, waves_of: WavesOf, refine: Refine) -> tuple[Tensor, Tensor]:
    """The object, then the probe, whose exit waves come closest to the given ones in least squares.

    Thibault et al., Ultramicroscopy 109, 338 (2009), eqs. 9 and 10, once each.

    Returns
    -------
    canvas : Tensor, shape (1, Y, X)
    probe : Tensor, shape (1, M, N, N)
    """
    canvas = _object(solution, waves_of)
    return canvas, _probe(canvas, solution, waves_of) if refine.probe else solution.probe


def _object(solution: Solution, waves_of: WavesOf) -> Tensor:
    canvas, data = solution.canvas, solution.data
    total, light = torch.zeros_like(canvas), torch.zeros_like(canvas.real)
    for part, which in parts_of(data, frames_at_once(solution.probe)):
        probes = part.probes(solution.probe)
        total += accumulate((probes.conj() * waves_of(part, which)).sum(dim=1), part.corner, part.canvas_shape)
        light += accumulate(intensity(probes), part.corner, part.canvas_shape)
    floor = OBJECT_FLOOR * light.max()
    # Where no light fell nothing is known, and the object stays.
    return (total + floor * canvas) / (light + floor)


def _probe(canvas: Tensor, solution: Solution, waves_of: WavesOf) -> Tensor:
    probe = solution.probe
    spectrum, power = torch.zeros_like(probe), torch.zeros_like(probe[0, 0].real)
    for part, which in parts_of(solution.data, frames_at_once(probe)):
        patches = part.patches(canvas)
        spectrum += probe_spectrum(patches, waves_of(part, which), part)
        power += transmission(patches, part)
    floor = PROBE_FLOOR * power.max()
    wanted: Tensor = torch.fft.ifft2(spectrum)
    return (wanted + floor * probe) / (power + floor)
