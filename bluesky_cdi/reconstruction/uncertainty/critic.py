"""Errors as the critic of a network predicts them."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.models.unrolled import UnrolledNet, pool_under_frames
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.uncertainty.estimate import UNKNOWN_STD_RAD, UncertaintyEstimate


class NetworkEstimator:
    """The trained critic of an unrolled network."""

    name = "critic"

    def __init__(self, net: UnrolledNet) -> None:
        self._net = net
        self.passes = 1 / net.config.stages

    def __call__(
        self, obj: Tensor, probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor
    ) -> UncertaintyEstimate:
        """Predict the errors of an object; see `UncertaintyEstimator`."""
        log_std, features = self._net.judge(obj, probe, data)
        std = log_std.exp()[0]
        illuminated = illumination[0] > 0
        return UncertaintyEstimate(
            torch.where(illuminated, std[0], 1.0),
            torch.where(illuminated, std[1], UNKNOWN_STD_RAD).clamp_max(UNKNOWN_STD_RAD),
            pool_under_frames(features, probe, data, self._net.config.stem),
        )
