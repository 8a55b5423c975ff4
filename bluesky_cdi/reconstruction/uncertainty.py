"""How far off an object is, and what each frame saw: uncertainty and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.models.unrolled import UnrolledNet, pool_under_frames
from bluesky_cdi.physics.forward import Diffraction, accumulate, extract, intensity, to_centre
from bluesky_cdi.physics.illuminated_frames import frames_at_once

# Standard deviation where no light fell: the phase is uniform in (-pi, pi].
UNKNOWN_STD_RAD = float(np.pi / np.sqrt(3))
# Frames at a time: where their pixels lie takes twice the memory of the frames themselves.
CHUNK = 64
# Rings of the radial profile that stands for a frame without a network.
PROFILE_RINGS = 16


@dataclass(frozen=True, eq=False)
class UncertaintyEstimate:
    """Predicted errors of an object, and what describes its frames.

    Attributes
    ----------
    std_amplitude, std_phase_rad : Tensor, shape (Y, X)
    embedding : Tensor, shape (n, d)
    """

    std_amplitude: Tensor
    std_phase_rad: Tensor
    embedding: Tensor


class UncertaintyEstimator(Protocol):
    """Predicts the errors of any object."""

    name: str

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


class NetworkEstimator:
    """The trained critic of an unrolled network."""

    name = "critic"

    def __init__(self, net: UnrolledNet) -> None:
        self._net = net

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


class PhotonNoiseEstimator:
    """The photon noise of each object pixel, scaled by how badly the frames over it fit.

    With L photons on a pixel, neither its amplitude nor its phase can be known better than
    ``1 / (2 sqrt(L))`` (the Cramer-Rao bound of one complex number from L counts with a perfect
    reference; Wei et al., Phys. Rev. A 102, 043516 (2020)). A frame whose deviance is above 1
    counts for so much less. Frames are described by the radial profile of their counts.
    """

    name = "photon noise"

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


def under_frames(image: Tensor, probe: Tensor, corner: Tensor, chunk: int | None = None) -> Tensor:
    """Average an image under each frame's illumination.

    Parameters
    ----------
    image : Tensor, shape (1, Y, X)
        What to average.
    probe : Tensor, shape (1, M, N, N)
        Its modes.
    corner : Tensor, shape (n, 2), int64
        First row and column of each frame's patch.
    chunk : int, optional
        Frames computed at a time, which bounds memory; default: `frames_at_once`.

    Returns
    -------
    Tensor, shape (n,)
    """
    weight, chunk = intensity(probe)[0], chunk or frames_at_once(probe)
    weight = weight / weight.sum()
    parts = [(extract(image, part, weight.shape[-1]) * weight).sum(dim=(-2, -1)) for part in torch.split(corner, chunk)]
    return torch.cat(parts)


def structure_under_frames(obj: Tensor, probe: Tensor, corner: Tensor) -> Tensor:
    """Compute the object's standard deviation under each frame's illumination: near 0 in vacuum.

    It does not depend on the object's free phase.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex
        The object.
    probe : Tensor, shape (1, M, N, N), complex
        Its modes.
    corner : Tensor, shape (n, 2), int64
        First row and column of each frame's patch.

    Returns
    -------
    Tensor, shape (n,)
    """
    real, imaginary = under_frames(obj.real, probe, corner), under_frames(obj.imag, probe, corner)
    square = under_frames(obj.abs().square(), probe, corner)
    return (square - real.square() - imaginary.square()).clamp_min(0).sqrt()
