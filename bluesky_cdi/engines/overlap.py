"""The overlap constraint, exit waves of one object under one probe, and what engines share that hold these waves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution, deviance_of
from bluesky_cdi.engines.steps import ordered, probe_spectrum, transmission
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.illuminated_frames import frames_at_once

# Shares of the brightest pixel's illumination (transmission) below which object (probe) stays as it was.
OBJECT_FLOOR, PROBE_FLOOR = 1e-3, 1e-2

# Exit waves of some frames, (n, M, N, N): given the frames, and which of all they are.
WavesOf = Callable[[Diffraction, slice], Tensor]


class WaveEngine(ABC):
    """An `Engine` for one scene that holds the exit waves of all frames; positions and fluxes stay."""

    warm_up = 0

    def __init__(self) -> None:
        self._waves: Tensor | None = None

    def epoch(self, solution: Solution, refine: Refine) -> Solution:
        """Move all exit waves once.

        Parameters
        ----------
        solution : Solution
            The one to improve; its state of the frames is taken over.
        refine : Refine
            What may change besides the object.

        Returns
        -------
        Solution
            With the deviance that was met on the way, or that of the result.
        """
        if self._waves is None:
            self._waves = exit_waves(solution.object, solution.probe, solution.data)
        obj, probe = self._move(self._waves, solution, refine)
        data = solution.data
        return Solution(obj, probe, data, deviance_of(obj, probe, data), solution.epochs + 1)

    def finish(self, solution: Solution, refine: Refine) -> Solution:
        """Order the modes, and forget the exit waves of the old ones.

        Parameters
        ----------
        solution : Solution
            That of the last epoch.
        refine : Refine
            What that epoch refined.

        Returns
        -------
        Solution
        """
        self._waves = None
        return ordered(solution, refine)

    @abstractmethod
    def _move(self, waves: Tensor, solution: Solution, refine: Refine) -> tuple[Tensor, Tensor]:
        """Move exit waves (n, M, N, N) in place; return the object and the probe that they had in common."""


def parts_of(data: Diffraction, size: int) -> list[tuple[Diffraction, slice]]:
    """Split frames into parts.

    Parameters
    ----------
    data : Diffraction
        All frames.
    size : int
        Most frames in a part.

    Returns
    -------
    list of (Diffraction, slice)
        Each part, and which of all frames it is.
    """
    return [(data[slice(i, i + size)], slice(i, min(i + size, len(data)))) for i in range(0, len(data), size)]


def exit_waves(obj: Tensor, probe: Tensor, data: Diffraction) -> Tensor:
    """Compute the exit waves of all frames.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex
        The object.
    probe : Tensor, shape (1, M, N, N), complex
        Its modes.
    data : Diffraction
        The frames and where they lie.

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    parts = data.chunks(frames_at_once(probe))
    return torch.cat([part.probes(probe) * part.patches(obj)[:, None] for part in parts])


def overlap(solution: Solution, waves_of: WavesOf, refine: Refine) -> tuple[Tensor, Tensor]:
    """Find the object, then the probe, whose exit waves come closest to given ones in least squares.

    Thibault et al., Ultramicroscopy 109, 338 (2009), eqs. 9 and 10, once each.

    Parameters
    ----------
    solution : Solution
        Object and probe to begin with, which stay where nothing is known.
    waves_of : callable
        Gives the exit waves (n, M, N, N) of some frames: of the frames, and which of all they are.
    refine : Refine
        Whether the probe may change.

    Returns
    -------
    obj : Tensor, shape (1, Y, X)
    probe : Tensor, shape (1, M, N, N)
    """
    obj = _object(solution, waves_of)
    return obj, _probe(obj, solution, waves_of) if refine.probe else solution.probe


def _object(solution: Solution, waves_of: WavesOf) -> Tensor:
    obj, data = solution.object, solution.data
    total, illumination = torch.zeros_like(obj), torch.zeros_like(obj.real)
    for part, which in parts_of(data, frames_at_once(solution.probe)):
        probes = part.probes(solution.probe)
        total += accumulate((probes.conj() * waves_of(part, which)).sum(dim=1), part.corner, part.object_shape)
        illumination += accumulate(intensity(probes), part.corner, part.object_shape)
    floor = OBJECT_FLOOR * illumination.max()
    # Where nothing was illuminated nothing is known, and the object stays.
    return (total + floor * obj) / (illumination + floor)


def _probe(obj: Tensor, solution: Solution, waves_of: WavesOf) -> Tensor:
    probe = solution.probe
    spectrum, power = torch.zeros_like(probe), torch.zeros_like(probe[0, 0].real)
    for part, which in parts_of(solution.data, frames_at_once(probe)):
        patches = part.patches(obj)
        spectrum += probe_spectrum(patches, waves_of(part, which), part)
        power += transmission(patches, part)
    floor = PROBE_FLOOR * power.max()
    wanted: Tensor = torch.fft.ifft2(spectrum)
    return (wanted + floor * probe) / (power + floor)
