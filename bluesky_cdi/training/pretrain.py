"""Pretraining of the canvas network on the simulated stream.

The loss is the Poisson deviance of the frames under the reconstructed object (divided by the
frame's photons, so that doses weigh alike) plus, as far as asked, the error against the
simulated truth. The critic learns the Gaussian likelihood of the object's error at every stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pickle
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.engines.rpie import Rpie
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.canvas import STEP_DAMPING, CanvasConfig, CanvasNet
from bluesky_cdi.models.weights import Network, NetworkConfig, Trained, build_network, load_weights, save_weights
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.lit_frames import canvas_step
from bluesky_cdi.training.calibration import calibrate
from bluesky_cdi.training.graphs import record_graphs
from bluesky_cdi.training.losses import (
    LIT,
    gauge_fixed,
    gaussian_nll,
    illumination,
    relative_deviance,
    relative_error,
)
from bluesky_cdi.training.stream import OBJECT_PX, Batch, SceneShape, SceneStream, shapes_for
from bluesky_cdi.training.team import Team

log = logging.getLogger(__name__)

# Added to a squared error before its root, whose slope at 0 is infinite.
SMALL_ERROR = 1e-4
SAVE_EVERY_S = 60.0
VALIDATION_SHAPE = SceneShape(64, 146, (121, 121), 8, 1.0)


@dataclass(frozen=True)
class PretrainConfig:
    """What a training run is.

    Parameters
    ----------
    seconds : float
        Time to train; the learning rate falls to zero over it.
    seed : int
    learning_rate : float
        Peak of the schedule.
    supervised : float
        Weight of the error against the simulated truth; 0 trains on the physics alone.
    physics : float
        Weight of the Poisson deviance.
    photons : tuple of float
        Least and most photons of a frame.
    model : CanvasConfig or PtychoNNConfig
    """

    seconds: float = 520.0
    seed: int = 1
    learning_rate: float = 1.5e-3
    supervised: float = 1.0
    physics: float = 1.0
    photons: tuple[float, float] = (1e3, 1e8)
    model: NetworkConfig = field(default_factory=CanvasConfig)


def pretrain(
    config: PretrainConfig,
    team: Team,
    out: Path,
    initial: Sequence[Path | str] = (),
    *,
    probe: Tensor | None = None,
    resume: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Train, validate, and write the weights with their record.

    Once a minute the run's state goes to a file beside `out` (ending in ``.resume``), which is removed at the end.

    Parameters
    ----------
    config : PretrainConfig
    team : Team
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
    net = net.to(device=team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    begin = {
        "initial_sha256": [each.sha256 for each in earlier],
        "probe_sha256": None if probe is None else hashlib.sha256(probe.cpu().numpy().tobytes()).hexdigest(),
    }
    run = _Run(net, config, team, out.with_suffix(".resume"), probe, begin)
    if resume:
        run.resume()
    curve = run.to_the_end(quiet)
    net.eval()
    if not team.leads:
        return {}
    factors = calibrate(net, team.device, probe=probe).tolist() if isinstance(net, CanvasNet) else None
    record = {
        "config": asdict(config),
        **begin,
        "steps": curve[-1]["step"],
        "frames_seen": curve[-1]["frames"],
        "curve": curve,
        "device": torch.cuda.get_device_name(team.device) if team.device.type == "cuda" else platform.machine(),
        "processes": team.size,
        "commit": _commit(),
        "torch": torch.__version__,
        "critic_factors": factors,
        "validation": validate(net, team.device, probe=probe),
        "earlier": [dict(each.record) for each in earlier],
    }
    save_weights(net, out, record)
    run.state_file.unlink(missing_ok=True)
    return record


def _go_on_from(net: Network, earlier: Sequence[Trained]) -> None:
    """Take the mean of what some networks have learned; nothing without any."""
    if any(each.net.config != earlier[0].net.config for each in earlier):
        sizes = ", ".join(f"{each.name}: {each.net.config}" for each in earlier)
        raise WeightsError(f"only networks of one size have a mean; they are {sizes}")
    states = []
    for each in earlier:
        try:
            if isinstance(net, CanvasNet):
                net.go_on_from(each.canvas_net)
            else:
                net.load_state_dict(each.net.state_dict())
        except (ValueError, RuntimeError) as err:
            raise WeightsError(f"a network of {net.config} can't go on from {each.name}: {err}") from err
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    if states:
        net.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})


class SceneLosses(nn.Module):
    """`scene_losses` as a module, so that processes can share its gradients."""

    def __init__(self, net: Network, config: PretrainConfig) -> None:
        super().__init__()
        self.net = net
        self._config = config

    def forward(self, batch: Batch, stream: SceneStream) -> dict[str, Tensor]:
        """Losses of one batch."""
        return scene_losses(self.net, batch, self._config, stream)


class _Run:
    """A training run underway."""

    def __init__(
        self,
        net: Network,
        config: PretrainConfig,
        team: Team,
        state_file: Path,
        probe: Tensor | None,
        begin: Mapping[str, Any],
    ) -> None:
        self.state_file = state_file
        self._which = json.dumps({**asdict(config), **begin})
        self._config, self._team, self._net = config, team, net
        if isinstance(net, CanvasNet) and team.device.type == "cuda":
            record_graphs(net, shapes_for(probe), team.device)
        self._losses = team.shared(SceneLosses(net, config))
        fused = team.device.type == "cuda"
        self._optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=1e-3, fused=fused)
        self._stream = SceneStream(team.device, self._seed(), config.photons, probe=probe, decisions=config.seed)
        self._held_out = _held_out(team.device, 1e5, 16, probe)
        self._step, self._frames, self._seconds = 0, 0, 0.0
        self._curve: list[dict[str, float]] = []

    def to_the_end(self, quiet: bool) -> list[dict[str, float]]:
        """Train until the time is over; the learning curve."""
        from tqdm import tqdm

        before, started, saved = self._seconds, time.monotonic(), time.monotonic()
        total = round(self._config.seconds)
        bar = tqdm(total=total, initial=round(before), unit="s", disable=quiet or not self._team.leads)
        with bar:
            while (progress := self._team.agreed(self._seconds / self._config.seconds)) < 1 or self._step == 0:
                losses = self._one_step(min(progress, 1.0))
                self._seconds = before + time.monotonic() - started
                bar.update(min(total, round(self._seconds)) - bar.n)
                if self._step % 200 == 1:
                    self._note(losses)
                    last = self._curve[-1]
                    bar.set_postfix_str(f"{last['frames_per_s']:.0f} frames/s, NRMSE {last['nrmse']:.3f}")
                if self._team.leads and time.monotonic() - saved > SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()
        self._note(losses)
        return self._curve

    def resume(self) -> None:
        """Go on where the interrupted run's last saved state was."""
        try:
            state = torch.load(self.state_file, map_location=self._team.device, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as err:
            raise WeightsError(f"can't resume from {self.state_file}: {err}. Start anew without resuming.") from err
        if state.get("run") != self._which:
            raise WeightsError(
                f"{self.state_file} is of another run ({state.get('run')}); "
                "resume it with the same options, initial weights and probe, or start anew"
            )
        self._net.load_state_dict(state["net"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._step, self._frames, self._seconds = state["step"], state["frames"], state["seconds"]
        self._curve = state["curve"]
        # New scenes, not those that the first part of the run has seen.
        self._stream.reseed(self._seed() + 7 * self._step, self._config.seed + 7 * self._step)

    def _seed(self) -> int:
        """Of the scenes of this process."""
        return self._config.seed + 1_000_003 * self._team.rank

    def _one_step(self, progress: float) -> dict[str, Tensor]:
        warm_up, cosine = min(1.0, (self._step + 1) / 200), 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimiser.param_groups:
            group["lr"] = self._config.learning_rate * warm_up * cosine
        batch = self._stream.draw()
        losses: dict[str, Tensor] = self._losses(batch, self._stream)
        self._optimiser.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=self._team.device)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
        self._optimiser.step()
        self._step += 1
        self._frames += len(batch.data) * self._team.size
        return losses

    def _note(self, losses: dict[str, Tensor]) -> None:
        with torch.no_grad():
            light = illumination(self._held_out.probe, self._held_out.data)
            lit = (light > LIT * light.amax(dim=(-2, -1), keepdim=True)).to(light.dtype)
            error = _nrmse(self._net(self._held_out.probe, self._held_out.data)[-1], self._held_out.truth, lit)
        seconds = max(self._seconds, 1e-3)
        values = {name: round(loss.item(), 4) for name, loss in losses.items()}
        self._curve.append(
            {
                "step": self._step, "frames": self._frames, "seconds": round(seconds, 1),
                "frames_per_s": round(self._frames / seconds), "nrmse": error, **values,
            }
        )  # fmt: skip
        if self._team.leads:
            log.info("%s", json.dumps(self._curve[-1]))

    def _save(self) -> None:
        partial = self.state_file.with_name(f".{self.state_file.name}.{os.getpid()}")
        torch.save(
            {
                "run": self._which, "net": self._net.state_dict(),
                "optimiser": self._optimiser.state_dict(), "step": self._step, "frames": self._frames,
                "seconds": self._seconds, "curve": self._curve,
            },
            partial,
        )  # fmt: skip
        partial.replace(self.state_file)


def _commit() -> str | None:
    """The commit of the source that trains, where it is a git checkout."""
    line = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def scene_losses(net: Network, batch: Batch, config: PretrainConfig, stream: SceneStream) -> dict[str, Tensor]:
    """Losses of one batch: ``physics``, ``truth``, and ``critic`` where the network has one.

    Later stages weigh more: stage k of K has (k / K) / 4, the last has 1.
    """
    stages = net(batch.probe, batch.data)
    with torch.no_grad():
        light = illumination(batch.probe, batch.data)
        peak = peak_intensity(batch.probe)
    lit = (light > LIT * peak) * light / (light + STEP_DAMPING * peak)
    zero = torch.zeros((), device=light.device)
    truth_loss, physics_loss = zero, zero
    for k, canvas in enumerate(stages, start=1):
        weight = 1.0 if k == len(stages) else 0.25 * k / len(stages)
        if config.supervised > 0:
            # The root: of the squares, scenes of few photons, whose errors are large, would be nearly all.
            error = (relative_error(canvas, batch.truth, lit) + SMALL_ERROR).sqrt().mean()
            truth_loss = truth_loss + weight * config.supervised * error
        if config.physics > 0 and (k == len(stages) or k == len(stages) // 2):
            deviance = relative_deviance(canvas, batch.probe, batch.data).mean()
            physics_loss = physics_loss + weight * config.physics * deviance
    losses = {"truth": truth_loss, "physics": physics_loss}
    if isinstance(net, CanvasNet):
        judged = _state_to_judge(stages, batch, stream)
        log_std, _ = net.judge(judged, batch.probe, batch.data)
        losses["critic"] = 0.1 * gaussian_nll(judged, batch.truth, log_std, lit)
    return losses


@torch.no_grad()
def _state_to_judge(stages: list[Tensor], batch: Batch, stream: SceneStream) -> Tensor:
    """An object as the critic may meet it: any stage's output, or the last one refined a little by physics."""
    if stream.chance(0.4):
        return stages[stream.whole(0, len(stages) - 1)].detach()
    canvas = stages[-1].detach()
    damping = STEP_DAMPING * peak_intensity(batch.probe)
    for _ in range(stream.whole(0, 7)):
        numerator, light = canvas_step(canvas, batch.probe, batch.data)
        canvas = canvas + numerator / (light + damping)
    return canvas


@torch.no_grad()
def validate(
    net: Network,
    device: torch.device,
    photons: tuple[float, ...] = (1e4, 1e5, 1e6),
    probe: Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """Complex NRMSE on held-out scenes beside rPIE from vacuum.

    There are 8 scans of 121 frames of 64x64 (or of the probe's size) a dose, probe and positions exact. The objects
    come from the training's generators with a seed that training does not use.
    """
    table = {}
    for dose in photons:
        batch = _held_out(device, dose, 64, probe)
        light = illumination(batch.probe, batch.data)
        lit = (light > LIT * light.amax(dim=(-2, -1), keepdim=True)).to(light.dtype)
        canvas = net(batch.probe, batch.data)[-1]
        row = {"network": _nrmse(canvas, batch.truth, lit)}
        row["network, then 5 rPIE"] = _nrmse(_after_rpie(canvas, batch, 5), batch.truth, lit)
        for iterations in (5, 50):
            flat = torch.ones_like(canvas)
            row[f"{iterations} rPIE from vacuum"] = _nrmse(_after_rpie(flat, batch, iterations), batch.truth, lit)
        table[f"{dose:.0e}"] = row
    return table


def _held_out(device: torch.device, photons: float, pool: int, probe: Tensor | None) -> Batch:
    """Scenes that training doesn't draw."""
    shape = VALIDATION_SHAPE if probe is None else VALIDATION_SHAPE.of_frames(probe.shape[-1])
    object_px = max(OBJECT_PX, shape.canvas_px)
    stream = SceneStream(device, 10_007, (photons, 1.001 * photons), pool, object_px, probe)
    return stream.draw(shape, exact=True)


def _after_rpie(canvas: Tensor, batch: Batch, epochs: int) -> Tensor:
    """The objects after some epochs of rPIE with the true probes."""
    engine, solution = Rpie(), Solution.start(canvas, batch.probe, batch.data)
    for _ in range(epochs):
        solution = engine.epoch(solution, Refine(probe=False))
    return solution.canvas


def _nrmse(canvas: Tensor, truth: Tensor, lit: Tensor) -> float:
    total = lit.sum(dim=(-2, -1), keepdim=True)
    spread = (lit * (truth - (lit * truth).sum(dim=(-2, -1), keepdim=True) / total).abs().square()).sum(dim=(-2, -1))
    error = (lit * (gauge_fixed(canvas, truth, lit) - truth).abs().square()).sum(dim=(-2, -1))
    return round(float((error / spread).sqrt().median()), 4)
