"""A scan as a method is told it, and how far the method's object is from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.comparison import relative_phases, similarity
from bluesky_cdi.metrics import align, complex_nrmse, phase_mae_rad
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.lit_frames import frames_at_once
from bluesky_cdi.protocols import ComplexArray, FloatArray


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method gets, and what its object is held against.

    Attributes
    ----------
    data : Diffraction
        The frames on their canvas, on the device that computes.
    probe : Tensor, shape (1, M, N, N), complex64
        As it is told.
    refine_probe : bool
        Whether engines refine it.
    truth : ndarray, shape (Y, X), complex
        The sample, or a reference, on the canvas.
    lit : ndarray, shape (Y, X), bool
        Pixels that count.
    origin_m : tuple of float
        Sample position (y, x) of the canvas's pixel [0, 0], metres.
    pixel_m : float
    held_out : Diffraction, optional
        Frames that no method sees.
    propagation : {'far', 'near'}
    """

    data: Diffraction
    probe: Tensor
    refine_probe: bool
    truth: ComplexArray
    lit: npt.NDArray[np.bool_]
    origin_m: tuple[float, float]
    pixel_m: float
    held_out: Diffraction | None = None
    propagation: Literal["far", "near"] = "far"

    @property
    def vacuum(self) -> Tensor:
        """What engines begin with, (1, Y, X), complex64."""
        return torch.ones(self.data.canvas_shape, dtype=torch.complex64, device=self.probe.device)


@dataclass(frozen=True, eq=False)
class Judged:
    """How far an object is from the truth.

    Attributes
    ----------
    errors : dict
        ``complex_nrmse``, ``phase_mae_rad``, ``ssim_phase``.
    object : ndarray, shape (Y, X), complex128
        Without its ramp, scaled to the truth.
    """

    errors: dict[str, float]
    object: npt.NDArray[np.complex128]


def judge(canvas: Tensor, problem: Problem) -> Judged:
    """Remove shift, ramp and scale, and measure what is left on the lit pixels.

    Parameters
    ----------
    canvas : Tensor, shape (1, Y, X), complex
    problem : Problem
    """
    aligned = align(canvas[0].cpu().numpy(), problem.truth, problem.lit)
    found, truth, lit = aligned.object, aligned.truth, problem.lit
    errors = {
        "complex_nrmse": complex_nrmse(found, truth, lit),
        "phase_mae_rad": phase_mae_rad(found, truth, lit),
        # The truth's own range of phases is full contrast.
        "ssim_phase": similarity(*relative_phases(found, truth, lit), lit)[0],
    }
    return Judged(errors, found)


def light_of(probe: Tensor, data: Diffraction) -> FloatArray:
    """Summed illumination of a scan, photons per pixel, (1, M, N, N) to (Y, X)."""
    total = torch.zeros(data.canvas_shape, device=probe.device)
    for part in data.chunks(frames_at_once(probe)):
        total += accumulate(intensity(part.probes(probe)), part.corner, part.canvas_shape)
    return np.asarray(total[0].cpu().numpy())
