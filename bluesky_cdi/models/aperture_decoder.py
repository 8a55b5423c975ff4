"""What a prior adds to an object beyond its measured aperture: one U-Net, trained in either of two ways.

The decoder sees a reconstruction from measured pixels and adds to its supported part only at frequencies that frames
don't support, each as far as they don't (`physics.measured_aperture`): what the data determine stays, and what was
added is known apart. Trained by regression it learns the mean of what could be there; against a `Discriminator` it
learns what looks like an object (SRGAN: Ledig et al., CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_cdi.models.unrolled import UNet, UnrolledConfig, run_unet
from bluesky_cdi.physics.illumination_shares import STITCHED_SHARE
from bluesky_cdi.physics.measured_aperture import beyond

# Supported part of the object (real, imaginary), the rest of it (same), root and logarithm of the light.
CHANNELS = 6
# Of the logarithm of photons on a pixel, so that it is of order one.
LOG_SCALE = 8.0


@dataclass(frozen=True)
class DecoderConfig:
    """Size of a decoder and of the discriminator.

    Parameters
    ----------
    channels : int
        Of the finest level of the U-Net, and of the discriminator's first layer.
    levels : int
        Resolutions of the U-Net.
    """

    channels: int = 32
    levels: int = 3

    def as_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values, for a weights file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """Take what `as_dict` gave."""
        return cls(**values)


class ApertureDecoder(nn.Module):
    """Add to an object what lies beyond its measured aperture.

    Parameters
    ----------
    config : DecoderConfig, optional
        Size.
    """

    def __init__(self, config: DecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or DecoderConfig()
        size = UnrolledConfig(channels=self.config.channels, levels=self.config.levels, stem=1, blocks=2)
        self.net = UNet(CHANNELS, 2, size)
        # Untrained it adds nothing.
        nn.init.zeros_(self.net.exit.weight)
        nn.init.zeros_(cast(Tensor, self.net.exit.bias))

    def forward(self, obj: Tensor, illumination: Tensor, support: Tensor) -> Tensor:
        """Compute what is added to the supported parts of objects.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex64
            Reconstructions from measured pixels, whose scale the probe fixes.
        illumination : Tensor, shape (B, Y, X)
            Photons on each pixel, of all frames.
        support : Tensor, shape (B, Y, X)
            As of `data_support`.

        Returns
        -------
        Tensor, shape (B, Y, X), complex64
            Nothing of it at frequencies that are wholly supported.
        """
        peak = illumination.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
        # Without light there is nothing to be sharpened.
        weight = illumination / (illumination + STITCHED_SHARE * peak)
        rest = beyond(obj - 1, support)
        inside = obj - 1 - rest
        parts = [weight * each for part in (inside, rest) for each in (part.real, part.imag)]
        light = [(illumination / peak).sqrt(), illumination.log1p() / LOG_SCALE]
        change, _ = run_unet(self.net, torch.stack([*parts, *light], dim=1))
        return beyond(weight * torch.complex(change[:, 0], change[:, 1]), support)


class Discriminator(nn.Module):
    """Tell objects from what decoders make of them, patch by patch (Isola et al., CVPR 2017).

    Parameters
    ----------
    config : DecoderConfig
        Size.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        widths = [2, *(config.channels * 2**i for i in range(3))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, obj: Tensor, light: Tensor) -> Tensor:
        """Compute logits, (B, 1, Y / 8, X / 8), of being an object: above 0 where it looks like one.

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex64
            What is judged; vacuum is 1.
        light : Tensor, shape (B, Y, X)
            0 to 1: how much each pixel counts.
        """
        seen = light * (obj - 1)
        logits: Tensor = self.layers(torch.stack([seen.real, seen.imag], dim=1))
        return logits


def discriminator_loss(of_objects: Tensor, of_decoded: Tensor) -> Tensor:
    """Compute what the discriminator makes small: the cross-entropy of telling both apart.

    Parameters
    ----------
    of_objects, of_decoded : Tensor
        Logits of objects, and of what a decoder made.
    """
    return F.softplus(-of_objects).mean() + F.softplus(of_decoded).mean()


def adversarial_loss(of_decoded: Tensor) -> Tensor:
    """Compute what a decoder makes small to pass for an object: ``-log`` of the discriminator's probability.

    Parameters
    ----------
    of_decoded : Tensor
        Logits of what it made.
    """
    return F.softplus(-of_decoded).mean()
