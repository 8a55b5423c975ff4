"""How far off an object is, and what each frame saw: uncertainty and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.models.canvas import CanvasNet, pool_under_frames
from bluesky_cdi.physics.forward import Diffraction, accumulate, extract, intensity, to_centre

# Standard deviation where no light fell: the phase is uniform in (-pi, pi].
UNKNOWN_STD_RAD = float(np.pi / np.sqrt(3))
# Rings of the radial profile that stands for a frame without a network.
PROFILE_RINGS = 16


@dataclass(frozen=True, eq=False)
class Appraisal:
    """Judgement of an object.

    Attributes
    ----------
    std_amplitude, std_phase_rad : Tensor, shape (Y, X)
    embedding : Tensor, shape (n, d)
    """

    std_amplitude: Tensor
    std_phase_rad: Tensor
    embedding: Tensor


class Appraiser(Protocol):
    """Judges any object estimate."""

    name: str

    def __call__(self, canvas: Tensor, probe: Tensor, data: Diffraction, light: Tensor, deviance: Tensor) -> Appraisal:
        """Judge; `canvas` and `light` are (1, Y, X), `probe` (1, M, N, N), `deviance` (n,)."""


class CriticAppraiser:
    """The trained critic of a canvas network."""

    name = "critic"

    def __init__(self, net: CanvasNet) -> None:
        self._net = net

    def __call__(self, canvas: Tensor, probe: Tensor, data: Diffraction, light: Tensor, deviance: Tensor) -> Appraisal:
        """Judge an object."""
        log_std, features = self._net.judge(canvas, probe, data)
        std = log_std.exp()[0]
        lit = light[0] > 0
        return Appraisal(
            torch.where(lit, std[0], 1.0),
            torch.where(lit, std[1], UNKNOWN_STD_RAD).clamp_max(UNKNOWN_STD_RAD),
            pool_under_frames(features, probe, data, self._net.config.stem),
        )


class PhotonNoiseAppraiser:
    """The photon noise of each canvas pixel, scaled by how badly the frames over it fit.

    With L photons on a pixel, neither its amplitude nor its phase can be known better than
    ``1 / (2 sqrt(L))`` (the Cramer-Rao bound of one complex number from L counts with a perfect
    reference; Wei et al., Phys. Rev. A 102, 043516 (2020)). A frame whose deviance is above 1
    counts for so much less. Frames are described by the radial profile of their counts.
    """

    name = "photon noise"

    def __call__(self, canvas: Tensor, probe: Tensor, data: Diffraction, light: Tensor, deviance: Tensor) -> Appraisal:
        """Judge an object."""
        trusted = intensity(probe)[0] / deviance.clamp_min(1.0)[:, None, None]  # (n, N, N)
        effective = accumulate(trusted, data.corner, data.canvas_shape)[0]
        std = 0.5 / effective.clamp_min(1e-6).sqrt()
        return Appraisal(std.clamp_max(1.0), std.clamp_max(UNKNOWN_STD_RAD), radial_profile(data.counts))


def radial_profile(counts: Tensor, rings: int = PROFILE_RINGS) -> Tensor:
    """Logarithm of the mean counts in rings around the direct beam: (n, N, N) to (n, rings)."""
    size = counts.shape[-1]
    index = torch.arange(size, device=counts.device) - size // 2
    ring = (torch.hypot(index[:, None].float(), index[None, :].float()) * 2 * rings / size).long().clamp_max(rings - 1)
    flat = to_centre(counts).reshape(len(counts), -1)
    total = torch.zeros(len(counts), rings, device=counts.device).index_add(1, ring.reshape(-1), flat)
    pixels = torch.bincount(ring.reshape(-1), minlength=rings)
    return torch.log1p(total / pixels)


def under_frames(image: Tensor, probe: Tensor, corner: Tensor, chunk: int = 256) -> Tensor:
    """Average an image under each frame's illumination.

    Parameters
    ----------
    image : Tensor, shape (1, Y, X)
    probe : Tensor, shape (1, M, N, N)
    corner : Tensor, shape (n, 2), int64

    Returns
    -------
    Tensor, shape (n,)
    """
    weight = intensity(probe)[0]
    weight = weight / weight.sum()
    parts = [(extract(image, part, weight.shape[-1]) * weight).sum(dim=(-2, -1)) for part in torch.split(corner, chunk)]
    return torch.cat(parts)


def structure_under_frames(canvas: Tensor, probe: Tensor, corner: Tensor) -> Tensor:
    """Standard deviation of the object under each frame's illumination: near 0 in vacuum, shape (n,).

    It does not depend on the object's free phase.
    """
    real, imaginary = under_frames(canvas.real, probe, corner), under_frames(canvas.imag, probe, corner)
    square = under_frames(canvas.abs().square(), probe, corner)
    return (square - real.square() - imaginary.square()).clamp_min(0).sqrt()
