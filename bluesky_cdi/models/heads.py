"""Heads beside a trained network: several that predict the error of any object, so that they can disagree.

What an encoder makes of an object, of the physics step that the frames ask for, and of that step's size, decoders turn
into the mean and the deviation of the error of amplitude and phase, for each pixel. There are three kinds of them:

- ``ensemble``: several, which began at different weights and learned from different scenes (Lakshminarayanan, Pritzel
  and Blundell, NeurIPS 2017; here with one encoder for all);
- ``dropout``: one, with some of its channels switched off at random (Gal and Ghahramani, ICML 2016);
- ``variational``: one, whose last layer has a Gaussian distribution of weights (Blei, Kucukelbir and McAuliffe,
  J. Am. Stat. Assoc. 112, 859 (2017)), learned with local reparametrisation (Kingma, Salimans and Welling, NeurIPS
  2015).

The network itself, its stages and its critic, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_cdi.models.unrolled import (
    LOG_STD_MIDDLE,
    PHYSICS_CHANNELS,
    SCALED_CHANNELS,
    UNet,
    UnrolledConfig,
    bounded_log_std,
    decoded,
    encoded,
    look,
    prepared,
    scaled,
    short_unets,
    without_mean_phase,
)
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illuminated_frames import IlluminatedFrames

Kind = Literal["ensemble", "dropout", "variational"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Of a decoder: logarithm of the deviation of amplitude and of phase, as the critic has them, then the mean of both.
OUTPUTS = 4
# Of the deviations that are predicted before training, the logarithm.
FIRST_LOG_STD = -1.5
# Deviation that the weights of a variational layer begin with, as a share of that of new weights.
FIRST_SHARE = 0.03


@dataclass(frozen=True)
class HeadsConfig:
    """Size of the heads.

    Parameters
    ----------
    members : int
        Decoders of the ensemble, and how often the one with dropout looks at an object.
    dropout : float
        Share of its channels that are switched off at a time.
    unet : UnrolledConfig
        Sizes of the U-Nets: those of the network.

    Raises
    ------
    ValueError
        If there is no member, or the share is not between 0 and 1.
    """

    members: int = 4
    dropout: float = 0.1
    unet: UnrolledConfig = field(default_factory=UnrolledConfig)

    def __post_init__(self) -> None:
        if self.members < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"heads have 1 member or more and a dropout from 0 to below 1; got {self.members}, {self.dropout}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values, for a weights file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadsConfig:
        """Take what `as_dict` gave."""
        return cls(**{**values, "unet": UnrolledConfig(**values["unet"])})


@dataclass(frozen=True, eq=False)
class Predicted:
    """What several heads, or one several times, say of the errors of objects.

    Attributes
    ----------
    mean : Tensor, shape (K, B, 2, Y, X)
        How far amplitude and phase (radians) are above the truth.
    log_std : Tensor, shape (K, B, 2, Y, X)
        Natural logarithm of the deviation around that mean.
    variance : Tensor, shape (B, 2, Y, X), or None
        Of the mean, where there is one head that knows it.
    """

    mean: Tensor
    log_std: Tensor
    variance: Tensor | None = None

    def variances(self) -> tuple[Tensor, Tensor]:
        """Compute how far heads differ in the mean (epistemic), and the rest (aleatoric): (B, 2, Y, X) each.

        Phases differ on the circle. One head does not differ from itself, nor do several that are the same.
        """
        aleatoric = (2 * self.log_std).exp().mean(dim=0)
        if self.variance is not None:
            return self.variance, aleatoric
        # From the first on, so that what is the same is exactly 0 apart.
        amplitude, phase = (self.mean - self.mean[:1]).unbind(dim=2)
        middle = torch.atan2(phase.sin().mean(dim=0), phase.cos().mean(dim=0))
        phase = torch.atan2((phase - middle).sin(), (phase - middle).cos())
        apart = torch.stack([amplitude - amplitude.mean(dim=0), phase], dim=2)
        return apart.square().sum(dim=0) / max(1, len(apart) - 1), aleatoric

    def bias(self) -> Tensor:
        """Compute the mean of what the heads say, phases on the circle: (B, 2, Y, X)."""
        phase = self.mean[:, :, 1]
        middle = torch.atan2(phase.sin().mean(dim=0), phase.cos().mean(dim=0))
        return torch.stack([self.mean[:, :, 0].mean(dim=0), middle], dim=1)


class ChannelDropout(nn.Module):
    """Switch channels off at random, each scene's all over its object, in use as in training.

    Parameters
    ----------
    share : float
        Of the channels.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        # Beside the GPU, which so is never waited for.
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        """Switch channels of (B, C, Y, X) off; the others grow, so that the mean stays."""
        kept = torch.rand(x.shape[:2], generator=self.generator) >= self.share
        factor = (kept / (1 - self.share)).to(x.device, x.dtype, non_blocking=True)
        return x * factor[:, :, None, None]


class VariationalConv(nn.Module):
    """A convolution whose weights have Gaussian distributions; its biases have none.

    Parameters
    ----------
    mean : Conv2d
        Its weights are the means to begin with.
    """

    def __init__(self, mean: nn.Conv2d) -> None:
        super().__init__()
        self.mean = mean
        # Deviation of the prior: that of new weights.
        self.prior = 1 / math.sqrt(mean.weight[0].numel())
        self.log_std = nn.Parameter(torch.full_like(mean.weight, math.log(FIRST_SHARE * self.prior)))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, Y, X): each output pixel a draw in training, its mean in use."""
        out: Tensor = self.mean(x)
        return out + self.variance(x).sqrt() * torch.randn_like(out) if self.training else out

    def variance(self, x: Tensor) -> Tensor:
        """Compute the variances of the outputs."""
        # The least one keeps the slope of the root finite where the features are 0.
        return F.conv2d(x.square(), (2 * self.log_std).exp(), padding=1) + 1e-12

    def divergence(self) -> Tensor:
        """Compute the Kullback-Leibler divergence from the prior, nats."""
        ratio = (self.mean.weight.square() + (2 * self.log_std).exp()) / self.prior**2
        return 0.5 * (ratio - 1).sum() - (self.log_std - math.log(self.prior)).sum()


class Encoder(nn.Module):
    """The way down of a U-Net.

    Parameters
    ----------
    unet : UNet
        Whose parts these are.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.entry, self.encoder, self.down = unet.entry, unet.encoder, unet.down

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features of each level, finest first."""
        return encoded(self.entry, self.encoder, self.down, x)


class Decoder(nn.Module):
    """The way up of a U-Net.

    Parameters
    ----------
    unet : UNet
        Whose parts these are.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.up, self.decoder = unet.up, unet.decoder
        self.exit: nn.Module = unet.exit

    def features(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute the finest features from those of each level on the way down, finest first."""
        return decoded(self.up, self.decoder, levels[:-1], levels[-1])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute the outputs of the last layer."""
        out: Tensor = self.exit(self.features(levels))
        return out


class ErrorHeads(nn.Module):
    """An encoder, and decoders of all kinds.

    Parameters
    ----------
    config : HeadsConfig, optional
        Sizes.
    """

    def __init__(self, config: HeadsConfig | None = None) -> None:
        super().__init__()
        self.config = config or HeadsConfig()
        size = replace(self.config.unet, attention=False)
        self.stem, self.block = size.stem, size.stem * 2 ** (size.levels - 1)
        unets = [UNet(PHYSICS_CHANNELS + SCALED_CHANNELS, OUTPUTS, size) for _ in range(self.config.members + 2)]
        for unet in unets:
            # No error is foreseen at first, and one of any size is possible.
            foreseen = torch.tensor([FIRST_LOG_STD - LOG_STD_MIDDLE] * 2 + [0.0] * 2).repeat_interleave(size.stem**2)
            unet.exit.load_state_dict({"weight": torch.zeros_like(unet.exit.weight), "bias": foreseen})
        self.encoder = Encoder(unets[0])
        *members, self.dropout, self.variational = (Decoder(unet) for unet in unets)
        self.ensemble = nn.ModuleList(members)
        for blocks in self.dropout.decoder:
            cast(nn.Sequential, blocks).append(ChannelDropout(self.config.dropout))
        self.variational.exit = VariationalConv(cast(nn.Conv2d, self.variational.exit))

    def begin_from(self, critic: UNet) -> None:
        """Take over the critic's way down; what it doesn't see has no weight yet.

        Parameters
        ----------
        critic : UNet
            Of a network of the same size.
        """
        known = Encoder(critic).state_dict()
        entry = torch.zeros_like(self.encoder.entry.weight)
        entry[:, : known["entry.weight"].shape[1]] = known["entry.weight"]
        self.encoder.load_state_dict({**known, "entry.weight": entry})

    def reseed(self, seed: int) -> None:
        """Begin another sequence of the channels that are switched off."""
        for number, module in enumerate(self.modules()):
            if isinstance(module, ChannelDropout):
                module.generator.manual_seed(seed + number)

    def encode(self, obj: Tensor, probe: Tensor, data: Diffraction) -> tuple[list[Tensor], Tensor]:
        """Compute what the decoders see of objects, without their mean phase, which no frame tells.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex64
            The objects.
        probe : Tensor, shape (B, M, N, N), complex64
            Their modes.
        data : Diffraction
            The frames.

        Returns
        -------
        list of Tensor
            Features of each level, finest first.
        Tensor, shape (B, 6, Y, X)
            What the critic sees of them so.
        """
        channels, _, support = look(obj, probe, IlluminatedFrames(probe, data, room=0))
        channels = without_mean_phase(channels, support)
        step = torch.complex(channels[:, 2], channels[:, 3])
        seen = torch.cat([channels, scaled(step, support)[1]], dim=1)
        image = prepared(seen, *(-side % self.block for side in obj.shape[1:]))
        with short_unets(obj):
            levels: list[Tensor] = self.encoder(F.pixel_unshuffle(image, self.stem))
        return levels, channels

    def predict(self, kind: Kind, levels: Sequence[Tensor], shape: tuple[int, int]) -> Predicted:
        """Predict errors.

        Parameters
        ----------
        kind : {'ensemble', 'dropout', 'variational'}
            By which decoders.
        levels : sequence of Tensor
            What `encode` gave.
        shape : tuple of int
            (Y, X) of the objects.
        """
        if kind == "variational":
            return self._with_variance(levels, shape)
        members = self.ensemble if kind == "ensemble" else [self.dropout] * self.config.members
        return Predicted(*_stacked([self.head(member, levels, shape) for member in members]))

    def head(self, decoder: nn.Module, levels: Sequence[Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Predict errors by one decoder: mean and logarithm of the deviation, (B, 2, Y, X) each."""
        with short_unets(levels[0]):
            raw = decoder(levels)
        return self._errors(raw, shape)

    def _with_variance(self, levels: Sequence[Tensor], shape: tuple[int, int]) -> Predicted:
        last = cast(VariationalConv, self.variational.exit)
        with short_unets(levels[0]):
            features = self.variational.features(levels)
            raw = last.mean(features)
        # In single precision: squares of small deviations.
        mean, log_std = self._errors(raw, shape)
        variance = F.pixel_shuffle(last.variance(features.float()), self.stem)[..., : shape[0], : shape[1]]
        return Predicted(mean[None], log_std[None], variance[:, 2:])

    def _errors(self, raw: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Give mean and logarithm of the deviation, (B, 2, Y, X) each, as the outputs of a last layer have them."""
        out = F.pixel_shuffle(raw.float(), self.stem)[..., : shape[0], : shape[1]]
        return out[:, 2:], bounded_log_std(out[:, :2])


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    means, log_stds = zip(*pairs, strict=True)
    return torch.stack(means), torch.stack(log_stds)
