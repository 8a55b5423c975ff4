"""What refines a network's object: LSQ-ML with the network's prediction as the prior.

In few photons iterations without a prior soon fit the noise: they raised the error of the network's object.
The critic says how far off the prediction is, and so how many photons it takes to overrule it.
"""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings, Prior
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction

# Three fifths of few iterations go in mini-batches, each of a tenth of the frames, then all frames together, which
# averages out the noise that their order left; decision 0013 has the measurements.
BATCHES, LEAST_BATCH = 10, 8
IN_BATCHES, MOST_IN_BATCHES = 3 / 5, 3
# The Poisson step asks for two thirds of the change that explains many counts: longer steps make up for a part.
STEP = 1.3


def prior_of(net: UnrolledNet, prediction: Tensor, probe: Tensor, data: Diffraction) -> Prior:
    """Make the network's object a prior, as sure as its critic says.

    Parameters
    ----------
    net : UnrolledNet
        The network.
    prediction : Tensor, shape (1, Y, X), complex64
        What it made of `data` under `probe`.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames.
    """
    log_std, _ = net.judge(prediction, probe, data)  # (1, 2, Y, X)
    # Amplitude and phase stand for the two parts of a complex number near the unit circle.
    variance = (2 * log_std).exp().mean(dim=1)
    return Prior(prediction, 1 / (4 * variance))


def refiner(prior: Prior, frames: int, iterations: int, seed: int = 0, batch: int | None = None) -> Lsqml:
    """Make the engine that goes on from a prior.

    Parameters
    ----------
    prior : Prior
        Object and weights, as `prior_of` makes them.
    frames : int
        How many there are; mini-batches are a tenth of them.
    iterations : int
        How many will be made; the last of them take all frames together.
    seed : int
        Seed of the order of frames.
    batch : int, optional
        Frames a mini-batch.
    """
    size = batch or max(LEAST_BATCH, frames // BATCHES)
    together_from = min(MOST_IN_BATCHES, int(IN_BATCHES * iterations))
    return Lsqml(LsqmlSettings(batch=size, together_from=together_from, step=STEP), seed, prior)
