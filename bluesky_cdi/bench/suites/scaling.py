"""How the error of a network goes with its size and with what its training cost, from the records of trainings.

What the record of a training says of its error on held-out scans, beside its parameters and the floating point
operations of its training: three times those of a pass over all frames that it saw, one for the pass itself and two for
its gradients, as is usual (Kaplan et al., arXiv:2001.08361 (2020)).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bluesky_cdi.bench.machine import record
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.training.pretrain import held_out

# Of the gradients, for each of a pass.
PASSES_OF_TRAINING = 3


def scaling(records: Sequence[Path], on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Gather trainings, each from nothing in one run.

    Parameters
    ----------
    records : sequence of Path
        Records, as ``bluesky-cdi train`` writes them beside the weights; these themselves are not needed.
    on_progress : callable, optional
        Called with the name of each.

    Returns
    -------
    dict
        ``machine``, ``settings``, and ``rows``: of each network ``parameters``, ``frames`` and ``seconds`` of its
        training, ``flop``, ``nrmse`` by dose of a held-out scan's frames, and ``error``, its geometric mean.

    Raises
    ------
    BlueskyCDIError
        If a file is no record of an unrolled network's training, or one that began from another's weights: what that
        cost is not in it.
    """
    tell = on_progress or (lambda _: None)
    trainings = {path: _record(path) for path in records}
    rows, device = [], torch.device("cpu")
    batch = held_out(device, 1e5, 8, None)
    for path, training in trainings.items():
        tell(path.name)
        net = UnrolledNet(UnrolledConfig(**training["config"]["model"]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(batch.probe, batch.data)
        seen = int(training["frames_seen"])
        nrmse = {dose: float(row["network"]) for dose, row in training["validation"].items()}
        rows.append(
            {
                "weights": path.stem,
                "model": _size(net.config.channels, net.config.stages),
                "parameters": sum(each.numel() for each in net.parameters()),
                "seconds": float(training["config"]["seconds"]),
                "frames": seen,
                "flop": PASSES_OF_TRAINING * counter.get_total_flops() / len(batch.data) * seen,
                "nrmse": nrmse,
                "error": math.exp(sum(map(math.log, nrmse.values())) / len(nrmse)),
            }
        )
    return record([device], {"records": [str(path) for path in records]}, rows=rows)


def _record(path: Path) -> dict[str, Any]:
    try:
        training: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"config", "frames_seen", "validation"} - set(training)
        if missing or "stages" not in training["config"]["model"]:
            raise ValueError(f"it lacks {', '.join(sorted(missing)) or 'the model of an unrolled network'}")
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise BlueskyCDIError(
            f"{path} is no record of a training: {err}. Give the .json files that bluesky-cdi train writes"
        ) from err
    if training.get("earlier"):
        raise BlueskyCDIError(
            f"{path} is of a training that went on from other weights, and does not say what all of it cost: give "
            "records of networks that were trained from nothing"
        )
    return training


def _size(channels: int, stages: int) -> str:
    return f"{stages} stages, {channels} channels"
