"""Pretraining of the unrolled network on the simulated stream.

The loss is the Poisson deviance of the frames under the reconstructed object and the true probe
(divided by the frame's photons, so that doses weigh alike) plus, as far as asked, the error against
the simulated truth, and how far it is beyond that of the object from which the pass began. The
critic learns the Gaussian likelihood of the object's error at every stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluesky_cdi.engines.rpie import RpieSettings
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.unrolled import STEP_DAMPING, UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import Network, NetworkConfig, Trained, build_network, load_weights, save_weights
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.training.calibration import calibrate
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.graphs import record_graphs
from bluesky_cdi.training.losses import (
    gauge_fixed,
    gaussian_nll,
    relative_deviance,
    relative_error,
    worsening,
)
from bluesky_cdi.training.process_group import ProcessGroup
from bluesky_cdi.training.run_file import RunFile, made_on
from bluesky_cdi.training.starts import after_rpie, after_steps, draw_start
from bluesky_cdi.training.stream import OBJECT_PX, Batch, SceneShape, SceneStream, shapes_for

log = logging.getLogger(__name__)

# Added to a squared error before its root, whose slope at 0 is infinite.
SMALL_ERROR = 1e-4
# Weights, beside the error itself, of its logarithm (without which small errors would count for nothing) and of its
# growth over the start's.
PROPORTION, NEVER_WORSE = 0.3, 1.0
SAVE_EVERY_S = 60.0
VALIDATION_SHAPE = SceneShape(64, 146, (121, 121), 8, 1.0)
# Objects that held-out scenes are cut from: those of the learning curve, and of the validation.
CURVE_POOL, VALIDATION_POOL = 16, 64
# On a CPU calibration and validation take minutes when whole. Of shorter runs than this they are less, in proportion,
# but of few scans one would say nothing: an object that is nearly vacuum has an error of any size.
WHOLE_ON_CPU_S, CALIBRATION_BATCHES, LEAST_SCANS, LEAST_POOL = 3600.0, 8, 3, 24


@dataclass(frozen=True)
class PretrainConfig:
    """What a training run is.

    Parameters
    ----------
    seconds : float
        Time to train; the learning rate falls to zero over it.
    seed : int
        Of scenes and first weights.
    learning_rate : float
        Peak of the schedule.
    supervised : float
        Weight of the error against the simulated truth; 0 trains on the physics alone.
    physics : float
        Weight of the Poisson deviance.
    photons : tuple of float
        Least and most photons of a frame.
    model : UnrolledConfig or PtychoNNConfig
        Size of the network.
    """

    seconds: float = 520.0
    seed: int = 1
    learning_rate: float = 1.5e-3
    supervised: float = 1.0
    physics: float = 1.0
    photons: tuple[float, float] = (1e3, 1e8)
    model: NetworkConfig = field(default_factory=UnrolledConfig)


def pretrain(
    config: PretrainConfig,
    processes: ProcessGroup,
    out: Path,
    initial: Sequence[Path | str] = (),
    *,
    probe: Tensor | None = None,
    resume: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Train, validate, and write the weights with their record.

    Once a minute, and when it is interrupted, the run's state goes to a file beside `out` (ending in ``.resume``),
    which is removed at the end.

    Parameters
    ----------
    config : PretrainConfig
        What to do.
    processes : ProcessGroup
        The processes that train; each draws its own scenes.
    out : Path
        Weights file, ends in ``.safetensors``.
    initial : sequence of Path or str
        Weights to go on from, of the same size or with fewer stages and steps; from the mean of several of one size,
        which is often better than each where one went on from another (Wortsman et al., Proc. Mach. Learn. Res. 162,
        23965 (2022)). Their records go into the new one.
    probe : Tensor, shape (M, N, N), complex, optional
        Train for this probe alone.
    resume : bool
        Go on with the run that was interrupted, of the same configuration.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    dict
        The training record; empty in processes that don't lead.

    Raises
    ------
    WeightsError
        If there is no run to resume, it is another, or the weights to go on from don't fit.
    ConfigError
        If training draws no frames of the probe's size.
    """
    torch.manual_seed(config.seed)
    earlier = [load_weights(name) for name in initial]
    net = build_network(config.model)
    _go_on_from(net, earlier)
    net = net.to(device=processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    begin = {
        "initial_sha256": [each.sha256 for each in earlier],
        "probe_sha256": None if probe is None else hashlib.sha256(probe.cpu().numpy().tobytes()).hexdigest(),
    }
    run = _Run(net, config, processes, out.with_suffix(".resume"), probe, begin)
    if resume:
        run.resume()
    curve = run.to_the_end(quiet)
    net.eval()
    if not processes.leads:
        return {}
    share, factors = judged_share(config.seconds, processes.device), None
    if isinstance(net, UnrolledNet):
        log.info("trained; now the critic's factors are found")
        batches = max(1, round(share * CALIBRATION_BATCHES))
        factors = calibrate(net, processes.device, batches=batches, probe=probe).tolist()
    log.info("validating on held-out scans, beside rPIE")
    record = {
        "config": asdict(config),
        **begin,
        "steps": curve[-1]["step"],
        "frames_seen": curve[-1]["frames"],
        "curve": curve,
        **made_on(processes),
        "critic_factors": factors,
        "validation_scans": _held_out_scans(share, probe),
        "validation": validate(net, processes.device, probe=probe, share=share),
        "earlier": [dict(each.record) for each in earlier],
    }
    digest = save_weights(net, out, record)
    run.state_file.unlink(missing_ok=True)
    return {**record, "sha256": digest}


def _go_on_from(net: Network, earlier: Sequence[Trained]) -> None:
    """Take the mean of what some networks have learned; nothing without any."""
    if any(each.net.config != earlier[0].net.config for each in earlier):
        sizes = ", ".join(f"{each.name}: {each.net.config}" for each in earlier)
        raise WeightsError(f"only networks of one size have a mean; they are {sizes}")
    states = []
    for each in earlier:
        try:
            if isinstance(net, UnrolledNet):
                net.go_on_from(each.unrolled_net)
            else:
                net.load_state_dict(each.net.state_dict())
        except (ValueError, RuntimeError) as err:
            raise WeightsError(f"a network of {net.config} can't go on from {each.name}: {err}") from err
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    if states:
        net.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})


class SceneLosses(nn.Module):
    """`scene_losses` as a module, so that processes can share its gradients.

    Parameters
    ----------
    net : UnrolledNet or PtychoNN
        The network.
    config : PretrainConfig
        Weights of the losses.
    """

    def __init__(self, net: Network, config: PretrainConfig) -> None:
        super().__init__()
        self.net = net
        self._config = config

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of one batch; see `scene_losses`.

        Parameters
        ----------
        batch : Batch
            The scenes.
        draws : Draws
            Draws where passes begin.
        """
        return scene_losses(self.net, batch, self._config, draws)


class _Run:
    """A training run underway."""

    def __init__(
        self,
        net: Network,
        config: PretrainConfig,
        processes: ProcessGroup,
        state_file: Path,
        probe: Tensor | None,
        begin: Mapping[str, Any],
    ) -> None:
        self.state_file = state_file
        self._which = json.dumps({**asdict(config), **begin})
        self._config, self._processes, self._net = config, processes, net
        if isinstance(net, UnrolledNet) and processes.device.type == "cuda":
            record_graphs(net, shapes_for(probe), processes.device)
        self._losses = processes.shared(SceneLosses(net, config))
        fused = processes.device.type == "cuda"
        self._optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-3, fused=fused)
        device = processes.device
        share = judged_share(config.seconds, device)
        if processes.leads:
            log.info("drawing the objects of the simulated scans")
        self._stream = SceneStream(device, self._seed(), config.photons, probe=probe, decisions=config.seed)
        self._held_out = held_out(device, 1e5, CURVE_POOL, probe, share=share)
        self._step, self._frames, self._seconds = 0, 0, 0.0
        self._curve: list[dict[str, float]] = []

    def to_the_end(self, quiet: bool) -> list[dict[str, float]]:
        """Train until the time is over; the learning curve."""
        from tqdm import tqdm

        before, started, saved = self._seconds, time.monotonic(), time.monotonic()
        total = round(self._config.seconds)
        bar = tqdm(total=total, initial=round(before), unit="s", disable=quiet or not self._processes.leads)
        losses: dict[str, Tensor] = {}
        try:
            while (progress := self._processes.agreed(self._seconds / self._config.seconds)) < 1 or self._step == 0:
                losses = self._one_step(min(progress, 1.0))
                self._seconds = before + time.monotonic() - started
                bar.update(min(total, round(self._seconds)) - bar.n)
                if self._step % 200 == 1:
                    self._note(losses)
                    last = self._curve[-1]
                    bar.set_postfix_str(f"{last['frames_per_s']:.0f} frames/s, NRMSE {last['nrmse']:.3f}")
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()
            if losses:
                self._note(losses)
        except (KeyboardInterrupt, SystemExit):
            self._save()
            log.warning("training is interrupted; its state is in %s: go on with --resume", self.state_file)
            raise
        finally:
            bar.close()
        # What follows takes its time too, and may be cut short.
        self._save()
        return self._curve

    @property
    def _file(self) -> RunFile:
        parts = {"net": self._net, "optimiser": self._optimiser}
        return RunFile(self.state_file, self._which, "initial weights and probe", parts, self._processes)

    def resume(self) -> None:
        """Go on where the interrupted run's last saved state was."""
        state = self._file.load()
        self._step, self._frames, self._seconds = state["step"], state["frames"], state["seconds"]
        self._curve = state["curve"]
        # New scenes, not those that the first part of the run has seen.
        self._stream.draws.reseed(self._seed() + 7 * self._step, self._config.seed + 7 * self._step)

    def _seed(self) -> int:
        """Give the seed of the scenes of this process."""
        return self._config.seed + 1_000_003 * self._processes.rank

    def _one_step(self, progress: float) -> dict[str, Tensor]:
        warm_up, cosine = min(1.0, (self._step + 1) / 200), 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimiser.param_groups:
            group["lr"] = self._config.learning_rate * warm_up * cosine
        batch = self._stream.draw()
        losses: dict[str, Tensor] = self._losses(batch, self._stream.draws)
        self._optimiser.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=self._processes.device)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
        self._optimiser.step()
        self._step += 1
        self._frames += len(batch.data) * self._processes.size
        return losses

    def _note(self, losses: dict[str, Tensor]) -> None:
        with torch.no_grad():
            illumination = summed_illumination(self._held_out.probe, self._held_out.data)
            illuminated = (illumination > MEASURED_SHARE * illumination.amax(dim=(-2, -1), keepdim=True)).to(
                illumination.dtype
            )
            error = _nrmse(self._net(self._held_out.probe, self._held_out.data)[-1], self._held_out.truth, illuminated)
        seconds = max(self._seconds, 1e-3)
        values = {name: round(loss.item(), 4) for name, loss in losses.items()}
        if not math.isfinite(sum(values.values(), error)):
            raise WeightsError(
                f"training diverged before step {self._step} ({values}, NRMSE {error}): train with a lower learning "
                f"rate than {self._config.learning_rate}"
            )
        self._curve.append(
            {
                "step": self._step,
                "frames": self._frames,
                "seconds": round(seconds, 1),
                "frames_per_s": round(self._frames / seconds),
                "nrmse": error,
                **values,
            }
        )
        if self._processes.leads:
            log.info("%s", json.dumps(self._curve[-1]))

    def _save(self) -> None:
        self._file.save(step=self._step, frames=self._frames, seconds=self._seconds, curve=self._curve)


def scene_losses(net: Network, batch: Batch, config: PretrainConfig, draws: Draws) -> dict[str, Tensor]:
    """Compute the losses of one batch: ``physics``, ``truth``, and ``critic`` where the network predicts errors.

    Later stages weigh more: stage k of K has (k / K) / 4, the last has 1.

    Parameters
    ----------
    net : UnrolledNet or PtychoNN
        The network.
    batch : Batch
        The scenes.
    config : PretrainConfig
        Weights of the losses.
    draws : Draws
        Draws where passes begin, and the objects whose errors are predicted.
    """
    start, stages = _passed(net, batch, draws, labels=config.supervised > 0)
    illuminated = weight_of(batch)
    zero = torch.zeros((), device=illuminated.device)
    truth_loss, physics_loss = zero, zero
    before = _error(start, batch.truth, illuminated)
    for k, obj in enumerate(stages, start=1):
        weight = 1.0 if k == len(stages) else 0.25 * k / len(stages)
        if config.supervised > 0:
            error = _error(obj, batch.truth, illuminated)
            each = error + PROPORTION * error.log() + NEVER_WORSE * worsening(error, before)
            truth_loss = truth_loss + weight * config.supervised * each.mean()
        if config.physics > 0 and (k == len(stages) or k == len(stages) // 2):
            # Under the assumed probe and positions, where these are wrong, the truth would not be its minimum.
            deviance = relative_deviance(obj, batch.true_probe, batch.true_data).mean()
            physics_loss = physics_loss + weight * config.physics * deviance
    losses = {"truth": truth_loss, "physics": physics_loss}
    if isinstance(net, UnrolledNet):
        judged = _state_to_judge(stages, batch, draws)
        log_std, _ = net.judge(judged, batch.probe, batch.data)
        losses["critic"] = 0.1 * gaussian_nll(judged, batch.truth, log_std, illuminated)
    return losses


@torch.no_grad()
def weight_of(batch: Batch) -> Tensor:
    """Weigh the pixels of scenes by how well light tells them, (B, Y, X).

    Parameters
    ----------
    batch : Batch
        Scenes with their frames.
    """
    illumination, peak = summed_illumination(batch.probe, batch.data), peak_intensity(batch.probe)
    return (illumination > MEASURED_SHARE * peak) * illumination / (illumination + STEP_DAMPING * peak)


def _passed(net: Network, batch: Batch, draws: Draws, labels: bool) -> tuple[Tensor, list[Tensor]]:
    """Give where a pass began, and the object after each of its stages."""
    if not isinstance(net, UnrolledNet):
        return torch.ones_like(batch.truth), net(batch.probe, batch.data)
    start = draw_start(net, batch, draws, labels)
    return start, net(batch.probe, batch.data, start)


def _error(obj: Tensor, truth: Tensor, illuminated: Tensor) -> Tensor:
    """Take the root: of the squares, scenes of few photons, whose errors are large, would be nearly all. Shape (B,)."""
    return (relative_error(obj, truth, illuminated) + SMALL_ERROR).sqrt()


@torch.no_grad()
def _state_to_judge(stages: list[Tensor], batch: Batch, draws: Draws) -> Tensor:
    """Draw an object as the critic may meet it: any stage's output, or the last one refined a little by physics."""
    if draws.chance(0.4):
        return stages[draws.whole(0, len(stages) - 1)].detach()
    return after_steps(batch, draws.whole(0, 7), stages[-1].detach())


@torch.no_grad()
def validate(
    net: Network,
    device: torch.device,
    photons: tuple[float, ...] = (1e4, 1e5, 1e6),
    probe: Tensor | None = None,
    share: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Compute the complex NRMSE on held-out scenes beside rPIE from vacuum.

    There are 8 scans of 121 frames of 64x64 (or fewer of the probe's size) a dose, probe and positions exact. The
    objects come from the training's generators with a seed that training does not use.

    Parameters
    ----------
    net : UnrolledNet or PtychoNN
        The network, on `device`.
    device : torch.device
        Where to compute.
    photons : tuple of float
        Doses: mean photons of a frame.
    probe : Tensor, shape (M, N, N), complex, optional
        The true probe of all scans; each has its own if absent.
    share : float
        Of the scans, at least three.

    Returns
    -------
    dict of dict of float
        By dose (``1e+04``), then by method: the median of the scans.
    """
    table = {}
    pool = max(LEAST_POOL, round(share * VALIDATION_POOL))
    for dose, batch in zip(photons, held_out_at(device, photons, pool, probe, share=share), strict=True):
        illumination = summed_illumination(batch.probe, batch.data)
        illuminated = (illumination > MEASURED_SHARE * illumination.amax(dim=(-2, -1), keepdim=True)).to(
            illumination.dtype
        )
        obj = net(batch.probe, batch.data)[-1]
        row = {"network": _nrmse(obj, batch.truth, illuminated)}
        row["network, then 5 rPIE"] = _nrmse(after_rpie(batch, 5, obj, RpieSettings()), batch.truth, illuminated)
        for iterations in (5, 50):
            found = after_rpie(batch, iterations, settings=RpieSettings())
            row[f"{iterations} rPIE from vacuum"] = _nrmse(found, batch.truth, illuminated)
        table[f"{dose:.0e}"] = row
    return table


def judged_share(seconds: float, device: torch.device) -> float:
    """Give the share of the held-out scans by which a run is judged: 1, on a CPU in proportion to its time to train.

    Parameters
    ----------
    seconds : float
        Time to train.
    device : torch.device
        Where it is trained.
    """
    return 1.0 if device.type == "cuda" else min(1.0, seconds / WHOLE_ON_CPU_S)


def _held_out_scans(share: float, probe: Tensor | None) -> int:
    shape = VALIDATION_SHAPE if probe is None else VALIDATION_SHAPE.of_frames(probe.shape[-1])
    return max(min(shape.scenes, LEAST_SCANS), round(share * shape.scenes))


def held_out(
    device: torch.device,
    photons: float,
    pool: int,
    probe: Tensor | None,
    *,
    share: float = 1.0,
) -> Batch:
    """Draw scenes of objects and probes that training doesn't draw.

    Parameters
    ----------
    device : torch.device
        Where to compute.
    photons : float
        Mean photons of a frame.
    pool : int
        Objects that are cut from.
    probe : Tensor, shape (M, N, N), complex, optional
        The true probe of all scans; each has its own if absent.
    share : float
        Of the scenes, at least three.
    """
    return next(held_out_at(device, (photons,), pool, probe, share=share))


def held_out_at(
    device: torch.device,
    photons: Sequence[float],
    pool: int,
    probe: Tensor | None,
    *,
    share: float = 1.0,
) -> Iterator[Batch]:
    """Draw the same held-out scenes at several doses.

    Parameters
    ----------
    device : torch.device
        Where to compute.
    photons : sequence of float
        Doses: mean photons of a frame.
    pool, probe, misjudged, share
        As of `held_out`.
    """
    shape = VALIDATION_SHAPE if probe is None else VALIDATION_SHAPE.of_frames(probe.shape[-1])
    shape = replace(shape, scenes=_held_out_scans(share, probe))
    object_px = max(OBJECT_PX, shape.grid_px)
    stream = SceneStream(device, 10_007, (photons[0], 1.001 * photons[0]), pool, object_px, probe)
    return stream.draw_at(photons, 1, shape, exact=True)


def _nrmse(obj: Tensor, truth: Tensor, illuminated: Tensor) -> float:
    total = illuminated.sum(dim=(-2, -1), keepdim=True)
    spread = (illuminated * (truth - (illuminated * truth).sum(dim=(-2, -1), keepdim=True) / total).abs().square()).sum(
        dim=(-2, -1)
    )
    error = (illuminated * (gauge_fixed(obj, truth, illuminated) - truth).abs().square()).sum(dim=(-2, -1))
    return round(float((error / spread).sqrt().median()), 4)
