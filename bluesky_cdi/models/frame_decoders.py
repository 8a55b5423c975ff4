"""What is read off a frame encoder's tokens: rates of hidden patches, and an object.

The first decoder is that of a masked autoencoder (He et al., CVPR 2022): it predicts the counts of every patch, those
that the encoder was not given among them. The second one knows physics: from the tokens of each frame it reads the
transmission under the frame's light, which is stitched onto the object that some physics steps have made of the shown
pixels; what the forward model makes of that object is a prediction of every frame, hidden ones too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bluesky_cdi.models.frame_encoder import (
    EXTRA,
    PLACE_OCTAVES,
    PROBE_CHANNELS,
    Attention,
    Encoded,
    FrameEncoder,
    FrameEncoderConfig,
    Perceptron,
    Shown,
    features_of,
    images_of,
    patches_of,
    places_of,
)
from bluesky_cdi.models.unrolled import STEP_DAMPING
from bluesky_cdi.physics.forward import (
    Diffraction,
    accumulate,
    extract,
    intensity,
    modulus_step,
    object_step,
    peak_intensity,
)
from bluesky_cdi.physics.illumination_shares import STITCHED_SHARE

# Logarithms of rates are predicted beside those of the probe through vacuum, with this share of the mean counts added.
FLOOR_SHARE, LEAST_RATE, MOST_THROUGH = 0.02, 1e-6, 4.0
# Most that a logarithm is changed by: far more than the range of one frame.
MOST_LOG = 12.0
# Of the object's decoder: probe (real, imaginary), root of the light, object after some physics steps (same).
OBJECT_CHANNELS = 5
# Physics steps from vacuum that it begins with: with half of the pixels more explained hidden frames no better.
STEPS = 3


class PatternDecoder(nn.Module):
    """Predict the rates of all patches of the frames that were shown, hidden patches too.

    Parameters
    ----------
    config : FrameEncoderConfig
        Sizes.
    """

    def __init__(self, config: FrameEncoderConfig) -> None:
        super().__init__()
        self.patch, width = config.patch, config.decoder_width
        self.take = nn.Linear(config.width, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Linear(features_of(PLACE_OCTAVES), width)
        self.probe = nn.Linear(PROBE_CHANNELS * self.patch**2, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(Attention(width, config.decoder_heads), Perceptron(width))
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, self.patch**2)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, encoded: Encoded, data: Diffraction) -> Tensor:
        """Compute logarithms of the rates of the shown frames, in the detector's order.

        Parameters
        ----------
        encoded : Encoded
            What the encoder made of them.
        data : Diffraction
            All frames.

        Returns
        -------
        Tensor, shape (v, N, N)
        """
        shown, size = encoded.shown, data.counts.shape[-1]
        scene = _scene(data)[shown.frames]
        own = patches_of(encoded.probe_channels.asinh(), self.patch)  # (B, T, 3 p p)
        total = torch.arange(own.shape[1], device=own.device)
        with torch.autocast(own.device.type, dtype=torch.bfloat16, enabled=own.is_cuda):
            given = self.take(encoded.tokens)
            where = shown.patches[:, :, None].expand(-1, -1, given.shape[-1])
            grid = self.hidden.to(given.dtype).expand(len(given), len(total), -1).scatter(1, where, given[:, EXTRA:])
            grid = grid + self.place(places_of(total, size, self.patch)) + self.probe(own).index_select(0, scene)
            tokens = torch.cat([given[:, :EXTRA].to(grid.dtype), grid], dim=1)
            for block in self.blocks:
                tokens = block(tokens)
            out = self.exit(self.norm(tokens[:, EXTRA:]))
        change = images_of(out.float(), size, self.patch)[:, 0]
        return self.through_vacuum(encoded, data) + MOST_LOG * (change / MOST_LOG).tanh()

    def through_vacuum(self, encoded: Encoded, data: Diffraction) -> Tensor:
        """Compute the logarithms that are predicted before training: the probe's, scaled to the counts, (v, N, N)."""
        scene = _scene(data)[encoded.shown.frames]
        # Bounded: where dark patches alone are shown, their ratio says nothing.
        through = (encoded.mean_counts / encoded.vacuum_counts.clamp_min(1e-12)).clamp_max(MOST_THROUGH)[:, None, None]
        floor = FLOOR_SHARE * encoded.mean_counts[:, None, None] + LEAST_RATE
        expected: Tensor = (through * encoded.vacuum[scene] + floor).log()
        return expected


class ObjectDecoder(nn.Module):
    """Read the object off the frames that were shown.

    Each frame's part of it is looked up in the frame's tokens, from queries in the sample's plane: the patches of the
    probe, and of what a few physics steps from vacuum make of the shown pixels of all frames.

    Parameters
    ----------
    config : FrameEncoderConfig
        Sizes.
    """

    def __init__(self, config: FrameEncoderConfig) -> None:
        super().__init__()
        self.patch, width = config.patch, config.decoder_width
        self.entry = nn.Linear(OBJECT_CHANNELS * self.patch**2, width)
        self.place = nn.Linear(features_of(PLACE_OCTAVES), width)
        self.class_token = nn.Linear(config.width, width)
        self.within, self.look_up, self.perceptrons = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(config.decoder_depth):
            self.within.append(Attention(width, config.decoder_heads))
            self.look_up.append(Attention(width, config.decoder_heads, source=config.width))
            self.perceptrons.append(Perceptron(width))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, 2 * self.patch**2)
        # Untrained it leaves what the physics steps made as it is.
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, encoded: Encoded, probe: Tensor, data: Diffraction) -> Tensor:
        """Compute the objects.

        Parameters
        ----------
        encoded : Encoded
            What the encoder made of the shown frames.
        probe : Tensor, shape (B, M, N, N), complex64
            The assumed probes.
        data : Diffraction
            All frames.

        Returns
        -------
        Tensor, shape (B, Y, X), complex64
        """
        shown, size = encoded.shown, data.counts.shape[-1]
        given = data[shown.frames]
        probes = given.probes(probe)  # (v, M, N, N)
        light, peak = intensity(probes), peak_intensity(probe)
        start, illumination = stepped(given, probes, peak, shown, self.patch)
        brightest = peak[_scene(given)].sqrt()
        first = torch.view_as_real(probes[:, 0] / brightest).permute(0, 3, 1, 2)
        wanted = torch.view_as_real(extract(start - 1, given.corner, size, given.scene)).permute(0, 3, 1, 2)
        channels = torch.cat([first, (light.sqrt() / brightest)[:, None], wanted], dim=1)
        change = self._change(encoded, patches_of(channels, self.patch), size)
        stitched = accumulate(light * change, given.corner, data.object_shape, given.scene)
        return start + stitched / (illumination + STITCHED_SHARE * peak)

    def _change(self, encoded: Encoded, patches: Tensor, size: int) -> Tensor:
        """Read changes of the object under each frame: (v, T, C p p) to (v, N, N), complex."""
        total = torch.arange(patches.shape[1], device=patches.device)
        with torch.autocast(patches.device.type, dtype=torch.bfloat16, enabled=patches.is_cuda):
            tokens = self.entry(patches) + self.place(places_of(total, size, self.patch))
            tokens = tokens + self.class_token(encoded.class_tokens)[:, None]
            for within, look_up, perceptron in zip(self.within, self.look_up, self.perceptrons, strict=True):
                tokens = perceptron(look_up(within(tokens), encoded.tokens))
            out = self.exit(self.norm(tokens))
        real, imaginary = images_of(out.float(), size, self.patch).unbind(dim=1)
        return torch.complex(real, imaginary)


@torch.no_grad()
def stepped(
    given: Diffraction, probes: Tensor, peak: Tensor, shown: Shown, patch: int, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Make damped physics steps from vacuum by the shown pixels.

    Parameters
    ----------
    given : Diffraction
        The shown frames.
    probes : Tensor, shape (v, M, N, N), complex64
        Their probes.
    peak : Tensor, shape (B, 1, 1)
        Of the probes' intensities.
    shown : Shown
        Says which pixels are shown.
    patch : int
        Pixels along a side of a patch.
    steps : int
        How many.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
        The objects.
    Tensor, shape (B, Y, X)
        Light of the shown frames on them, photons.
    """
    size = given.counts.shape[-1]
    pixels = given.propagator.to_working(shown.pixels(size, patch))
    seen = pixels if given.valid is None else pixels & given.valid
    obj = torch.ones(given.object_shape, dtype=probes.dtype, device=probes.device)
    illumination = torch.zeros_like(obj.real)
    for _ in range(steps):
        waves = probes * extract(obj, given.corner, size, given.scene)[:, None]
        wave_step, _ = modulus_step(waves, given.counts, given.background, seen, given.propagator, given.shift_px)
        numerator, illumination = object_step(probes, wave_step, given.corner, given.object_shape, given.scene)
        obj = obj + numerator / (illumination + STEP_DAMPING * peak)
    return obj, illumination


@dataclass(frozen=True, eq=False)
class Predicted:
    """What is predicted of a scan.

    Attributes
    ----------
    encoded : Encoded
        What the encoder made of the shown part.
    log_rate : Tensor, shape (v, N, N)
        Logarithm of the rates of the shown frames, in the detector's order.
    object : Tensor, shape (B, Y, X), complex64
        The objects.
    """

    encoded: Encoded
    log_rate: Tensor
    object: Tensor


class MaskedFrameModel(nn.Module):
    """A frame encoder with both decoders.

    Parameters
    ----------
    config : FrameEncoderConfig, optional
        Sizes.
    """

    def __init__(self, config: FrameEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrameEncoderConfig()
        self.encoder = FrameEncoder(self.config)
        self.patterns = PatternDecoder(self.config)
        self.objects = ObjectDecoder(self.config)

    def forward(self, probe: Tensor, data: Diffraction, shown: Shown | None = None) -> Predicted:
        """Encode what is shown of scans, and predict the rest.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            The assumed probes.
        data : Diffraction
            The frames.
        shown : Shown, optional
            Which frames and patches the encoder is given; all if absent.
        """
        encoded = self.encoder(probe, data, shown)
        return Predicted(encoded, self.patterns(encoded, data), self.objects(encoded, probe, data))


def _scene(data: Diffraction) -> Tensor:
    """Give the scan of each frame, (n,)."""
    return torch.zeros(len(data), dtype=torch.int64, device=data.corner.device) if data.scene is None else data.scene
