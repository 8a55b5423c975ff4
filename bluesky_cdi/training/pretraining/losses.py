"""How badly what is hidden is predicted: Poisson deviance, of hidden patches and of hidden frames.

Of single frames the object is judged by all pixels, for none of them is known from another frame: as it is, and as a
start, after some steps of error reduction with the shown pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bluesky_cdi.models.frame_decoders import MaskedFrameModel, Predicted
from bluesky_cdi.models.frame_encoder import Shown, patches_of
from bluesky_cdi.physics.forward import Diffraction, intensity, modulus_step
from bluesky_cdi.physics.likelihood import poisson_deviance
from bluesky_cdi.training.losses import DARK_PHOTONS
from bluesky_cdi.training.pretraining.scans import Scans

# After which a single frame's object is judged as a start.
ERROR_REDUCTIONS = 5


class MaskedLosses(nn.Module):
    """`masked_losses` as a module, so that processes can share its gradients.

    Parameters
    ----------
    model : MaskedFrameModel
        Learns.
    """

    def __init__(self, model: MaskedFrameModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, scans: Scans, shown: Shown) -> dict[str, Tensor]:
        """Compute the losses of one batch; see `masked_losses`."""
        return masked_losses(self.model(scans.probe, scans.data, shown), scans, self.model.config.patch)


def masked_losses(found: Predicted, scans: Scans, patch: int) -> dict[str, Tensor]:
    """Compute the losses: ``patches``, of what the decoder predicts, and ``frames``, of what the forward model does.

    Of single frames ``reduced`` is a third: ``frames`` after some steps of error reduction. All are means of
    ``log(1 + deviance a hidden pixel)``, of a patch and of a frame: a misfit of a tenth then weighs alike at all doses
    and in all parts of a frame, and photon noise, whose deviance is 1, bounds what can be gained.

    Parameters
    ----------
    found : Predicted
        What the model predicts.
    scans : Scans
        The scans.
    patch : int
        Pixels along a side of a patch.
    """
    hidden = hidden_pixels(found.encoded.shown, scans.data, patch)
    given = scans.data[found.encoded.shown.frames]
    order = given.propagator.to_detector
    theirs = order(hidden[found.encoded.shown.frames])
    deviance = poisson_deviance(found.log_rate.exp(), order(given.counts))
    sums = [patches_of(each[:, None], patch).sum(dim=2) for each in (deviance * theirs, theirs.float())]  # (v, T)
    losses = {"patches": _mean_log(sums[0] / sums[1].clamp_min(1), sums[1] > 0)}
    objects = {"frames": found.object}
    if scans.single:
        seen = ~hidden if scans.data.valid is None else ~hidden & scans.data.valid
        objects["reduced"] = reduced(found.object, scans, seen, ERROR_REDUCTIONS)
        hidden = torch.ones_like(hidden) if scans.data.valid is None else scans.data.valid.expand_as(hidden)
    for name, obj in objects.items():
        losses[name] = _mean_log(hidden_deviance(obj, scans, hidden), hidden.any(dim=(-2, -1)))
    return losses


def reduced(obj: Tensor, scans: Scans, seen: Tensor, steps: int) -> Tensor:
    """Make steps of error reduction: the probe, a box, is the support.

    Parameters
    ----------
    obj : Tensor, shape (B, N, N), complex64
        Of single frames.
    scans : Scans
        The frames.
    seen : Tensor, shape (B, N, N), bool
        Pixels whose counts are known, in the working order.
    steps : int
        How many.

    Returns
    -------
    Tensor, shape (B, N, N), complex64
    """
    data, probe = scans.data, scans.probe
    light = intensity(probe)
    for _ in range(steps):
        change, _ = modulus_step(probe * obj[:, None], data.counts, data.background, seen, data.propagator)
        obj = obj + (probe.conj() * change).sum(dim=1) / light.clamp_min(DARK_PHOTONS)
    return obj


def hidden_deviance(obj: Tensor, scans: Scans, hidden: Tensor) -> Tensor:
    """Compute each frame's deviance a hidden pixel under an object.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex64
        The objects.
    scans : Scans
        Their frames, and the probes with which frames are predicted.
    hidden : Tensor, shape (n, N, N), bool
        What counts.

    Returns
    -------
    Tensor, shape (n,)
        0 where nothing of a frame is hidden.
    """
    data = scans.judging_data
    rate = data.rate(data.probes(scans.judging_probe), data.patches(obj)) + DARK_PHOTONS
    return (poisson_deviance(rate, data.counts) * hidden).sum(dim=(-2, -1)) / hidden.sum(dim=(-2, -1)).clamp_min(1)


def hidden_pixels(shown: Shown, data: Diffraction, patch: int) -> Tensor:
    """Mark valid pixels that the encoder was not given, in the working order: (n, N, N), bool.

    Parameters
    ----------
    shown : Shown
        What it was given.
    data : Diffraction
        All frames.
    patch : int
        Pixels along a side of a patch.
    """
    size = data.counts.shape[-1]
    hidden = torch.ones(len(data), size, size, dtype=torch.bool, device=data.corner.device)
    hidden = hidden.index_copy(0, shown.frames, ~data.propagator.to_working(shown.pixels(size, patch)))
    return hidden if data.valid is None else hidden & data.valid


def _mean_log(deviance: Tensor, counts: Tensor) -> Tensor:
    """Average ``log(1 + deviance)`` where it counts."""
    total = (deviance.log1p() * counts).sum()
    return total / counts.sum().clamp_min(1)
