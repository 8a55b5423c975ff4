"""What two halves of a run's frames say of predicted errors: each half has its own, and their difference shows both.

What the halves share, a wrong probe or a network's habits, is not in the difference. On simulated scans that is so too:
there it is known how much larger the whole error of a scan is whose halves differ by so much, and what of that can be
told from its halves is what predicted errors of a run are changed by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import deviance_of, noise_of
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.calibration.conditions import conditions_of, features_of, relative_shape
from bluesky_cdi.reconstruction.uncertainty import UncertaintyEstimator
from bluesky_cdi.reconstruction.uncertainty.halves import half_objects, split
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import reconstructed

# Iterations of each half at most: it costs as much as the object of all frames, and later ones change little.
MOST_ITERATIONS = 5
# Fewest frames of which the halves tell something, and pixels that are kept.
LEAST_FRAMES, MOST_PIXELS = 8, 3000


@dataclass(frozen=True, eq=False)
class HalfPixels:
    """Pixels that both halves of the frames show.

    Attributes
    ----------
    differences : Mapping of str to ndarray, shape (n,)
        Of the halves' ``amplitude`` and of their ``phase`` (radians, wrapped), in one gauge.
    predicted : sequence of Mapping of str to ndarray, shape (n,)
        The estimator's own deviations of each half.
    covariates : sequence of ndarray, shape (4, n)
        The conditions of each half.
    photons : ndarray, shape (n,)
        Of both.
    shapes : sequence of Mapping of str to ndarray, shape (n,), or None
        A second opinion of the deviations of each half, as `relative_shape` gives it; None where there is none.
    """

    differences: Mapping[str, FloatArray]
    predicted: tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]]
    covariates: tuple[FloatArray, FloatArray]
    photons: FloatArray
    shapes: tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]] | None = None

    def scores(self, part: str, model: Sequence[float]) -> FloatArray:
        """Compute the differences over the deviations that a model has of them, (n,), not negative.

        Parameters
        ----------
        part : {'amplitude', 'phase'}
            Whose.
        model : sequence of float
            Of a `Calibration`.
        """
        variance = np.zeros(len(self.photons))
        shapes = (None, None) if self.shapes is None else tuple(each[part] for each in self.shapes)
        for predicted, covariates, shape in zip(self.predicted, self.covariates, shapes, strict=True):
            log_std = np.asarray(model) @ features_of(predicted[part], covariates, shape)
            variance += np.exp(2 * np.minimum(log_std, 2.0))
        return np.asarray(np.abs(self.differences[part]) / np.sqrt(variance))

    @staticmethod
    def width(scores: FloatArray, predicted: float) -> float:
        """Compute the logarithm of the half width that 90 % of the differences need, over the predicted one.

        Parameters
        ----------
        scores : ndarray, shape (n,)
            Differences over their deviations.
        predicted : float
            Half width, in deviations.
        """
        return math.log(max(float(np.quantile(scores, 0.9)), 1e-6) / predicted)

    @property
    def misfit(self) -> float:
        """By how much the misfit of the halves raises photon noise: logarithm, median of the pixels."""
        return float(np.median(np.concatenate([each[1] for each in self.covariates])))


@torch.no_grad()
def half_pixels(
    obj: Tensor,
    probe: Tensor,
    data: Diffraction,
    net: UnrolledNet | None,
    estimator: UncertaintyEstimator,
    iterations: int,
    seed: int = 0,
    interrupted: Callable[[], bool] = lambda: False,
) -> HalfPixels | None:
    """Reconstruct from each half of the frames, and look at the errors that are predicted of each.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex64
        The object of all frames, whose gauge the halves get.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        All frames.
    net : UnrolledNet or None
        What predicts; an engine goes on from `obj` without it.
    estimator : UncertaintyEstimator
        What predicts errors.
    iterations : int
        That are in the object; of each half `MOST_ITERATIONS` at most.
    seed : int
        Of which pixels are kept.
    interrupted : callable, optional
        Asked now and then whether to give up.

    Returns
    -------
    HalfPixels or None
        None where the frames are too few, the halves have no place in common, or it was interrupted.
    """
    if len(data) < LEAST_FRAMES:
        return None
    few = min(iterations, MOST_ITERATIONS) if net is not None else MOST_ITERATIONS
    halves = half_objects(data, probe, lambda half: reconstructed(net, obj, probe, half, few, interrupted), obj)
    if halves is None or interrupted():
        return None
    inside = np.flatnonzero(halves.both.cpu().numpy())
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(np.sort(rng.choice(inside, min(MOST_PIXELS, len(inside)), replace=False)))

    def kept(image: Tensor) -> FloatArray:
        return image.reshape(-1)[pixels.to(image.device)].cpu().numpy().astype(np.float64)

    predicted, covariates, shapes = [], [], []
    for half, found, light in zip(split(data), (halves.first, halves.second), halves.light, strict=True):
        here, light = found[None], light[None]
        deviance, noise = deviance_of(here, probe, half), noise_of(here, probe, half)
        errors = estimator(here, probe, half, light, deviance)
        predicted.append({"amplitude": kept(errors.std_amplitude), "phase": kept(errors.std_phase_rad)})
        conditions = conditions_of(probe, half, light, deviance, noise, few)
        covariates.append(np.stack([kept(each) for each in conditions.covariates()]))
        if errors.shape_amplitude is not None and errors.shape_phase_rad is not None:
            opinions = {"amplitude": errors.shape_amplitude, "phase": errors.shape_phase_rad}
            shapes.append({part: kept(relative_shape(each, light)) for part, each in opinions.items()})
    differences = {
        "amplitude": kept(halves.first.abs() - halves.second.abs()),
        "phase": kept(torch.angle(halves.first * halves.second.conj())),
    }
    return HalfPixels(
        differences,
        (predicted[0], predicted[1]),
        (covariates[0], covariates[1]),
        kept(halves.light.sum(dim=0)),
        (shapes[0], shapes[1]) if shapes else None,
    )
