"""The network's object: as many passes as it is for, as long as they explain the frames better."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from bluesky_cdi.engines.ptychography import deviance_of
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction

# Share of the deviance by which another pass must lower it.
LEAST_GAIN = 0.005
# Passes in which a network looks for the probe, at most, and the share of the deviance by which each must lower it.
PROBE_PASSES, PROBE_GAIN = 8, 0.01

# Gives the probe (1, M, N, N) that frames show, begun at one of the same shape.
ProbeFinder = Callable[[Tensor, Diffraction], Tensor]


def predict_object(net: UnrolledNet, probe: Tensor, data: Diffraction, start: Tensor | None = None) -> Tensor:
    """Make passes of a network in a row, each from the object of the one before.

    A pass after the first counts, and is followed by another, only if it explains the frames clearly better.

    Parameters
    ----------
    net : UnrolledNet
        Its configuration says how many passes there are at most.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames.
    start : Tensor, shape (1, Y, X), complex64, optional
        What is known of the object. A network for one pass begins in vacuum whatever it is given.

    Returns
    -------
    Tensor, shape (1, Y, X), complex64
    """
    return predict(net, probe, data, start)[0]


def probe_finder(net: UnrolledNet) -> ProbeFinder:
    """Give what finds a probe by passes of a network from vacuum, each with the probe of the one before.

    They go on as long as object and probe explain the frames better.

    Parameters
    ----------
    net : UnrolledNet
        Any: the steps of the probe need no training.
    """

    def find(probe: Tensor, data: Diffraction) -> Tensor:
        lowest = math.inf
        for _ in range(PROBE_PASSES):
            objects, probes = net.solve(probe, data, finds_probe=True)
            deviance = mean_deviance(objects[-1], probes[-1], data)
            if not deviance < (1 - PROBE_GAIN) * lowest:
                break
            probe, lowest = probes[-1], deviance
        return probe

    return find


def predict(
    net: UnrolledNet,
    probe: Tensor,
    data: Diffraction,
    start: Tensor | None = None,
    passes: int | None = None,
    *,
    finds_probe: bool = False,
) -> tuple[Tensor, Tensor]:
    """Make passes of a network in a row, as `predict_object` does, and say with which probe.

    Parameters
    ----------
    net : UnrolledNet
        Its configuration says how many passes there are at most.
    probe : Tensor, shape (1, M, N, N), complex64
        The assumed one. A pass begins with that of the pass before.
    data : Diffraction
        The frames.
    start : Tensor, shape (1, Y, X), complex64, optional
        What is known of the object.
    passes : int, optional
        Most passes; default: those of its configuration.
    finds_probe : bool
        Whether its stages change the probe too.

    Returns
    -------
    object : Tensor, shape (1, Y, X), complex64
    probe : Tensor, shape (1, M, N, N), complex64
        The assumed one itself, unless it is to be found.
    """

    def one_pass(probe: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        if not finds_probe:
            return net(probe, data, start)[-1], probe
        objects, probes = net.solve(probe, data, start, finds_probe=True)
        return objects[-1], probes[-1]

    obj, probe = one_pass(probe, start if net.config.passes > 1 else None)
    passes = net.config.passes if passes is None else passes
    lowest = mean_deviance(obj, probe, data) if passes > 1 else math.nan
    for _ in range(passes - 1):
        further, its_probe = one_pass(probe, obj)
        deviance = mean_deviance(further, its_probe, data)
        if not deviance < (1 - LEAST_GAIN) * lowest:
            break
        obj, probe, lowest = further, its_probe, deviance
    return obj, probe


def mean_deviance(obj: Tensor, probe: Tensor, data: Diffraction, of: Tensor | None = None) -> float:
    """Compute the mean deviance per pixel of frames.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex64
        The object.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames.
    of : Tensor, shape (n,), bool, optional
        Those that count; all by default.
    """
    deviance = deviance_of(obj, probe, data)
    return float((deviance if of is None else deviance[of]).mean())
