"""Errors as several predict them that can disagree: heads beside a network, or whole networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from bluesky_cdi.models.heads import ErrorHeads, Kind, Predicted
from bluesky_cdi.models.unrolled import UnrolledNet, pool_under_frames, run_unet
from bluesky_cdi.physics.forward import Diffraction, peak_intensity
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.reconstruction.uncertainty.estimate import UNKNOWN_STD_RAD, UncertaintyEstimate
from bluesky_cdi.reconstruction.uncertainty.halves import in_gauge_of
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import reconstructed

logger = logging.getLogger(__name__)

# Of the channels that dropout switches off: the same for each object, so that the same is told of the same.
SEED = 0


class HeadsEstimator:
    """Heads beside a network, of one kind; see `models.heads`.

    Parameters
    ----------
    kind : {'ensemble', 'dropout', 'variational'}
        Which of them.
    net : UnrolledNet
        The network; its critic describes the frames.
    heads : ErrorHeads
        Trained beside it.
    """

    def __init__(self, kind: Kind, net: UnrolledNet, heads: ErrorHeads) -> None:
        self.name: str = kind
        self._kind, self._net, self._heads = kind, net, heads
        decoders = 1 if kind == "variational" else heads.config.members
        # The critic, and of the heads' U-Net the way down once and the way up for each.
        self.passes = (1 + 0.5 + 0.5 * decoders) / net.config.stages
        if kind == "ensemble":
            _tell_of_one(decoders)

    def __call__(
        self, obj: Tensor, probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor
    ) -> UncertaintyEstimate:
        """Predict the errors of an object; see `UncertaintyEstimator`."""
        levels, channels = self._heads.encode(obj, probe, data)
        self._heads.reseed(SEED)
        predicted = self._heads.predict(self._kind, levels, (obj.shape[1], obj.shape[2]))
        _, features = run_unet(self._net.critic, channels)
        return estimated(predicted, illumination, pool_under_frames(features, probe, data, self._net.config.stem))


class DeepEnsembleEstimator:
    """Several networks, each of which reconstructs and predicts the error of what it has found.

    Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017.

    Parameters
    ----------
    nets : sequence of UnrolledNet
        The first describes the frames.
    iterations : int
        Iterations of LSQ-ML on each one's prediction: as many as the object has seen.
    """

    name = "deep ensemble"

    def __init__(self, nets: Sequence[UnrolledNet], iterations: int = 0) -> None:
        self._nets, self._iterations = tuple(nets), iterations
        described = 1.5 / nets[0].config.stages
        self.passes = sum(net.config.passes + 1 / net.config.stages for net in nets) + described
        _tell_of_one(len(nets))

    def __call__(
        self, obj: Tensor, probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor
    ) -> UncertaintyEstimate:
        """Predict the errors of an object; see `UncertaintyEstimator`."""
        weight = torch.where(illumination > MEASURED_SHARE * peak_intensity(probe), illumination, 0.0)[0]
        means, log_stds = [], []
        for net in self._nets:
            found = reconstructed(net, obj, probe, data, self._iterations)
            log_stds.append(net.judge(found, probe, data)[0])
            alike = in_gauge_of(obj[0], found[0], weight) if bool(weight.any()) else found[0]
            means.append(torch.stack([obj[0].abs() - alike.abs(), torch.angle(obj[0] * alike.conj())])[None])
        first = self._nets[0]
        _, features = first.judge(obj, probe, data, without_phase=True)
        predicted = Predicted(torch.stack(means), torch.stack(log_stds))
        return estimated(predicted, illumination, pool_under_frames(features, probe, data, first.config.stem))


def estimated(predicted: Predicted, illumination: Tensor, embedding: Tensor) -> UncertaintyEstimate:
    """Make an estimate of what several say of one object.

    Its error is as large as the second moment of theirs together: their deviations, how far they differ, and what all
    of them say that it is off.

    Parameters
    ----------
    predicted : Predicted
        Of one object.
    illumination : Tensor, shape (1, Y, X)
        Photons per pixel; without any, nothing is known.
    embedding : Tensor, shape (n, d)
        Of the frames.
    """
    epistemic, aleatoric = (each[0] for each in predicted.variances())
    std = (epistemic + aleatoric + predicted.bias()[0].square()).sqrt()
    illuminated = illumination[0] > 0
    apart = torch.where(illuminated, epistemic, 0.0).sqrt()
    return UncertaintyEstimate(
        torch.where(illuminated, std[0], 1.0),
        torch.where(illuminated, std[1], UNKNOWN_STD_RAD).clamp_max(UNKNOWN_STD_RAD),
        embedding,
        apart[0],
        apart[1].clamp_max(UNKNOWN_STD_RAD),
    )


def _tell_of_one(members: int) -> None:
    if members == 1:
        logger.warning("an ensemble of one has nobody to disagree with: its epistemic part is 0")
