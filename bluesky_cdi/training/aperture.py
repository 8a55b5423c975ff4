"""Training of the decoders that add to an object what lies beyond its measured aperture.

Scans are simulated, their outer pixels are hidden, and rPIE reconstructs them from the others; both decoders see that,
in the same order, from the same first weights, and make the same steps. They learn the truth, and the Poisson deviance
of whole frames, hidden pixels too; one of them is judged by a discriminator besides.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.aperture_decoder import (
    ApertureDecoder,
    DecoderConfig,
    Discriminator,
    adversarial_loss,
    discriminator_loss,
)
from bluesky_cdi.models.weights import save_tensors, verified
from bluesky_cdi.physics.forward import to_corner
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.measured_aperture import data_support, inner_pixels, measured_share, supported
from bluesky_cdi.training.losses import relative_deviance, relative_error
from bluesky_cdi.training.pretrain import weight_of
from bluesky_cdi.training.run_file import commit_of_source
from bluesky_cdi.training.starts import after_rpie
from bluesky_cdi.training.stream import Batch, SceneShape, SceneStream

log = logging.getLogger(__name__)

ARCHITECTURE = "aperture decoders"
REGRESSION, ADVERSARIAL = "regression", "adversarial"
# Scans of a batch; on a CPU there are fewer.
SHAPE, CPU_SHAPE = SceneShape(64, 128, (25, 64), 24, 1.0), SceneShape(64, 96, (9, 16), 2, 1.0)
# Objects that scans are cut from, batches that are kept, and steps after which the oldest is renewed.
OBJECTS, CPU_OBJECTS, KEPT, CPU_KEPT, RENEWED_EVERY = 128, 8, 48, 2, 8
# Epochs of rPIE, and shares of a side of the detector that are given.
EPOCHS, SHARES = (10, 40), (0.55, 0.75)
# Of the discriminator's word beside logarithms of errors: small, as in SRGAN, for it is there to choose among what
# fits alike.
ADVERSARIAL_WEIGHT = 0.05
WARM_UP, NOTED_EVERY, LONGEST_GRADIENT = 100, 50, 1.0


@dataclass(frozen=True)
class ApertureTraining:
    """What a training of decoders is.

    Parameters
    ----------
    seconds : float
        Time to train both; the learning rate falls to zero over it.
    steps : int, optional
        Train for so many steps instead, which the same seed repeats.
    seed : int
        Of scans and first weights.
    learning_rate : float
        Of the first steps.
    photons : tuple of float
        Least and most photons of a frame.
    model : DecoderConfig
        Size.
    """

    seconds: float = 120.0
    steps: int | None = None
    seed: int = 1
    learning_rate: float = 5e-4
    photons: tuple[float, float] = (1e4, 1e8)
    model: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, eq=False)
class Example:
    """Scans reconstructed from their inner pixels.

    Attributes
    ----------
    batch : Batch
        The scans, with all pixels and the truth.
    object : Tensor, shape (B, Y, X), complex64
        From inner pixels.
    illumination, support, weight : Tensor, shape (B, Y, X)
        Photons, how far frequencies are supported, and how much pixels count.
    """

    batch: Batch
    object: Tensor
    illumination: Tensor
    support: Tensor
    weight: Tensor

    def decoded(self, decoder: ApertureDecoder) -> Tensor:
        """Give the supported part with what a decoder adds, (B, Y, X).

        Parameters
        ----------
        decoder : ApertureDecoder
            Sees nothing of the hidden pixels.
        """
        added: Tensor = decoder(self.object, self.illumination, self.support)
        return supported(self.object, self.support) + added


@torch.no_grad()
def make_example(batch: Batch, share: float, epochs: int) -> Example:
    """Hide the outer pixels of scans and reconstruct them from the others.

    Parameters
    ----------
    batch : Batch
        Far fields.
    share : float
        Of a side of the detector that is given.
    epochs : int
        Of rPIE.
    """
    data = batch.data
    inside = to_corner(inner_pixels(data.counts.shape[-1], share)).to(data.counts.device)
    mask = inside if data.mask is None else inside & data.mask
    # What is hidden is not there, for the case that something looks past the mask.
    given = replace(batch, data=replace(data, counts=torch.where(inside, data.counts, 0.0), mask=mask))
    obj = after_rpie(given, epochs)
    illumination = summed_illumination(batch.probe, data)
    shape = (data.object_shape[-2], data.object_shape[-1])
    support = data_support(measured_share(batch.probe, mask, shape), illumination)
    return Example(batch, obj, illumination, support, weight_of(batch))


class ExampleSource:
    """Give examples: some are kept and met again, and the oldest is renewed now and then.

    Parameters
    ----------
    device : torch.device
        Where they are made.
    seed : int
        Of everything.
    photons : tuple of float
        Least and most photons of a frame.
    """

    def __init__(self, device: torch.device, seed: int, photons: tuple[float, float]) -> None:
        cuda = device.type == "cuda"
        self._shape, self._kept = (SHAPE, KEPT) if cuda else (CPU_SHAPE, CPU_KEPT)
        self._stream = SceneStream(device, seed, photons, OBJECTS if cuda else CPU_OBJECTS, 2 * self._shape.grid_px)
        self._examples: list[Example] = []
        self._given = 0

    def next(self) -> Example:
        """Give the examples of the next step."""
        if len(self._examples) < self._kept or self._given % RENEWED_EVERY == 0:
            self._examples = [*self._examples[-(self._kept - 1) :], self._new()]
            chosen = len(self._examples) - 1
        else:
            chosen = self._stream.draws.whole(0, len(self._examples) - 1)
        self._given += 1
        return self._examples[chosen]

    def _new(self) -> Example:
        draws = self._stream.draws
        batch = self._stream.draw(self._shape, exact=True)
        return make_example(batch, draws.between(*SHARES), draws.whole(*EPOCHS))


def train_decoders(
    config: ApertureTraining, device: torch.device, out: Path, quiet: bool = True
) -> dict[str, ApertureDecoder]:
    """Train both decoders and write them with their record.

    Parameters
    ----------
    config : ApertureTraining
        What to do.
    device : torch.device
        Device that computes.
    out : Path
        Weights file, ends in ``.safetensors``.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    dict of str to ApertureDecoder
        By name, in evaluation mode.

    Raises
    ------
    WeightsError
        If training diverges.
    """
    from tqdm import tqdm

    run = _Run(config, device)
    began = time.monotonic()
    bar = tqdm(total=100, unit="%", disable=quiet)
    while (progress := run.progress(time.monotonic() - began)) < 1 or run.step == 0:
        run.one_step(min(progress, 1.0))
        bar.update(round(100 * min(progress, 1.0)) - bar.n)
    bar.close()
    run.note()
    record = {
        "config": asdict(config),
        "steps": run.step,
        "seconds": round(time.monotonic() - began, 1),
        "curve": run.curve,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "commit": commit_of_source(),
        "torch": torch.__version__,
    }
    state = {f"{name}.{key}": value for name, net in run.decoders.items() for key, value in net.state_dict().items()}
    save_tensors(state, {"architecture": ARCHITECTURE, **config.model.as_dict()}, out, record)
    return load_decoders(out, device)


def load_decoders(path: Path, device: torch.device) -> dict[str, ApertureDecoder]:
    """Load decoders by name.

    Parameters
    ----------
    path : Path
        File that `train_decoders` wrote.
    device : torch.device
        Where to compute.

    Raises
    ------
    WeightsError
        If the file is absent, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"no decoders at {path}. Train them: bluesky-cdi bench beyond-aperture {path} --seconds 120")
    verified(path)
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["config"])
            if about.pop("architecture", None) != ARCHITECTURE:
                raise ValueError("they are weights of something else")
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        decoders = {}
        for name in (REGRESSION, ADVERSARIAL):
            decoder = ApertureDecoder(DecoderConfig.from_dict(about))
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            decoder.load_state_dict(own)
            decoders[name] = decoder.to(device).eval().requires_grad_(False)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as err:
        raise WeightsError(f"{path} holds no decoders of this package: {err}") from err
    return decoders


class _Run:
    """A training underway."""

    def __init__(self, config: ApertureTraining, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        first = ApertureDecoder(config.model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.decoders: Mapping[str, ApertureDecoder] = {REGRESSION: first, ADVERSARIAL: copy.deepcopy(first)}
        self._discriminator = Discriminator(config.model).to(device)
        self._config = config
        self._source = ExampleSource(device, config.seed, config.photons)
        parts: dict[str, nn.Module] = {**self.decoders, "discriminator": self._discriminator}
        self._optimisers = {
            name: torch.optim.AdamW(net.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
            for name, net in parts.items()
        }
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self._last: dict[str, Tensor] = {}

    def progress(self, seconds: float) -> float:
        """Tell which part of the training is over."""
        return seconds / self._config.seconds if self._config.steps is None else self.step / self._config.steps

    def one_step(self, progress: float) -> None:
        """Let both decoders, and the discriminator, learn from the same examples."""
        warm_up, cosine = min(1.0, (self.step + 1) / WARM_UP), 0.5 * (1 + math.cos(math.pi * progress))
        for optimiser in self._optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = self._config.learning_rate * warm_up * cosine
        example = self._source.next()
        found = example.decoded(self.decoders[REGRESSION])
        self._learn(REGRESSION, losses := _losses(found, example))
        self._last = {f"{REGRESSION} {name}": value.detach() for name, value in losses.items()}
        found = example.decoded(self.decoders[ADVERSARIAL])
        losses = _losses(found, example)
        losses["adversarial"] = ADVERSARIAL_WEIGHT * adversarial_loss(self._discriminator(found, example.weight))
        self._learn(ADVERSARIAL, losses)
        self._last |= {f"{ADVERSARIAL} {name}": value.detach() for name, value in losses.items()}
        told = discriminator_loss(
            self._discriminator(example.batch.truth, example.weight),
            self._discriminator(found.detach(), example.weight),
        )
        self._learn("discriminator", {"told": told})
        self._last["discriminator"] = told.detach()
        self.step += 1
        if self.step == 1 or self.step % NOTED_EVERY == 0:
            self.note()

    def note(self) -> None:
        """Add the last losses to the learning curve."""
        values = {name: round(float(value), 5) for name, value in self._last.items()}
        if not all(map(math.isfinite, values.values())):
            raise WeightsError(
                f"training diverged before step {self.step} ({values}): train with a lower learning rate than "
                f"{self._config.learning_rate}"
            )
        self.curve.append({"step": self.step, **values})
        log.info("%s", self.curve[-1])

    def _learn(self, name: str, losses: Mapping[str, Tensor]) -> None:
        optimiser = self._optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        parameters = [each for group in optimiser.param_groups for each in group["params"]]
        nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
        optimiser.step()


def _losses(found: Tensor, example: Example) -> dict[str, Tensor]:
    """Compute the errors of decoded objects: to the truth, and of whole frames under them."""
    batch = example.batch
    error = relative_error(found, batch.truth, example.weight)
    deviance = relative_deviance(found, batch.true_probe, batch.true_data)
    # Of logarithms: scans weigh alike, whatever their dose and their contrast.
    return {"object": (error + 1e-4).log().mean(), "frames": (deviance + 1e-4).log().mean()}
