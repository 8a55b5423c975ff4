"""A scan as a method is given it, and how far the method's object is from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.evaluation import Comparison, compare
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.protocols import ComplexArray


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method gets, and what its object is held against.

    Attributes
    ----------
    data : Diffraction
        The frames on their object, on the device that computes.
    probe : Tensor, shape (1, M, N, N), complex64
        The assumed one.
    refine_probe : bool
        Whether engines refine it.
    truth : ndarray, shape (Y, X), complex
        The sample, or a reference, on the object.
    illuminated : ndarray, shape (Y, X), bool
        Pixels that count.
    origin_m : tuple of float
        Sample position (y, x) of the object's pixel [0, 0], metres.
    pixel_m : float
    held_out : Diffraction, optional
        Frames that no method sees.
    propagation : {'far', 'near'}
    """

    data: Diffraction
    probe: Tensor
    refine_probe: bool
    truth: ComplexArray
    illuminated: npt.NDArray[np.bool_]
    origin_m: tuple[float, float]
    pixel_m: float
    held_out: Diffraction | None = None
    propagation: Literal["far", "near"] = "far"

    @property
    def vacuum(self) -> Tensor:
        """What engines begin with, (1, Y, X), complex64."""
        return torch.ones(self.data.object_shape, dtype=torch.complex64, device=self.probe.device)


def judge(obj: Tensor, problem: Problem) -> Comparison:
    """Compare a method's object with the problem's truth on the illuminated pixels.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex
        What the method found.
    problem : Problem
        What it was given.

    Returns
    -------
    Comparison
    """
    return compare(obj[0].cpu().numpy(), problem.truth, problem.illuminated)
