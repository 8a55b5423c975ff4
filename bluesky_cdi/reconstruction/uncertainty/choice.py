"""Uncertainty estimators by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.heads import KINDS, ErrorHeads, Kind
from bluesky_cdi.models.heads_weights import load_heads
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import Trained, load_weights
from bluesky_cdi.reconstruction.uncertainty.critic import NetworkEstimator
from bluesky_cdi.reconstruction.uncertainty.estimate import UncertaintyEstimator
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import HalvesEstimator
from bluesky_cdi.reconstruction.uncertainty.members import DeepEnsembleEstimator, HeadsEstimator
from bluesky_cdi.reconstruction.uncertainty.photon_noise import PhotonNoiseEstimator

# Iterations after which an engine that goes on from the object of all frames has found that of half of them.
ENGINE_ITERATIONS = 10


@dataclass(frozen=True, eq=False)
class Means:
    """What estimators are made of.

    Attributes
    ----------
    net : UnrolledNet or None
        The network that reconstructs.
    iterations : int
        Iterations of an engine that refine the object, which an estimator that reconstructs makes too.
    heads : ErrorHeads or None
        Trained beside the network.
    members : sequence of UnrolledNet
        Networks that predict with it.
    """

    net: UnrolledNet | None
    iterations: int = 0
    heads: ErrorHeads | None = None
    members: Sequence[UnrolledNet] = ()

    def net_for(self, name: str) -> UnrolledNet:
        """Give the network to an estimator that needs one.

        Raises
        ------
        ConfigError
            If there is none.
        """
        if self.net is None:
            raise ConfigError(
                f"the uncertainty estimator {name!r} needs a network, and an engine alone has none: reconstruct with "
                f"pinn, or choose {PhotonNoiseEstimator.name!r} or {HalvesEstimator.name!r}"
            )
        return self.net


def uncertainty_estimator(
    name: str | None,
    net: UnrolledNet | None,
    *,
    iterations: int = 0,
    heads: ErrorHeads | None = None,
    members: Sequence[UnrolledNet] = (),
) -> UncertaintyEstimator:
    """Give the estimator of a name.

    Parameters
    ----------
    name : str or None
        Of the estimator; None: the critic of the network, or without one the photon noise.
    net : UnrolledNet or None
        The network that reconstructs.
    iterations : int
        Iterations of an engine that refine the object, which an estimator that reconstructs makes too.
    heads : ErrorHeads, optional
        Trained beside the network, for the estimators ``ensemble``, ``dropout`` and ``variational``.
    members : sequence of UnrolledNet
        The networks of a ``deep ensemble`` besides `net`.

    Raises
    ------
    ConfigError
        If no estimator has the name, or it needs a network or heads and there are none.
    """
    if name is None:
        name = PhotonNoiseEstimator.name if net is None else NetworkEstimator.name
    if name not in ESTIMATORS:
        raise ConfigError(f"no uncertainty estimator is called {name!r}; there are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](Means(net, iterations, heads, members))


def configured_estimator(
    config: ReconstructorConfig, trained: Trained | None, device: torch.device | str = "cpu"
) -> UncertaintyEstimator:
    """Give the estimator that is configured, with the weights that it needs.

    Parameters
    ----------
    config : ReconstructorConfig
        Names the estimator, and its weights if they are not where they are looked for.
    trained : Trained or None
        The network that reconstructs.
    device : torch.device or str
        Where to compute.

    Raises
    ------
    ConfigError
        As `uncertainty_estimator`.
    WeightsError
        If weights that it needs are not there, or don't fit the network.
    """
    name, files = config.uncertainty, config.uncertainty_weights
    net = trained.unrolled_net if trained else None
    heads, members = None, list[UnrolledNet]()
    if name in KINDS and trained is not None:
        heads = load_heads(trained, Path(files[0]) if files else None, device)
    elif name == DeepEnsembleEstimator.name:
        members = [load_weights(file, device).unrolled_net for file in files]
    return uncertainty_estimator(name, net, iterations=config.refine_iterations, heads=heads, members=members)


def _critic(means: Means) -> UncertaintyEstimator:
    return NetworkEstimator(means.net_for(NetworkEstimator.name))


def _halves(means: Means) -> UncertaintyEstimator:
    if means.net is None:
        return HalvesEstimator(None, PhotonNoiseEstimator(), means.iterations or ENGINE_ITERATIONS)
    return HalvesEstimator(means.net, NetworkEstimator(means.net), means.iterations)


def _of_kind(kind: Kind) -> Callable[[Means], UncertaintyEstimator]:
    def made(means: Means) -> UncertaintyEstimator:
        net = means.net_for(kind)
        if means.heads is None:
            raise ConfigError(
                f"the uncertainty estimator {kind!r} needs heads that were trained beside the network: give them, or "
                "train some with bluesky-cdi train-heads"
            )
        return HeadsEstimator(kind, net, means.heads)

    return made


def _deep_ensemble(means: Means) -> UncertaintyEstimator:
    nets = [means.net_for(DeepEnsembleEstimator.name), *means.members]
    return DeepEnsembleEstimator(nets, means.iterations)


# How each is made, the cheapest first.
ESTIMATORS: Mapping[str, Callable[[Means], UncertaintyEstimator]] = {
    PhotonNoiseEstimator.name: lambda _: PhotonNoiseEstimator(),
    NetworkEstimator.name: _critic,
    **{kind: _of_kind(kind) for kind in ("variational", "ensemble", "dropout")},
    HalvesEstimator.name: _halves,
    DeepEnsembleEstimator.name: _deep_ensemble,
}
