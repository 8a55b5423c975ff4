"""How the error of a network goes with its size and with what its training cost, from networks trained for it.

What a network's training record says of its error on held-out scans, beside its parameters and the floating point
operations of its training: three times those of a pass over all frames that it saw, one for the pass itself and two for
its gradients, as is usual (Kaplan et al., arXiv:2001.08361 (2020)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bluesky_cdi.bench.machine import record
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.training.pretrain import held_out

# Of the gradients, for each of a pass.
PASSES_OF_TRAINING = 3


def scaling(weights: Sequence[str], on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Gather networks, each trained from nothing in one run.

    Parameters
    ----------
    weights : sequence of str
        Shipped networks, or files with their records beside them.
    on_progress : callable, optional
        Called with the name of each network.

    Returns
    -------
    dict
        ``machine``, ``settings``, and ``rows``: of each network ``parameters``, ``frames`` and ``seconds`` of its
        training, ``flop``, ``nrmse`` by dose of a held-out scan's frames, and ``error``, its geometric mean.

    Raises
    ------
    BlueskyCDIError
        If the training of a network began from another's weights: what it cost is not in its record.
    """
    tell = on_progress or (lambda _: None)
    rows, device = [], torch.device("cpu")
    batch = held_out(device, 1e5, 8, None)
    for name in weights:
        tell(name)
        trained = load_weights(name, device)
        if trained.record.get("earlier"):
            raise BlueskyCDIError(
                f"{name} went on from other weights, so that its record does not say what its training cost: give "
                "networks that were trained from nothing"
            )
        net = trained.unrolled_net
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(batch.probe, batch.data)
        seen = int(trained.record["frames_seen"])
        nrmse = {dose: float(row["network"]) for dose, row in trained.record["validation"].items()}
        rows.append(
            {
                "weights": trained.name,
                "model": _size(net.config.channels, net.config.stages),
                "parameters": sum(each.numel() for each in net.parameters()),
                "seconds": float(trained.record["config"]["seconds"]),
                "frames": seen,
                "flop": PASSES_OF_TRAINING * counter.get_total_flops() / len(batch.data) * seen,
                "nrmse": nrmse,
                "error": math.exp(sum(map(math.log, nrmse.values())) / len(nrmse)),
            }
        )
    return record([device], {"weights": list(weights)}, rows=rows)


def _size(channels: int, stages: int) -> str:
    return f"{stages} stages, {channels} channels"
