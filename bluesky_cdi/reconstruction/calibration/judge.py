"""What predicts errors that are true to size, while frames come and when a run has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.calibration.conditions import Conditions, conditions_of
from bluesky_cdi.reconstruction.calibration.files import calibration_of
from bluesky_cdi.reconstruction.calibration.halves import MOST_ITERATIONS
from bluesky_cdi.reconstruction.calibration.record import PARTS, Calibrating
from bluesky_cdi.reconstruction.uncertainty import (
    HalvesEstimator,
    NetworkEstimator,
    PhotonNoiseEstimator,
    UncertaintyEstimate,
    UncertaintyEstimator,
    configured_estimator,
)


@dataclass(frozen=True)
class Judge:
    """An estimator of errors, and what makes them true to size.

    Parameters
    ----------
    estimator : UncertaintyEstimator
        Predicts them.
    calibration : Calibrating
        Of this estimator.
    scale : Mapping of str to float
        What halves of a run's frames multiply its errors by, of ``amplitude`` and ``phase``.
    """

    estimator: UncertaintyEstimator
    calibration: Calibrating
    scale: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 1.0))

    def __call__(
        self,
        obj: Tensor,
        probe: Tensor,
        data: Diffraction,
        illumination: Tensor,
        deviance: Tensor,
        noise: Tensor,
        iterations: int,
    ) -> UncertaintyEstimate:
        """Predict the errors of an object.

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
        deviance, noise : Tensor, shape (n,)
            Poisson deviance of each frame a valid pixel, and what photon noise alone gives.
        iterations : int
            Since the prediction.
        """
        conditions = conditions_of(probe, data, illumination, deviance, noise, iterations)
        return self.sized(self.estimator(obj, probe, data, illumination, deviance), conditions)

    def sized(self, found: UncertaintyEstimate, conditions: Conditions) -> UncertaintyEstimate:
        """Give what the estimator has found the size that is to be expected under some conditions.

        Parameters
        ----------
        found : UncertaintyEstimate
            As predicted.
        conditions : Conditions
            Under which the object was found.
        """
        return self.calibration(found, conditions).times(self.scale["amplitude"], self.scale["phase"])

    def scaled(self, factors: Mapping[str, float]) -> Judge:
        """Give one whose errors are so many times as large, by part."""
        return replace(self, scale={part: self.scale[part] * factors[part] for part in PARTS})

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give the scale: errors that are known have it."""
        return {part: np.array(factor) for part, factor in self.scale.items()}

    def restored(self, state: Mapping[str, npt.NDArray[Any]]) -> Judge:
        """Give one with the scale of a `checkpoint`; those of before know of none."""
        return replace(self, scale={part: float(state.get(part, 1.0)) for part in PARTS})


def live_judge(
    config: ReconstructorConfig,
    trained: Trained | None,
    device: torch.device | str,
    calibration: Calibrating | None = None,
) -> Judge:
    """Give what predicts errors while frames come.

    Parameters
    ----------
    config : ReconstructorConfig
        Names the estimator, and its weights if they are not where they are looked for.
    trained : Trained or None
        The network that reconstructs.
    device : torch.device or str
        Where to compute.
    calibration : Calibrating, optional
        In place of the record of the network, or of engines.

    Raises
    ------
    ConfigError, WeightsError
        If the estimator needs what is not there.
    """
    estimator = configured_estimator(config, trained, device)
    return Judge(estimator, calibration or calibration_of(trained, estimator.name))


def final_judge(config: ReconstructorConfig, trained: Trained | None) -> Callable[[Callable[[], bool]], Judge] | None:
    """Give what predicts the errors of a run that has ended: halves of its frames too, which cost too much before.

    Parameters
    ----------
    config : ReconstructorConfig
        An estimator that it names predicts the last errors too.
    trained : Trained or None
        The network that reconstructs.

    Returns
    -------
    callable or None
        Gives it to who says whether to come back at once; None where an estimator is named, halves are not calibrated,
        or nothing reconstructs.
    """
    calibration = calibration_of(trained, HalvesEstimator.name)
    if config.uncertainty is not None or not calibration.source["calibrated"]:
        return None
    net = trained.unrolled_net if trained else None
    if net is None and not config.refine_iterations:
        # Both halves of an engine that does nothing are what it began with.
        return None
    describes = PhotonNoiseEstimator() if net is None else NetworkEstimator(net)
    iterations = MOST_ITERATIONS if config.refine_iterations else 0
    return lambda interrupted: Judge(HalvesEstimator(net, describes, iterations, interrupted), calibration)
