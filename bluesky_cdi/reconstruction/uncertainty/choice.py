"""Uncertainty estimators by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.reconstruction.uncertainty.critic import NetworkEstimator
from bluesky_cdi.reconstruction.uncertainty.estimate import UncertaintyEstimator
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import HalvesEstimator
from bluesky_cdi.reconstruction.uncertainty.photon_noise import PhotonNoiseEstimator

# Iterations after which an engine that goes on from the object of all frames has found that of half of them.
ENGINE_ITERATIONS = 10


def uncertainty_estimator(name: str | None, net: UnrolledNet | None, *, iterations: int = 0) -> UncertaintyEstimator:
    """Give the estimator of a name.

    Parameters
    ----------
    name : str or None
        Of the estimator; None: the critic of the network, or without one the photon noise.
    net : UnrolledNet or None
        The network that reconstructs.
    iterations : int
        Iterations of an engine that refine the object, which an estimator that reconstructs has to make too.

    Raises
    ------
    ConfigError
        If no estimator has the name, or it needs a network and there is none.
    """
    if name is None:
        name = PhotonNoiseEstimator.name if net is None else NetworkEstimator.name
    if name not in ESTIMATORS:
        raise ConfigError(f"no uncertainty estimator is called {name!r}; there are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](net, iterations)


def _critic(net: UnrolledNet | None, _: int) -> UncertaintyEstimator:
    return NetworkEstimator(_needed(net, NetworkEstimator.name))


def _halves(net: UnrolledNet | None, iterations: int) -> UncertaintyEstimator:
    if net is None:
        return HalvesEstimator(None, PhotonNoiseEstimator(), iterations or ENGINE_ITERATIONS)
    return HalvesEstimator(net, NetworkEstimator(net), iterations)


def _needed(net: UnrolledNet | None, name: str) -> UnrolledNet:
    if net is None:
        raise ConfigError(
            f"the uncertainty estimator {name!r} needs a network, and an engine alone has none: reconstruct with pinn, "
            f"or choose {PhotonNoiseEstimator.name!r}"
        )
    return net


# How each is made of the network that reconstructs, and of the iterations that refine.
ESTIMATORS: Mapping[str, Callable[[UnrolledNet | None, int], UncertaintyEstimator]] = {
    NetworkEstimator.name: _critic,
    PhotonNoiseEstimator.name: lambda *_: PhotonNoiseEstimator(),
    HalvesEstimator.name: _halves,
}
