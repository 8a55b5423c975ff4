"""How much light falls where: on each pixel of an object, and on a frame through vacuum.

`illumination_shares` says from what share of it a pixel counts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.protocols import FloatArray

# Few frames of a scan lie on vacuum, and bright speckles and flux fluctuations make the largest one an outlier.
VACUUM_QUANTILE = 0.9


def summed_illumination(probe: Tensor, data: Diffraction) -> Tensor:
    """Sum the light of all frames on each pixel of the objects.

    Frames are taken as many at a time as their device computes.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Illumination of each scene; its scale gives the sum's unit.
    data : Diffraction
        Frames on their objects; of them only where they lie and their flux count.

    Returns
    -------
    Tensor, shape (B, Y, X), real
        Photons per pixel.
    """
    total = torch.zeros(data.object_shape, dtype=probe.real.dtype, device=probe.device)
    for part in data.chunks(frames_at_once(probe)):
        total += accumulate(intensity(part.probes(probe)), part.corner, part.object_shape, part.scene)
    return total


def photons_through_vacuum(photons: FloatArray) -> float:
    """Estimate the photons of a frame without a sample, which set a probe's scale.

    Parameters
    ----------
    photons : ndarray, shape (n,)
        Photons of each frame on its valid pixels.

    Returns
    -------
    float
        The quantile 0.9: nearly those of a frame through vacuum; 0 without frames.
    """
    return float(np.quantile(photons, VACUUM_QUANTILE)) if len(photons) else 0.0
