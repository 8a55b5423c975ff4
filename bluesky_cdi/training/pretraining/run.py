"""Pretraining of the frame encoder: hide, predict, compare, step by step, with a state to go on from."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bluesky_cdi.errors import ConfigError, WeightsError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig, Shown
from bluesky_cdi.models.frame_weights import TrainedFrameModel, load_frame_model, save_frame_model
from bluesky_cdi.training.pretraining.losses import MaskedLosses
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.scans import Scans, ScanSource
from bluesky_cdi.training.pretraining.single_frames import SingleFrameSource
from bluesky_cdi.training.pretraining.validation import validate_frames, validate_single_frames
from bluesky_cdi.training.process_group import ProcessGroup
from bluesky_cdi.training.run_file import RunFile, made_on

log = logging.getLogger(__name__)

# Of training by the clock processes agree after so many steps how far it is: each time waits for the GPU.
AGREED_EVERY = 16
# Steps between two entries of the learning curve, and over which the learning rate rises.
NOTED_EVERY, WARM_UP = 100, 200
SAVE_EVERY_S = 60.0
WEIGHT_DECAY, LONGEST_GRADIENT = 0.02, 1.0


@dataclass(frozen=True)
class PretrainingConfig:
    """What a pretraining is.

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
        Least and most photons of a simulated frame.
    model : FrameEncoderConfig
        Sizes.
    single_frames : bool
        Learn from single frames of isolated samples in place of scans.
    """

    seconds: float = 400.0
    steps: int | None = None
    seed: int = 1
    learning_rate: float = 8e-4
    photons: tuple[float, float] = (1e3, 1e8)
    model: FrameEncoderConfig = field(default_factory=FrameEncoderConfig)
    single_frames: bool = False


def pretrain_frames(
    config: PretrainingConfig,
    processes: ProcessGroup,
    out: Path,
    files: Sequence[Path] = (),
    *,
    initial: Path | None = None,
    resume: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Train, validate, and write the weights with their record.

    Once a minute, and when it is interrupted, the state goes to a file beside `out` (ending in ``.resume``), which is
    removed at the end.

    Parameters
    ----------
    config : PretrainingConfig
        What to do.
    processes : ProcessGroup
        The processes that train; each has its own scans.
    out : Path
        Weights file, ends in ``.safetensors``.
    files : sequence of Path
        Recorded scans and folders of them, which half of the batches come from.
    initial : Path, optional
        Weights to go on from, of the same sizes; without them training begins from nothing.
    resume : bool
        Go on with the run that was interrupted, of the same configuration; of one by steps on a CPU the weights will be
        those that they would have been, bit for bit.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    dict
        The training record; empty in processes that don't lead.

    Raises
    ------
    WeightsError
        If there is no run to resume, it is another, training diverges, or the weights to go on from are of other sizes.
    ScanFileError
        If a file is no scan that can be learned from.
    ConfigError
        If files shall be learned from as single frames.
    """
    if config.single_frames and files:
        raise ConfigError("recorded files are learned from as scans; single frames are simulated ones: leave files out")
    torch.manual_seed(config.seed)
    model = MaskedFrameModel(config.model).to(processes.device)
    earlier = None if initial is None else load_frame_model(initial, processes.device)
    if earlier is not None:
        go_on_from(model, earlier)
    begin = {} if earlier is None else {"initial": earlier.name, "initial_sha256": earlier.sha256}
    source: ScanSource | SingleFrameSource
    if config.single_frames:
        source = SingleFrameSource(processes.device, config.seed, config.photons, processes.rank)
    else:
        source = ScanSource(processes.device, config.seed, config.photons, files, processes.rank)
    run = _Run(model, config, processes, source, out.with_suffix(".resume"), begin)
    if resume:
        run.resume()
    curve = run.to_the_end(quiet)
    model.eval()
    if not processes.leads:
        return {}
    record = {
        "config": asdict(config),
        **begin,
        "recorded_scans": source.names,
        "parameters": {
            "all": sum(each.numel() for each in model.parameters()),
            "encoder": sum(each.numel() for each in model.encoder.parameters()),
        },
        "steps": curve[-1]["step"],
        "frames_seen": curve[-1]["frames_seen"],
        "curve": curve,
        **made_on(processes),
        "validation": (validate_single_frames if config.single_frames else validate_frames)(model, processes.device),
    }
    digest = save_frame_model(model, out, record)
    run.state_file.unlink(missing_ok=True)
    return {**record, "sha256": digest}


def go_on_from(model: MaskedFrameModel, earlier: TrainedFrameModel) -> None:
    """Take over what another model has learned.

    Parameters
    ----------
    model : MaskedFrameModel
        Learns on.
    earlier : TrainedFrameModel
        What it begins with.

    Raises
    ------
    WeightsError
        If it has other sizes.
    """
    if model.config != earlier.model.config:
        raise WeightsError(
            f"a frame encoder of {model.config} can't go on from {earlier.name}, which is of {earlier.model.config}: "
            "leave sizes out, or begin from nothing"
        )
    model.load_state_dict(earlier.model.state_dict())


def make_optimiser(model: MaskedFrameModel, learning_rate: float) -> torch.optim.AdamW:
    """Make what changes a model's weights, the same for training and tuning.

    Parameters
    ----------
    model : MaskedFrameModel
        Learns.
    learning_rate : float
        Of the first step.
    """
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=fused
    )


def learn(
    losses: nn.Module, optimiser: torch.optim.Optimizer, scans: Scans, shown: Shown, rate: float
) -> dict[str, Tensor]:
    """Make one step on what is hidden of some scans.

    Parameters
    ----------
    losses : MaskedLosses
        Of the model, whose gradients processes may share.
    optimiser : Optimizer
        Of its weights.
    scans : Scans
        The scans.
    shown : Shown
        What of them is shown.
    rate : float
        Learning rate.

    Returns
    -------
    dict of Tensor
        The losses before the step, by name.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    found: dict[str, Tensor] = losses(scans, shown)
    optimiser.zero_grad(set_to_none=True)
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(losses.parameters(), LONGEST_GRADIENT)
    optimiser.step()
    return found


class _Run:
    """A pretraining underway."""

    def __init__(
        self,
        model: MaskedFrameModel,
        config: PretrainingConfig,
        processes: ProcessGroup,
        source: ScanSource | SingleFrameSource,
        state_file: Path,
        begin: Mapping[str, str],
    ) -> None:
        self.state_file = state_file
        self._which = json.dumps({**asdict(config), **begin, "scans": source.names, "processes": processes.size})
        self._model, self._config, self._processes, self._source = model, config, processes, source
        self._losses = processes.shared(MaskedLosses(model))
        self._optimiser = make_optimiser(model, config.learning_rate)
        self._step, self._frames, self._seconds = 0, 0, 0.0
        self._curve: list[dict[str, float]] = []
        # Sums since the last entry of the curve, which so wait for the GPU only there.
        self._sums, self._noted = dict[str, Tensor](), 0

    def to_the_end(self, quiet: bool) -> list[dict[str, float]]:
        """Train until the time, or the steps, are over; the learning curve."""
        from tqdm import tqdm

        before, started, saved = self._seconds, time.monotonic(), time.monotonic()
        bar = tqdm(total=100, unit="%", disable=quiet or not self._processes.leads)
        try:
            while (progress := self._progress()) < 1 or self._step == 0:
                losses = self._one_step(min(progress, 1.0))
                self._seconds = before + time.monotonic() - started
                bar.update(round(100 * min(progress, 1.0)) - bar.n)
                self._add(losses)
                if self._step == 1 or self._step % NOTED_EVERY == 0:
                    self._note()
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()
        except (KeyboardInterrupt, SystemExit):
            self._save()
            log.warning("pretraining is interrupted; its state is in %s: go on with --resume", self.state_file)
            raise
        finally:
            bar.close()
        if self._noted:
            self._note()
        # What follows takes its time too, and may be cut short.
        self._save()
        return self._curve

    @property
    def _file(self) -> RunFile:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {"model": self._model, "optimiser": self._optimiser}
        return RunFile(self.state_file, self._which, "scans and processes", parts, self._processes)

    def resume(self) -> None:
        """Go on where the interrupted run's last saved state was."""
        state = self._file.load()
        self._step, self._frames, self._seconds = state["step"], state["frames"], state["seconds"]
        self._curve = state["curve"]
        self._agreed = self._seconds / self._config.seconds

    def _progress(self) -> float:
        if self._config.steps is not None:
            return self._step / self._config.steps
        if self._step % AGREED_EVERY == 0:
            self._agreed = self._processes.agreed(self._seconds / self._config.seconds)
        return self._agreed

    def _one_step(self, progress: float) -> dict[str, Tensor]:
        warm_up, cosine = min(1.0, (self._step + 1) / WARM_UP), 0.5 * (1 + math.cos(math.pi * progress))
        scans, draws = self._source.batch(self._step)
        shown = draw_shown(scans, self._config.model.patch, draws)
        losses = learn(self._losses, self._optimiser, scans, shown, self._config.learning_rate * warm_up * cosine)
        self._step += 1
        self._frames += len(scans.data) * self._processes.size
        return losses

    def _add(self, losses: Mapping[str, Tensor]) -> None:
        self._sums = {name: loss.detach() + self._sums.get(name, 0.0) for name, loss in losses.items()}
        self._noted += 1

    def _note(self) -> None:
        """Add the mean losses since the last time to the curve."""
        values = {name: round(total.item() / self._noted, 4) for name, total in self._sums.items()}
        self._sums, self._noted = {}, 0
        if not math.isfinite(sum(values.values())):
            raise WeightsError(
                f"pretraining diverged before step {self._step} ({values}): train with a lower learning rate than "
                f"{self._config.learning_rate}"
            )
        seconds = max(self._seconds, 1e-3)
        self._curve.append(
            {
                "step": self._step,
                "frames_seen": self._frames,
                "seconds": round(seconds, 1),
                "frames_per_s": round(self._frames / seconds),
                **values,
            }
        )
        if self._processes.leads:
            log.info("%s", json.dumps(self._curve[-1]))

    def _save(self) -> None:
        self._file.save(step=self._step, frames=self._frames, seconds=self._seconds, curve=self._curve)
