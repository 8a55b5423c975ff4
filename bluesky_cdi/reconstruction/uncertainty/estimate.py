"""What an uncertainty estimator is, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.uncertainty.halves import HalfObjects

# Standard deviation where no light fell: the phase is uniform in (-pi, pi].
UNKNOWN_STD_RAD = float(np.pi / np.sqrt(3))
# The same of an amplitude between nothing and twice vacuum.
UNKNOWN_STD = 1.0


@dataclass(frozen=True, eq=False)
class UncertaintyEstimate:
    """Predicted errors of an object, and what describes its frames.

    Attributes
    ----------
    std_amplitude, std_phase_rad : Tensor, shape (Y, X)
        Standard deviations of the whole error.
    embedding : Tensor, shape (n, d)
        Features of each frame as the estimator sees it.
    epistemic_amplitude, epistemic_phase_rad : Tensor, shape (Y, X), or None
        The part of them that more training would take away: how far those differ that predict. None where the
        estimator can't tell it from the rest.
    shape_amplitude, shape_phase_rad : Tensor, shape (Y, X), or None
        Deviations as another estimator predicts them, for where within the object errors are larger and smaller; None
        where there is only one opinion.
    halves : HalfObjects or None
        Objects of two halves of the frames that began with nothing in common; None where none were made so.
    """

    std_amplitude: Tensor
    std_phase_rad: Tensor
    embedding: Tensor
    epistemic_amplitude: Tensor | None = None
    epistemic_phase_rad: Tensor | None = None
    shape_amplitude: Tensor | None = None
    shape_phase_rad: Tensor | None = None
    halves: HalfObjects | None = None

    def times(self, amplitude: float, phase: float) -> UncertaintyEstimate:
        """Give deviations that are so many times as large; those that stand for what is not known stay.

        Parameters
        ----------
        amplitude, phase : float
            Factors.
        """
        if amplitude == phase == 1:
            return self
        epistemic = self.epistemic_amplitude, self.epistemic_phase_rad
        parts = [None if each is None else each * by for each, by in zip(epistemic, (amplitude, phase), strict=True)]
        return replace(
            self,
            std_amplitude=_times(self.std_amplitude, amplitude, UNKNOWN_STD),
            std_phase_rad=_times(self.std_phase_rad, phase, UNKNOWN_STD_RAD),
            epistemic_amplitude=parts[0],
            epistemic_phase_rad=parts[1],
        )


class UncertaintyEstimator(Protocol):
    """Predicts the errors of any object.

    Attributes
    ----------
    name : str
        By which a configuration chooses it.
    passes : float
        What an estimate costs, in passes of the network: one of its U-Nets with its physics step is a share of one.
    """

    name: str
    passes: float

    def __call__(
        self, obj: Tensor, probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor
    ) -> UncertaintyEstimate:
        """Predict the errors of an object, and describe its frames.

        Parameters
        ----------
        obj : Tensor, shape (1, Y, X), complex64
            The object.
        probe : Tensor, shape (1, M, N, N), complex64
            Its modes.
        data : Diffraction
            The frames.
        illumination : Tensor, shape (1, Y, X)
            Photons summed on each pixel of the object.
        deviance : Tensor, shape (n,)
            Poisson deviance of each frame a valid pixel.
        """


def _times(std: Tensor, factor: float, most: float) -> Tensor:
    return torch.where(std < most, (std * factor).clamp_max(most), std)
