"""What the errors of an object depend on besides the object: light, frames, misfit, refinement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.protocols import FloatArray

# Frames at a time: where their pixels lie takes twice the memory of the frames themselves.
CHUNK = 64
# Photons on a pixel below which nothing is told apart from darkness.
LEAST_PHOTONS = 1e-6


@dataclass(frozen=True, eq=False)
class Conditions:
    """Under what conditions the pixels of an object were found.

    Attributes
    ----------
    photons : Tensor, shape (Y, X)
        That fell on each pixel.
    frames : Tensor, shape (Y, X)
        How many frames they are of: of equal ones their number, of unequal ones fewer (``(sum I)^2 / sum I^2``).
    misfit : Tensor, shape (Y, X)
        Squared relative error of the exit waves under which the frames of a pixel would deviate from the model as much
        as they do beyond photon noise; negative where they deviate by less than the noise.
    iterations : int
        Iterations of an engine since the prediction, or since vacuum without a network.
    """

    photons: Tensor
    frames: Tensor
    misfit: Tensor
    iterations: int

    def covariates(self) -> Tensor:
        """Compute what predicted errors are calibrated by, besides themselves: (4, Y, X), natural logarithms.

        In this order: the Cramer-Rao bound of a pixel's photons, ``1 / (2 sqrt(photons))``, radians; by how much the
        misfit raises it; frames on the pixel; one more than the iterations.
        """
        photons = self.photons.clamp_min(LEAST_PHOTONS)
        excess = torch.log1p(4 * photons * self.misfit.clamp_min(0)) / 2
        iterations = torch.full_like(photons, float(self.iterations)).log1p()
        return torch.stack([-(2 * photons.sqrt()).log(), excess, self.frames.clamp_min(1).log(), iterations])


def relative_shape(shape: Tensor, photons: Tensor) -> Tensor:
    """Compute by how much an opinion is larger at a pixel than in the middle of the object, natural logarithm.

    How large errors are on the whole is left to the other opinion: the mean, weighted with the light, is 0.

    Parameters
    ----------
    shape : Tensor, shape (Y, X)
        Deviations.
    photons : Tensor, shape (Y, X)
        That fell on each pixel.
    """
    logs = shape.clamp_min(1e-6).log()
    return logs - (logs * photons).sum() / photons.sum().clamp_min(LEAST_PHOTONS)


def features_of(predicted: FloatArray, covariates: FloatArray, shape: FloatArray | None = None) -> FloatArray:
    """Stack what the logarithm of a deviation is linear in, shape (6, n), or (7, n) with a second opinion.

    Parameters
    ----------
    predicted : ndarray, shape (n,)
        Deviations as an estimator has them.
    covariates : ndarray, shape (4, n)
        Of `Conditions`.
    shape : ndarray, shape (n,), optional
        A second opinion, as `relative_shape` gives it.
    """
    raw = np.log(np.maximum(predicted, 1e-6))
    return np.stack([np.ones_like(raw), raw, *covariates, *([] if shape is None else [shape])])


def conditions_of(
    probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor, noise: Tensor, iterations: int
) -> Conditions:
    """Look at the conditions under which an object was found.

    Parameters
    ----------
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames.
    illumination : Tensor, shape (1, Y, X)
        Photons summed on each pixel of the object.
    deviance : Tensor, shape (n,)
        Poisson deviance of each frame a valid pixel.
    noise : Tensor, shape (n,)
        The same that photon noise alone gives; frames of which that is not known say nothing.
    iterations : int
        Since the prediction.

    Returns
    -------
    Conditions
    """
    light = intensity(probe)[0]  # (N, N)
    # A relative error e of exit waves of P photons adds 4 e^2 P to the deviance of their frame (of all its pixels).
    error = ((deviance - noise) * light.numel() / (4 * light.sum())).nan_to_num(nan=0.0)
    squares, misfit = (torch.zeros(data.object_shape, dtype=light.dtype, device=light.device) for _ in range(2))
    total = torch.zeros_like(squares)
    for part, asked in zip(data.chunks(CHUNK), torch.split(error, CHUNK), strict=True):
        each = light.expand(len(part), *light.shape)
        total += accumulate(each, part.corner, data.object_shape)
        squares += accumulate(each.square(), part.corner, data.object_shape)
        misfit += accumulate(each * asked[:, None, None], part.corner, data.object_shape)
    frames = total.square() / squares.clamp_min(1e-30)
    return Conditions(illumination[0], frames[0], (misfit / total.clamp_min(1e-30))[0], iterations)
