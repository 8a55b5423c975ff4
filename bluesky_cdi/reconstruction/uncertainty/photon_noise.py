"""Errors as the photon noise makes them, without a network."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity, to_centre
from bluesky_cdi.reconstruction.uncertainty.estimate import UNKNOWN_STD_RAD, UncertaintyEstimate

# Frames at a time: where their pixels lie takes twice the memory of the frames themselves.
CHUNK = 64
# Rings of the radial profile that stands for a frame without a network.
PROFILE_RINGS = 16


class PhotonNoiseEstimator:
    """The photon noise of each object pixel, scaled by how badly the frames over it fit.

    With L photons on a pixel, neither its amplitude nor its phase can be known better than
    ``1 / (2 sqrt(L))`` (the Cramer-Rao bound of one complex number from L counts with a perfect
    reference; Wei et al., Phys. Rev. A 102, 043516 (2020)). A frame whose deviance is above 1
    counts for so much less. Frames are described by the radial profile of their counts.
    """

    name = "photon noise"
    passes = 0.0

    def __call__(
        self, obj: Tensor, probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor
    ) -> UncertaintyEstimate:
        """Predict the errors of an object; see `UncertaintyEstimator`."""
        effective, profiles = torch.zeros(data.object_shape, dtype=probe.real.dtype, device=probe.device), []
        for part, misfit in zip(data.chunks(CHUNK), torch.split(deviance, CHUNK), strict=True):
            trusted = intensity(probe)[0] / misfit.clamp_min(1.0)[:, None, None]  # (n, N, N)
            effective += accumulate(trusted, part.corner, data.object_shape)
            profiles.append(radial_profile(part.counts))
        std = 0.5 / effective[0].clamp_min(1e-6).sqrt()
        return UncertaintyEstimate(std.clamp_max(1.0), std.clamp_max(UNKNOWN_STD_RAD), torch.cat(profiles))


def radial_profile(counts: Tensor, rings: int = PROFILE_RINGS) -> Tensor:
    """Compute the logarithm of the mean counts in rings around the direct beam.

    Parameters
    ----------
    counts : Tensor, shape (n, N, N)
        Frames, in the propagator's working order.
    rings : int
        How many.

    Returns
    -------
    Tensor, shape (n, rings)
    """
    size = counts.shape[-1]
    index = torch.arange(size, device=counts.device) - size // 2
    ring = (torch.hypot(index[:, None].float(), index[None, :].float()) * 2 * rings / size).long().clamp_max(rings - 1)
    flat = to_centre(counts).reshape(len(counts), -1)
    total = torch.zeros(len(counts), rings, device=counts.device).index_add(1, ring.reshape(-1), flat)
    pixels = torch.bincount(ring.reshape(-1), minlength=rings)
    return torch.log1p(total / pixels)
