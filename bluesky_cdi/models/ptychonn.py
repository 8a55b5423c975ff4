"""PtychoNN: one frame in, amplitude and phase of its patch out, no physics. The supervised baseline.

Encoder and two decoders as Cherukara et al., Appl. Phys. Lett. 117, 044103 (2020) describe them: three
levels of two convolutions each, 32, 64 and 128 channels wide, halved by max pooling and doubled again
by interpolation; amplitude through a sigmoid, phase through a hyperbolic tangent times pi. It sees neither the
probe nor its neighbours. Stitching the patches, weighted by the illumination, is what makes it answer as the
unrolled network does.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity, peak_intensity, to_centre
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.physics.illumination_shares import STITCHED_SHARE


@dataclass(frozen=True)
class PtychoNNConfig:
    """Size of the network.

    Parameters
    ----------
    channels : int
        Channels of the first level; each further one has twice as many.
    levels : int
        Levels of the encoder.
    """

    channels: int = 32
    levels: int = 3

    def as_dict(self) -> dict[str, int]:
        """Give the configuration as plain values, for a weights file."""
        return asdict(self)


class PtychoNN(nn.Module):
    """Amplitude and phase of each frame's patch, stitched."""

    def __init__(self, config: PtychoNNConfig | None = None) -> None:
        super().__init__()
        self.config = config or PtychoNNConfig()
        widths = [self.config.channels * 2**i for i in range(self.config.levels)]
        self.encoder = nn.Sequential(
            *(layer for pair in pairwise([1, *widths]) for layer in (*_two(*pair), nn.MaxPool2d(2)))
        )
        self.amplitude = self._decoder(widths)
        self.phase = self._decoder(widths)
        # With PyTorch's own weights the signal fades from layer to layer; large weights in the last layer saturate the
        # outputs. Either way it learned only constants.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for decoder in (self.amplitude, self.phase):
            nn.init.zeros_(cast(nn.Conv2d, decoder[-1]).weight)

    def forward(self, probe: Tensor, data: Diffraction) -> list[Tensor]:
        """Reconstruct.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Its photons set the scale of the counts, its intensity the weights of the patches.
        data : Diffraction
            The frames.

        Returns
        -------
        list of one Tensor, shape (B, Y, X), complex64
            The object; vacuum where no light fell.
        """
        total = torch.zeros(data.object_shape, dtype=probe.dtype, device=probe.device)
        illumination = torch.zeros_like(total.real)
        for part in data.chunks(frames_at_once(probe)):
            weight = intensity(part.probes(probe))  # (n, N, N)
            total = total + accumulate(weight * self.patches(probe, part), part.corner, part.object_shape, part.scene)
            illumination = illumination + accumulate(weight, part.corner, part.object_shape, part.scene)
        floor = STITCHED_SHARE * peak_intensity(probe)
        return [torch.where(illumination > floor, total / illumination.clamp_min(floor), 1.0)]

    def patches(self, probe: Tensor, data: Diffraction) -> Tensor:
        """Predict the object under each frame.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Its photons set the scale of the counts.
        data : Diffraction
            The frames.

        Returns
        -------
        Tensor, shape (n, N, N), complex64
            A patch of the object for each frame.
        """
        size = probe.shape[-1]
        photons = intensity(probe).sum(dim=(-2, -1))  # (B,)
        mean = (photons[:1] if data.scene is None else photons[data.scene]) / size**2
        # Amplitudes relative to light spread evenly over the frame.
        image = to_centre((data.counts / mean[:, None, None]).sqrt())[:, None]  # (n, 1, N, N)
        if data.valid is not None:
            image = image * to_centre(data.valid).reshape(-1, 1, size, size)
        block = 2**self.config.levels
        padded = nn.functional.pad(image, (0, -size % block, 0, -size % block))
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=image.is_cuda):
            features = self.encoder(padded)
            amplitude, phase = self.amplitude(features), self.phase(features)
        crop = (slice(None), 0, slice(size), slice(size))
        return torch.polar(torch.sigmoid(amplitude.float()[crop]), math.pi * torch.tanh(phase.float()[crop]))

    def _decoder(self, widths: list[int]) -> nn.Sequential:
        up = [widths[-1], *reversed(widths)]
        layers = [
            layer
            for pair in pairwise(up)
            for layer in (*_two(*pair), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        ]
        return nn.Sequential(*layers, nn.Conv2d(widths[0], 1, 3, padding=1))


def _two(inputs: int, outputs: int) -> list[nn.Module]:
    """Make two convolutions, each with its ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    ]
