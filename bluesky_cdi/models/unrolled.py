"""The unrolled network on the stitched object.

Each stage computes, from the physics, the change of the object that all frames together ask
for, and a U-Net over the object turns it into the change that is made. The frames cost one FFT
pair a physics step; the convolutions are paid once for each pixel of the object. Any number of
frames, any arrangement, any probe and any number of its modes go in at run time.

A last U-Net, the critic, looks at any object estimate in the same way and says how far off it
is; its features, pooled under a frame's illumination, are the frame's embedding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_cdi.models.attention import GridAttention
from bluesky_cdi.models.joint_probe import Pupil, asked_changes
from bluesky_cdi.physics.forward import Diffraction, intensity, patch_index, peak_intensity
from bluesky_cdi.physics.illuminated_frames import IlluminatedFrames, has_triton

# Share of the probe's peak intensity that keeps the physics step finite where little light fell.
STEP_DAMPING = 0.05
# Object, physics step (real and imaginary each), saturated and logarithmic illumination.
PHYSICS_CHANNELS = 6
# What a scaled network sees besides: the physics step (real and imaginary) in units of its local size, and that size.
SCALED_CHANNELS = 3
# Side, in pixels, of the square over which a step's size is taken, and the least size told apart from none.
SIZE_WINDOW, LEAST_SIZE = 15, 1e-5
# Largest size of a step that is a unit of changes.
MOST_SIZE = 0.5
# Before training: share of a sweep's last change that goes on with the next part of the frames; photons on a pixel at
# which half of what a part asks for is noise, in the first stage and, where less is left to change, in the last.
MOMENTUM, NOISE_PHOTONS = 0.7, (5.0, 100.0)
# Fewest frames of a part of a sweep, on average over the scenes.
LEAST_PART = 4
# Size of a step at which the change of an untrained scaled network is halved: below all that matters at first.
HALVED_AT = 1e-3
# Log standard deviations stay between 1e-3 and 3: outside, the critic can't be right. The bounds
# are soft, because a hard one has no gradient to come back from.
LOG_STD_MIDDLE, LOG_STD_HALF_RANGE = -2.9, 4.0
# Whether U-Nets on a CPU compute in bf16, in this thread.
_SHORT_ON_CPU: ContextVar[bool] = ContextVar("_SHORT_ON_CPU", default=False)


@dataclass(frozen=True)
class UnrolledConfig:
    """Size of the network.

    Parameters
    ----------
    stages : int
        Unrolled stages.
    steps : int
        Physics steps of a stage; its U-Net sees the last.
    subsets : int
        Parts of the frames that all steps but the last of a stage go through one after the other, with momentum (a
        sweep); 1: all frames together.
    channels : int
        Channels of the finest level; level i has ``min(i + 1, 3)`` times as many.
    levels : int
        Resolutions of each U-Net.
    stem : int
        Side of the pixel blocks that become channels on entry.
    blocks : int
        Residual blocks a level, on the way down and again on the way up.
    memory : int
        Channels that a stage hands to the next beside the object.
    attention : bool
        Whether the stages have self-attention at their coarsest level.
    scaled : bool
        Whether the stages see the physics step in units of its local size too, may make changes in these units, and
        make none where the frames ask for none.
    passes : int
        Passes in a row that bring something. A network for several improves on what is known; one for a single pass
        draws the object anew, whatever it is given.

    Raises
    ------
    ValueError
        If there are subsets, but no step before the one that a U-Net sees.
    """

    stages: int = 5
    steps: int = 1
    subsets: int = 1
    channels: int = 32
    levels: int = 4
    stem: int = 2
    blocks: int = 1
    memory: int = 8
    attention: bool = False
    scaled: bool = False
    passes: int = 1

    def __post_init__(self) -> None:
        if self.subsets > 1 and self.steps < 2:
            raise ValueError(
                f"a sweep is a step before the one that a U-Net sees: give 2 steps or more; got {self.steps}"
            )

    def as_dict(self) -> dict[str, int]:
        """Give the configuration as plain values, for a weights file."""
        return asdict(self)


# Sizes for a choice of speed and quality. 'large' is 'small' with more stages and steps, so that it can go on from it;
# 'tiny' has half of the channels.
PRESETS: Mapping[str, UnrolledConfig] = {
    "tiny": UnrolledConfig(channels=16),
    "small": UnrolledConfig(),
    "large": UnrolledConfig(stages=8, steps=2),
}


class ResidualBlock(nn.Module):
    """Two convolutions around a GELU, on normalised channels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Change the features (B, C, Y, X) by what each pixel's neighbourhood holds."""
        # Normalising over channels only keeps the network local: what lies far away on the
        # object, or how large the object is, changes nothing here.
        change: Tensor = self.second(F.gelu(self.first(self._normalised(x))))
        return x + change

    def _normalised(self, x: Tensor) -> Tensor:
        if x.is_cuda and has_triton():
            from bluesky_cdi.models.channel_norm import channel_norm

            return channel_norm(x, self.norm)
        normalised: Tensor = self.norm(x.permute(0, 2, 3, 1))  # (B, Y, X, C)
        return normalised.permute(0, 3, 1, 2)


class UNet(nn.Module):
    """A small U-Net; gives its output and its finest features.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    config : UnrolledConfig
        Widths, levels, blocks and attention.
    """

    def __init__(self, inputs: int, outputs: int, config: UnrolledConfig) -> None:
        super().__init__()
        self.stem = config.stem
        self.inputs = inputs
        widths = [config.channels * min(i + 1, 3) for i in range(config.levels)]
        pairs = list(pairwise(widths))
        self.entry = nn.Conv2d(inputs * config.stem**2, widths[0], 3, padding=1)
        self.attention = GridAttention(widths[-1]) if config.attention else nn.Identity()
        self.encoder = nn.ModuleList(_blocks(w, config.blocks) for w in widths)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine * 4, 1) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(_blocks(w, config.blocks) for w in widths[:-1])
        self.exit = nn.Conv2d(widths[0], outputs * config.stem**2, 3, padding=1)
        # What computes batches (B, Y, X) with gradients in its place: see `training.graphs`.
        self.graphs: dict[tuple[int, int, int], Callable[[Tensor], tuple[Tensor, Tensor]]] = {}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (B, outputs, Y, X) and features (B, C, Y / stem, X / stem) from (B, inputs, Y, X).

        Parameters
        ----------
        x : Tensor, shape (B, inputs, Y, X)
            Images, as channels.
        """
        *skips, coarsest = encoded(self.entry, self.encoder, self.down, F.pixel_unshuffle(x, self.stem))
        x = decoded(self.up, self.decoder, skips, self.attention(coarsest))
        return F.pixel_shuffle(self.exit(x), self.stem), x


def encoded(entry: nn.Module, encoder: nn.ModuleList, down: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Compute the features of a U-Net's levels on the way down.

    Parameters
    ----------
    entry : Module
        Convolution to the finest level.
    encoder, down : ModuleList
        Blocks of each level, and what leads from each to the next.
    x : Tensor, shape (B, inputs stem^2, Y / stem, X / stem)
        What it sees.

    Returns
    -------
    list of Tensor, shape (B, C, Y / stem / 2^level, X / stem / 2^level)
        Finest first.
    """
    x = entry(x)
    levels = []
    for encode, step in zip(encoder[:-1], down, strict=True):
        levels.append(encode(x))
        x = step(levels[-1])  # (B, 2 C, Y / 2, X / 2)
    return [*levels, encoder[-1](x)]


def decoded(up: nn.ModuleList, decoder: nn.ModuleList, skips: Sequence[Tensor], x: Tensor) -> Tensor:
    """Compute the finest features of a U-Net on the way up.

    Parameters
    ----------
    up, decoder : ModuleList
        What leads to each level but the coarsest, and its blocks; finest first.
    skips : sequence of Tensor
        Features of these levels on the way down.
    x : Tensor
        Features of the coarsest level.
    """
    for decode, step, skip in zip(reversed(decoder), reversed(up), reversed(skips), strict=True):
        x = decode(F.pixel_shuffle(step(x), 2) + skip)
    return x


class UnrolledNet(nn.Module):
    """Unrolled reconstruction of the object from frames, and the critic of any estimate."""

    def __init__(self, config: UnrolledConfig | None = None) -> None:
        super().__init__()
        self.config = config or UnrolledConfig()
        inputs = PHYSICS_CHANNELS + self.config.memory + SCALED_CHANNELS * self.config.scaled
        outputs = 2 + self.config.memory + 2 * self.config.scaled
        self.stages = nn.ModuleList(UNet(inputs, outputs, self.config) for _ in range(self.config.stages))
        self.step_size = nn.Parameter(torch.ones(self.config.stages * self.config.steps))
        if self.config.scaled:
            self.log_halved_at = nn.Parameter(torch.full((self.config.stages,), math.log(HALVED_AT)))
        if self.config.subsets > 1:
            self.momentum_logit = nn.Parameter(torch.full((self.config.stages,), MOMENTUM).logit())
            first, last = map(math.log, NOISE_PHOTONS)
            self.log_noise_photons = nn.Parameter(torch.linspace(first, last, self.config.stages))
        self.critic = UNet(PHYSICS_CHANNELS, 2, replace(self.config, attention=False))
        # Of amplitude and phase; `training.calibration` sets it once the critic has learned.
        self.log_std_offset: Tensor
        self.register_buffer("log_std_offset", torch.zeros(2))

    def go_on_from(self, earlier: UnrolledNet) -> None:
        """Take what a network has learned.

        Further stages and steps are steps of the physics until they learn better; attention that it lacks changes
        nothing until then, nor does the size of the step, but for changes where the frames ask for next to none. Where
        it lacks sweeps, they take the place of steps.

        Parameters
        ----------
        earlier : UnrolledNet
            Of stages of the same size, and not of more of them.

        Raises
        ------
        ValueError
            If it has more stages, steps or subsets than this one, or attention or a scale that this one lacks, or the
            stages have another size.
        """
        ours, theirs = self.config, earlier.config
        more = ("stages", "steps", "subsets", "attention", "scaled")
        grown = replace(theirs, passes=ours.passes, **{name: getattr(ours, name) for name in more})
        if grown != ours or any(getattr(theirs, name) > getattr(ours, name) for name in more):
            raise ValueError(f"{theirs} doesn't fit into {ours}: only {', '.join(more)} may be more")
        for stage, trained in zip(self.stages, earlier.stages, strict=False):
            untrained = {name: value for name, value in stage.state_dict().items() if name.startswith("attention.")}
            stage.load_state_dict({**untrained, **widened(trained.state_dict(), stage.state_dict())})
        self.critic.load_state_dict(earlier.critic.state_dict())
        with torch.no_grad():
            self.step_size.fill_(1.0)
            # The further steps of a stage come before those that its U-Net knows.
            self._step_sizes()[: theirs.stages, ours.steps - theirs.steps :] = earlier._step_sizes()
            if theirs.scaled:
                self.log_halved_at[: theirs.stages] = earlier.log_halved_at
            if theirs.subsets > 1:
                self.momentum_logit[: theirs.stages] = earlier.momentum_logit
                self.log_noise_photons[: theirs.stages] = earlier.log_noise_photons
            for stage in self.stages[theirs.stages :]:
                for parameter in cast(UNet, stage).exit.parameters():
                    parameter.zero_()

    def forward(self, probe: Tensor, data: Diffraction, start: Tensor | None = None) -> list[Tensor]:
        """Make one pass through the stages, with the probe as it is given.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Its photons set the scale of the counts.
        data : Diffraction
            The frames.
        start : Tensor, shape (B, Y, X), complex64, optional
            The object that the first stage improves, an earlier pass's for example; vacuum if absent.

        Returns
        -------
        list of Tensor, shape (B, Y, X), complex64
            The object after each stage; the last is the result.
        """
        return self.solve(probe, data, start)[0]

    def solve(
        self, probe: Tensor, data: Diffraction, start: Tensor | None = None, *, finds_probe: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Make one pass through the stages, and say with which probes.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            The assumed one. Its photons set the scale of the counts.
        data : Diffraction
            The frames.
        start : Tensor, shape (B, Y, X), complex64, optional
            The object that the first stage improves; vacuum if absent.
        finds_probe : bool
            Whether each stage but the first, which may know no object, begins with a step of the probe (`joint_probe`).

        Returns
        -------
        list of Tensor, shape (B, Y, X), complex64
            The object after each stage.
        list of Tensor, shape (B, M, N, N), complex64
            The probe in each stage: the assumed one itself until a stage changes it.
        """
        shape = data.object_shape
        frames = IlluminatedFrames(probe, data, subsets=self._parts(len(data) // shape[0]))
        obj = torch.ones(shape, dtype=probe.dtype, device=probe.device) if start is None else start
        memory = torch.zeros(shape[0], self.config.memory, *shape[1:], device=probe.device)
        pupil = Pupil.of(probe) if finds_probe else None
        outputs, probes = [], []
        for number, (net, step_sizes) in enumerate(zip(self.stages, self._step_sizes(), strict=True)):
            if pupil is not None and number > 0:
                probe = pupil.bent(probe, asked_changes(obj, probe, data, pupil))
                frames = IlluminatedFrames(probe, data, subsets=self._parts(len(data) // shape[0]))
            for step_size in step_sizes[:-1]:
                if self.config.subsets > 1:
                    obj = self._sweep(number, obj, step_size, probe, frames)
                else:
                    obj = obj + step_size * damped_step(obj, probe, frames)[0]
            channels, step, support = look(obj, probe, frames)
            seen = [channels, memory]
            if self.config.scaled:
                # Without their gradients, which grow by 1 / size with each stage, to 1e25 where hardly any light fell.
                size, units = scaled(step.detach(), support)
                seen.append(units)
            out, _ = run_unet(cast(UNet, net), torch.cat(seen, dim=1))
            change, memory = torch.complex(out[:, 0], out[:, 1]), out[:, 2 : 2 + self.config.memory]
            if self.config.scaled:
                # Bounded: a change in proportion to the error that makes the error larger would grow like a power of
                # the stages.
                units = torch.complex(torch.tanh(out[:, -2]), torch.tanh(out[:, -1]))
                change = change + size.clamp_max(MOST_SIZE) * units
                change = change * (1 + (self.log_halved_at[number].exp() / size).square()).reciprocal()
            obj = obj + step_sizes[-1] * step + support * change
            outputs.append(obj)
            probes.append(probe)
        return outputs, probes

    def judge(
        self, obj: Tensor, probe: Tensor, data: Diffraction, *, without_phase: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predict how far off an object is, wherever it came from.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex64
            The object.
        probe : Tensor, shape (B, M, N, N), complex64
            Its modes.
        data : Diffraction
            The frames.
        without_phase : bool
            Take the features of the object without its mean phase, which no frame tells (see `without_mean_phase`).
            The deviations are those of the object as it is.

        Returns
        -------
        log_std : Tensor, shape (B, 2, Y, X)
            Natural logarithm of the standard deviation of amplitude and of phase (radians).
        features : Tensor, shape (B, C, Y / stem, X / stem)
        """
        channels, _, support = look(obj, probe, IlluminatedFrames(probe, data, room=0))
        if without_phase:
            channels = torch.cat([channels, without_mean_phase(channels, support)])  # (2 B, 6, Y, X)
        log_std, features = run_unet(self.critic, channels)
        if without_phase:
            log_std, features = log_std[: len(obj)], features[len(obj) :]
        return bounded_log_std(log_std) + self.log_std_offset[:, None, None], features

    def _parts(self, frames: int) -> int:
        """Return how many parts of the frames of a scene a sweep goes through."""
        return max(1, min(self.config.subsets, frames // LEAST_PART))

    def _sweep(self, stage: int, obj: Tensor, step_size: Tensor, probe: Tensor, frames: IlluminatedFrames) -> Tensor:
        """Go through the parts of the frames, each from the object that the one before has left, with momentum."""
        damping = STEP_DAMPING * peak_intensity(probe) + self.log_noise_photons[stage].exp()
        momentum = self.momentum_logit[stage].sigmoid()
        velocity = torch.zeros_like(obj)
        for part in range(frames.subsets):
            numerator, illumination = frames.step_of_subset(obj, part)
            change = step_size * numerator / (illumination + damping)
            velocity = momentum * velocity + change
            obj = obj + change + momentum * velocity
        return obj

    def _step_sizes(self) -> Tensor:
        """Give the lengths of the physics steps, (stages, steps)."""
        return self.step_size.view(self.config.stages, self.config.steps)


def bounded_log_std(raw: Tensor) -> Tensor:
    """Bring what a critic says into the range of possible logarithms of deviations."""
    return LOG_STD_MIDDLE + LOG_STD_HALF_RANGE * torch.tanh(raw / LOG_STD_HALF_RANGE)


def damped_step(obj: Tensor, probe: Tensor, frames: IlluminatedFrames) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the physics step of an object, damped where hardly any light fell.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex64
        The object.
    probe : Tensor, shape (B, M, N, N), complex64
        Its modes.
    frames : IlluminatedFrames
        The frames on it.

    Returns
    -------
    tuple of Tensor, shape (B, Y, X) each
        The step, its support from 0 to 1, and the illumination in photons.
    """
    numerator, illumination = frames.step(obj)
    damping = STEP_DAMPING * peak_intensity(probe)
    return numerator / (illumination + damping), illumination / (illumination + damping), illumination


def look(obj: Tensor, probe: Tensor, frames: IlluminatedFrames) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what a U-Net sees of an object.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex64
        The object.
    probe : Tensor, shape (B, M, N, N), complex64
        Its modes.
    frames : IlluminatedFrames
        The frames on it.

    Returns
    -------
    tuple of Tensor
        Channels (B, 6, Y, X): object less vacuum, physics step, support, logarithm of the illumination; then
        the physics step and its support, (B, Y, X) each.
    """
    step, support, illumination = damped_step(obj, probe, frames)
    channels = [obj.real - 1, obj.imag, step.real, step.imag, support, torch.log10(1 + illumination) / 3]
    return torch.stack(channels, dim=1), step, support


def scaled(step: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the local size of a physics step, and the channels that show the step in units of it.

    Parameters
    ----------
    step : Tensor, shape (B, Y, X), complex64
        The step.
    support : Tensor, shape (B, Y, X)
        Its support.

    Returns
    -------
    Tensor, shape (B, Y, X)
        Size.
    Tensor, shape (B, 3, Y, X)
        Step over size (real, imaginary), and the logarithm of the size.
    """
    size = local_size(step, support)
    unit = step / size
    return size, torch.stack([unit.real, unit.imag, 1 + torch.log10(size) / 2], dim=1)


def without_mean_phase(channels: Tensor, support: Tensor) -> Tensor:
    """Turn object and physics step, as a U-Net sees them, so that the object's mean phase is 0.

    The step of a turned object is the step turned, so nothing is computed again.

    Parameters
    ----------
    channels : Tensor, shape (B, 6, Y, X)
        What `look` gives.
    support : Tensor, shape (B, Y, X)
        Weight of each pixel in the mean.

    Returns
    -------
    Tensor, shape (B, 6, Y, X)
    """
    obj = torch.complex(channels[:, 0] + 1, channels[:, 1])
    mean = (support * obj).sum(dim=(-2, -1), keepdim=True)
    # `sgn` of nothing is 0: an object whose mean vanishes has no mean phase, and stays as it is.
    turn = torch.where(mean == 0, 1, torch.sgn(mean.conj()))
    obj, step = turn * obj, turn * torch.complex(channels[:, 2], channels[:, 3])
    turned = torch.stack([obj.real - 1, obj.imag, step.real, step.imag], dim=1)
    return torch.cat([turned, channels[:, 4:]], dim=1)


def local_size(step: Tensor, support: Tensor) -> Tensor:
    """Compute the root mean square of a physics step around each pixel, where light fell.

    It is what the frames still ask for: the error at first, noise alone in the end.

    Parameters
    ----------
    step : Tensor, shape (B, Y, X), complex64
        The step.
    support : Tensor, shape (B, Y, X)
        Its support.

    Returns
    -------
    Tensor, shape (B, Y, X)
        At least `LEAST_SIZE`.
    """
    squares = torch.stack([step.real.square() + step.imag.square(), support.square()], dim=1)
    half = SIZE_WINDOW // 2
    rows = F.avg_pool2d(squares, (SIZE_WINDOW, 1), stride=1, padding=(half, 0))
    mean = F.avg_pool2d(rows, (1, SIZE_WINDOW), stride=1, padding=(0, half))
    return (mean[:, 0] / (mean[:, 1] + LEAST_SIZE) + LEAST_SIZE**2).sqrt()


def run_unet(net: UNet, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Run a U-Net on an object of any size, in bf16 on a GPU and within `in_bf16_where_native`.

    Parameters
    ----------
    net : UNet
        The network.
    channels : Tensor, shape (B, inputs, Y, X), float32
        What it sees.

    Returns
    -------
    Tensor, shape (B, outputs, Y, X)
    Tensor, shape (B, C, Y / stem, X / stem)
        Features; up to a block more where the object is no whole number of blocks.
    """
    height, width = channels.shape[-2:]
    padded = prepared(channels, *padding(net, height, width))
    graph = net.graphs.get((len(padded), *padded.shape[2:])) if torch.is_grad_enabled() else None
    if graph is not None:
        out, features = graph(padded)
    else:
        with short_unets(channels):
            out, features = net(padded)
    return out.float()[..., :height, :width], features.float()


@contextlib.contextmanager
def in_bf16_where_native(device: torch.device) -> Iterator[None]:
    """Let U-Nets on a CPU compute in bf16, as they do on a GPU, if that is what its arithmetic units have.

    Convolutions take half of the time then; another CPU would only imitate bf16, and nothing is different on it.
    All but U-Nets is computed as ever.

    Parameters
    ----------
    device : torch.device
        Where is computed.
    """
    token = _SHORT_ON_CPU.set(device.type == "cpu" and has_native_bf16())
    try:
        yield
    finally:
        _SHORT_ON_CPU.reset(token)


def has_native_bf16() -> bool:
    """Tell whether this machine's CPU has arithmetic units for bf16."""
    # Older versions of PyTorch don't tell.
    has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def short_unets(like: Tensor) -> torch.autocast:
    """Compute convolutions in bf16 on a GPU, and on a CPU within `in_bf16_where_native`; elsewhere as ever.

    Parameters
    ----------
    like : Tensor
        On the device where they are.
    """
    return torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=_is_short(like))


def _is_short(like: Tensor) -> bool:
    return like.is_cuda or (like.device.type == "cpu" and _SHORT_ON_CPU.get())


def padding(net: UNet, height: int, width: int) -> tuple[int, int]:
    """Compute the rows and columns that an image lacks to a whole number of the coarsest level's blocks.

    Parameters
    ----------
    net : UNet
        Its levels set the block.
    height, width : int
        Of the image, pixels.
    """
    block = net.stem * 2 ** len(net.down)
    return -height % block, -width % block


def prepared(channels: Tensor, below: int, right: int) -> Tensor:
    """Bring an image into the form that convolutions take.

    Parameters
    ----------
    channels : Tensor, shape (B, C, Y, X), float32
        The image.
    below, right : int
        Rows and columns to add.

    Returns
    -------
    Tensor, shape (B, C, Y + below, X + right)
        bf16 where the convolutions would make it so anyway: it is done before it is copied about.
    """
    image = channels.to(torch.bfloat16 if _is_short(channels) else channels.dtype)
    return F.pad(image, (0, right, 0, below)).contiguous(memory_format=torch.channels_last)


def pool_under_frames(features: Tensor, probe: Tensor, data: Diffraction, stem: int, chunk: int = 64) -> Tensor:
    """Average object features under each frame's illumination: the frame's embedding.

    Parameters
    ----------
    features : Tensor, shape (1, C, Y / stem, X / stem)
        Of the network, on the object's grid.
    probe : Tensor, shape (1, M, N, N), complex
        Its modes.
    data : Diffraction
        The frames.
    stem : int
        Object pixels along one side of a feature pixel.
    chunk : int
        Frames computed at a time.

    Returns
    -------
    Tensor, shape (n, C)
    """
    weight = F.avg_pool2d(intensity(probe)[:, None], stem)[0, 0]  # (N / stem, N / stem)
    weight = weight / weight.sum()
    pixels = features[0].permute(1, 2, 0).flatten(0, 1)  # (Y X / stem^2, C)
    pooled = []
    for part in data.chunks(chunk):
        corner = torch.div(part.corner, stem, rounding_mode="floor")
        index = patch_index(corner, len(weight), tuple(features.shape)).flatten(1)  # (n, (N / stem)^2)
        weights = weight.flatten().expand(index.shape).contiguous()
        pooled.append(F.embedding_bag(index, pixels, mode="sum", per_sample_weights=weights))
    return torch.cat(pooled) if pooled else features.new_zeros(0, features.shape[1])


def widened(trained: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill a U-Net's weights up with zeros for inputs and outputs that it lacks, which are the last ones.

    Parameters
    ----------
    trained : Mapping
        State of the U-Net.
    own : Mapping
        State of one with more inputs or outputs.
    """
    state = dict(trained)
    for name in ("entry.weight", "exit.weight", "exit.bias"):
        state[name] = torch.zeros_like(own[name])
        state[name][tuple(slice(side) for side in trained[name].shape)] = trained[name]
    return state


def _blocks(channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(number)))
