"""Noise as two halves of the frames show it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bluesky_cdi.engines.lsqml import Lsqml
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution, iterate
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.refinement import prior_of, refiner
from bluesky_cdi.reconstruction.uncertainty.estimate import (
    UNKNOWN_STD_RAD,
    UncertaintyEstimate,
    UncertaintyEstimator,
)
from bluesky_cdi.reconstruction.uncertainty.halves import half_objects, noise_of, window_of


class HalvesEstimator:
    """The noise that two reconstructions show, each from half of the frames, all of the probe's modes as they are.

    It sees what photons, and errors of single frames and positions, do to an object, and nothing that both halves have
    in common. Of a single frame, or where the halves have no place in common at all, nothing is known.

    Parameters
    ----------
    net : UnrolledNet or None
        Reconstructs from each half; without it LSQ-ML goes on from the object of all frames.
    describes : UncertaintyEstimator
        Gives the frames' embeddings, and a second opinion of where errors are larger and smaller.
    iterations : int
        Iterations of LSQ-ML on each half, with the network's prediction as the prior: as many as the object of all
        frames has seen.
    interrupted : callable, optional
        Asked after each of these whether to leave the rest out.
    """

    name = "halves"

    def __init__(
        self,
        net: UnrolledNet | None,
        describes: UncertaintyEstimator,
        iterations: int = 0,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._net, self._describes, self._iterations, self._interrupted = net, describes, iterations, interrupted
        self.passes = describes.passes + (0.0 if net is None else 2.0 * net.config.passes)

    def __call__(
        self, obj: Tensor, probe: Tensor, data: Diffraction, illumination: Tensor, deviance: Tensor
    ) -> UncertaintyEstimate:
        """Predict the errors of an object; see `UncertaintyEstimator`."""
        described = self._describes(obj, probe, data, illumination, deviance)

        def from_half(half: Diffraction) -> Tensor:
            return reconstructed(self._net, obj, probe, half, self._iterations, self._interrupted)

        halves = half_objects(data, probe, from_half, obj)
        if halves is None:
            noise = torch.full_like(obj.real.expand(2, -1, -1), torch.inf)
        else:
            noise = noise_of(halves, window_of(probe.shape[-1]))
        return UncertaintyEstimate(
            noise[0].clamp_max(1.0),
            noise[1].clamp_max(UNKNOWN_STD_RAD),
            described.embedding,
            shape_amplitude=described.std_amplitude,
            shape_phase_rad=described.std_phase_rad,
            # Without a network both go on from the object of all frames.
            halves=None if self._net is None else halves,
        )


def reconstructed(
    net: UnrolledNet | None,
    obj: Tensor,
    probe: Tensor,
    data: Diffraction,
    iterations: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Reconstruct from some frames, as from all: predict and refine; without a network go on from an object.

    Parameters
    ----------
    net : UnrolledNet or None
        The network.
    obj : Tensor, shape (1, Y, X), complex64
        The object to go on from.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes, which stay.
    data : Diffraction
        The frames.
    iterations : int
        Of LSQ-ML.
    interrupted : callable, optional
        Asked after each iteration whether to end with what is there.

    Returns
    -------
    Tensor, shape (1, Y, X), complex64
    """
    if net is not None:
        obj = predict_object(net, probe, data)
    if not iterations:
        return obj
    engine: Engine = Lsqml() if net is None else refiner(prior_of(net, obj, probe, data), len(data), iterations)
    start, schedule = Solution.start(obj, probe, data), Schedule(iterations, probe_from=-1)
    return iterate(engine, start, schedule, lambda *_: not interrupted()).solution.object
