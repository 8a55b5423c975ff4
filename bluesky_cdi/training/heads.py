"""Training of the heads beside a network: all kinds at once, on objects as an estimator meets them.

The network makes objects of simulated scenes without gradients, once for all heads. They are brought into one of the
states in which an object is judged: after any stage, after a pass, and refined by how much ever. Each member of the
ensemble learns from scenes of its own.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.heads import KINDS, ErrorHeads, HeadsConfig, VariationalConv
from bluesky_cdi.models.heads_weights import save_heads
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.losses import errors, gauge_fixed, gaussian_nll
from bluesky_cdi.training.pretrain import held_out_at, weight_of
from bluesky_cdi.training.run_file import commit_of_source
from bluesky_cdi.training.starts import after_passes, after_rpie, after_steps
from bluesky_cdi.training.stream import Batch, SceneStream

log = logging.getLogger(__name__)

# Of the errors of a pass so much is left, at least, in an object that stands for a refined one.
LEAST_LEFT = 0.03
# Most physics steps and epochs of rPIE after it.
MOST_STEPS, MOST_EPOCHS = 7, 6
# As many independent errors the variational layer is told to have seen: with all that it sees, each pixel for itself,
# its weights would soon have no deviation.
INDEPENDENT = 1e4
# Steps between two entries of the learning curve.
NOTED = 100
# Deviations of a Gaussian within which nine in ten errors lie.
WITHIN_90 = 1.6449
DOSES = (1e4, 1e5, 1e6)


@dataclass(frozen=True)
class HeadsTraining:
    """What a training of heads is.

    Parameters
    ----------
    seconds : float
        Time to train; the learning rate falls to zero over it.
    steps : int, optional
        Train for so many steps instead, which the same seed repeats.
    seed : int
    learning_rate : float
        Peak of the schedule.
    photons : tuple of float
        Least and most photons of a frame.
    members : int
        Of the ensemble.
    dropout : float
        Share of channels.
    """

    seconds: float = 240.0
    steps: int | None = None
    seed: int = 1
    learning_rate: float = 1e-3
    photons: tuple[float, float] = (1e3, 1e8)
    members: int = 4
    dropout: float = 0.1


def train_heads(
    config: HeadsTraining, trained: Trained, out: Path, device: torch.device, *, quiet: bool = True
) -> dict[str, Any]:
    """Train heads beside a network, which stays as it is; write them with their record.

    Parameters
    ----------
    config : HeadsTraining
        What to do.
    trained : Trained
        The network, on `device`.
    out : Path
        Weights file, ends in ``.safetensors``.
    device : torch.device
        Where to compute.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    dict
        The training record.

    Raises
    ------
    WeightsError
        If training diverges, or the network has no critic.
    """
    net = trained.unrolled_net
    torch.manual_seed(config.seed)
    heads = ErrorHeads(HeadsConfig(config.members, config.dropout, net.config))
    heads.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    heads.begin_from(net.critic)
    heads.reseed(config.seed)
    curve = _Run(heads, net, config, device).to_the_end(quiet)
    heads.eval()
    heads.reseed(config.seed)
    record = {
        "config": asdict(config),
        "network": trained.name,
        "network_sha256": trained.sha256,
        "steps": curve[-1]["step"],
        "curve": curve,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "commit": commit_of_source(),
        "torch": torch.__version__,
        "validation": validate_heads(heads, net, device),
    }
    return {**record, "sha256": save_heads(heads, trained.sha256, out, record)}


class _Run:
    """A training underway."""

    def __init__(self, heads: ErrorHeads, net: UnrolledNet, config: HeadsTraining, device: torch.device) -> None:
        self._heads, self._net, self._config = heads, net, config
        fused = device.type == "cuda"
        self._optimiser = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=1e-3, fused=fused)
        self._stream = SceneStream(device, config.seed, config.photons)
        self._step = 0
        self._curve: list[dict[str, float]] = []

    def to_the_end(self, quiet: bool) -> list[dict[str, float]]:
        """Train until the time, or the steps, are over; the learning curve."""
        from tqdm import tqdm

        started, losses = time.monotonic(), dict[str, Tensor]()
        with tqdm(total=100, unit="%", disable=quiet) as bar:
            while (progress := self._progress(started)) < 1 or self._step == 0:
                losses = self._one_step(min(progress, 1.0))
                bar.update(round(100 * min(progress, 1.0)) - bar.n)
                if self._step % NOTED == 1:
                    self._note(losses, started)
        self._note(losses, started)
        return self._curve

    def _progress(self, started: float) -> float:
        if self._config.steps is not None:
            return self._step / self._config.steps
        return (time.monotonic() - started) / self._config.seconds

    def _one_step(self, progress: float) -> dict[str, Tensor]:
        warm_up, cosine = min(1.0, (self._step + 1) / 100), 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimiser.param_groups:
            group["lr"] = self._config.learning_rate * warm_up * cosine
        batch = self._stream.draw()
        losses = head_losses(self._heads, self._net, batch, self._stream.draws, self._step)
        self._optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._heads.parameters(), 1.0)
        self._optimiser.step()
        self._step += 1
        return losses

    def _note(self, losses: Mapping[str, Tensor], started: float) -> None:
        values = {name: round(loss.item(), 4) for name, loss in losses.items()}
        if not math.isfinite(sum(values.values())):
            raise WeightsError(
                f"training diverged before step {self._step} ({values}): train with a lower learning rate than "
                f"{self._config.learning_rate}"
            )
        self._curve.append({"step": self._step, "seconds": round(time.monotonic() - started, 1), **values})
        log.info("%s", json.dumps(self._curve[-1]))


def head_losses(heads: ErrorHeads, net: UnrolledNet, batch: Batch, draws: Draws, step: int = 0) -> dict[str, Tensor]:
    """Compute the losses of all kinds of heads on one batch.

    Parameters
    ----------
    heads : ErrorHeads
        Learn.
    net : UnrolledNet
        Makes the objects.
    batch : Batch
        The scenes.
    draws : Draws
        Draws the state in which objects are judged.
    step : int
        Decides which member of the ensemble learns from which scenes.
    """
    weight = weight_of(batch)
    obj = state_to_judge(net, batch, draws, weight)
    levels, _ = heads.encode(obj, batch.probe, batch.data)
    shape = (obj.shape[1], obj.shape[2])

    def loss(decoder: nn.Module, scenes: slice) -> Tensor:
        mean, log_std = heads.head(decoder, [level[scenes] for level in levels], shape)
        return gaussian_nll(obj[scenes], batch.truth[scenes], log_std, weight[scenes], mean)

    members, found = len(heads.ensemble), []
    each = max(1, len(obj) // members)
    for number, member in enumerate(heads.ensemble):
        first = each * ((number + step) % members)
        if first < len(obj):
            found.append(loss(member, slice(first, first + each)))
    divergence = cast(VariationalConv, heads.variational.exit).divergence() / INDEPENDENT
    everything = slice(None)
    return {
        "ensemble": torch.stack(found).sum(),
        "dropout": loss(heads.dropout, everything),
        "variational": loss(heads.variational, everything) + divergence,
    }


@torch.no_grad()
def state_to_judge(net: UnrolledNet, batch: Batch, draws: Draws, weight: Tensor) -> Tensor:
    """Draw an object as an estimator may meet it.

    A fifth each: any stage's output; the last one; that after some physics steps; after some epochs of rPIE; and with a
    part of its error alone, as long refinement leaves it, after a few steps, which see the noise.

    Parameters
    ----------
    net : UnrolledNet
        Makes it.
    batch : Batch
        The scenes.
    draws : Draws
        Its decisions choose.
    weight : Tensor, shape (B, Y, X)
        How much each pixel counts for the gauge of the truth.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
    """
    before = draws.whole(0, net.config.passes - 1)
    stages = net(batch.probe, batch.data, after_passes(net, batch, before) if before else None)
    kind, last = draws.whole(0, 4), stages[-1]
    if kind == 0:
        return cast(Tensor, stages[draws.whole(0, len(stages) - 1)])
    if kind == 2:
        return after_steps(batch, draws.whole(1, MOST_STEPS), last)
    if kind == 3:
        return after_rpie(batch, draws.whole(1, MOST_EPOCHS), last)
    if kind == 4:
        left = 10 ** draws.uniform(len(last), 1, 1, low=math.log10(LEAST_LEFT), high=0.0)
        refined = batch.truth + left * (gauge_fixed(last, batch.truth, weight) - batch.truth)
        return after_steps(batch, draws.whole(1, MOST_STEPS), refined)
    return cast(Tensor, last)


@torch.no_grad()
def validate_heads(heads: ErrorHeads, net: UnrolledNet, device: torch.device) -> dict[str, dict[str, float]]:
    """Compute how the errors of held-out scenes lie in what is predicted, after one pass: by dose, then kind.

    Parameters
    ----------
    heads : ErrorHeads
        In evaluation mode.
    net : UnrolledNet
        Makes the objects.
    device : torch.device
        Where to compute.

    Returns
    -------
    dict of dict of float
        Shares of amplitude and phase errors inside the predicted central 90 %, and what share of the predicted variance
        of the phase is epistemic.
    """
    table = {}
    for dose, batch in zip(DOSES, held_out_at(device, DOSES, 64, None), strict=True):
        row = dict[str, float]()
        weight = weight_of(batch)
        obj = net(batch.probe, batch.data)[-1]
        levels, _ = heads.encode(obj, batch.probe, batch.data)
        error, known = errors(obj, batch.truth, weight), weight > 0
        for kind in KINDS:
            found = heads.predict(kind, levels, (obj.shape[1], obj.shape[2]))
            epistemic, aleatoric = found.variances()
            std = (epistemic + aleatoric + found.bias().square()).sqrt()
            inside = (error.abs() < WITHIN_90 * std).transpose(0, 1)[:, known].float().mean(dim=1)
            row[f"{kind}, amplitude"], row[f"{kind}, phase"] = (round(float(share), 4) for share in inside)
            share = (epistemic / std.square())[:, 1][known].mean()
            row[f"{kind}, epistemic"] = round(float(share), 4)
        table[f"{dose:.0e}"] = row
    return table
