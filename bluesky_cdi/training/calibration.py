"""Make a trained critic's deviations true to size.

The critic learns the Gaussian likelihood of errors that it meets in training, those of early stages among them, and
the deviations that it then predicts for good objects are too large. One factor for amplitude and one for phase, found
on scenes that training has not seen, makes nine in ten errors of a typical scan lie within the central 90 % interval
(the recalibration of Kuleshov, Fenner and Ermon, Proc. Mach. Learn. Res. 80, 2796 (2018), for one quantile).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.training.losses import errors
from bluesky_cdi.training.stream import OBJECT_PX, Batch, SceneShape, SceneStream

SHAPE = SceneShape(64, 146, (60, 121), 4, 1.0)
PHOTONS = (1e4, 1e5, 1e6)
# The share of errors that is matched, and the deviations of a Gaussian within which it lies.
SHARE, WITHIN = 0.9, 1.6449
# Objects that scenes are cut from.
POOL = 32


@torch.no_grad()
def calibrate(
    net: UnrolledNet, device: torch.device, seed: int = 20_011, batches: int = 8, probe: Tensor | None = None
) -> Tensor:
    """Set the factors of a network's critic, for its own objects.

    The scenes have all faults of the training stream: wrong probes and positions, masks, background.

    Parameters
    ----------
    net : UnrolledNet
        On `device`; its `log_std_offset` is set.
    device : torch.device
        Where to compute.
    seed : int
        Of the scenes.
    batches : int
        Batches of scenes at each dose.
    probe : Tensor, shape (M, N, N), complex, optional
        Of all scenes; each has its own if absent.

    Returns
    -------
    Tensor, shape (2,)
        The factors on the deviations of amplitude and phase.
    """
    net.log_std_offset.zero_()
    shape = SHAPE if probe is None else SHAPE.of_frames(probe.shape[-1])
    object_px, offsets = max(OBJECT_PX, shape.grid_px), []
    stream = SceneStream(device, seed, PHOTONS[:2], POOL, object_px, probe)
    for batch in stream.draw_at(PHOTONS, batches, shape):
        offsets += [(scan.quantile(SHARE, dim=1) / WITHIN).log() for scan in _surprise(net, batch)]
    # The mean over scans: the few in which all is hard would rule the quantile of all pixels.
    net.log_std_offset.copy_(torch.stack(offsets).mean(dim=0))
    return net.log_std_offset.exp()


def _surprise(net: UnrolledNet, batch: Batch, most: int = 100_000) -> list[Tensor]:
    """Compute errors of amplitude and phase over their predicted deviations: (2, pixels) a scan, at most `most`."""
    data = batch.data
    illumination = summed_illumination(batch.probe, data)
    illuminated = illumination > MEASURED_SHARE * peak_intensity(batch.probe)
    obj = net(batch.probe, data)[-1]
    log_std, _ = net.judge(obj, batch.probe, data)
    ratios = errors(obj, batch.truth, illuminated.to(illumination.dtype)).abs() * torch.exp(-log_std)  # (B, 2, Y, X)
    scans = (ratio[:, here] for ratio, here in zip(ratios, illuminated, strict=True))
    # A quantile needs no more, and PyTorch's takes no more than some millions.
    return [scan[:, :: -(-scan.shape[1] // most)] for scan in scans]
