"""Frames as tokens: a vision transformer over the patches of each frame, which looks at its nearest neighbours too.

A frame is cut into square patches (Dosovitskiy et al., ICLR 2021), each with the assumed probe's own wave at the
detector and the valid pixels beside the counts. Beside the patches stand two more tokens: the class token, which is the
frame's embedding, and one that holds what belongs to the frame as a whole (dose, size, near or far field). In every
second block tokens attend to those of the nearest other frames as well, whose displacement is told by Fourier features;
nothing depends on where a scan lies, or on how many frames it has.

Patches can be hidden, and whole frames (He et al., CVPR 2022): the encoder is then given the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_cdi.physics.forward import Diffraction, intensity
from bluesky_cdi.physics.propagators import FarField

# Counts, valid pixels, and the assumed probe at the detector: root of its intensity, real and imaginary part.
CHANNELS, PROBE_CHANNELS = 5, 3
# Tokens of a frame before its patches: class, and what belongs to the frame as a whole.
EXTRA = 2
# Of a frame as a whole: logarithms of mean counts, of those through vacuum, and of its size; valid share; near field.
FACTS = 5
# Cycles over a frame's width: of places within a frame, and of displacements between frames.
PLACE_OCTAVES, DISPLACEMENT_OCTAVES = (0, 6), (-1, 7)
# Counts a pixel that are added before roots and logarithms are taken: far below one photon in a patch.
DARK = 1e-3
# Other frames whose distances are computed at a time.
ROWS = 1024
# Frames that look at their neighbours at a time, where no gradients are wanted.
AROUND = 64


@dataclass(frozen=True)
class FrameEncoderConfig:
    """Sizes of encoder and decoders.

    Parameters
    ----------
    patch : int
        Pixels along a side of a patch.
    width, depth, heads : int
        Channels of a token, blocks, and heads of their attention, of the encoder.
    neighbours : int
        Other frames that a frame looks at.
    decoder_width, decoder_depth, decoder_heads : int
        Of each decoder (`models.frame_decoders`).

    Raises
    ------
    ValueError
        If a size is not positive, or a width not a multiple of its heads.
    """

    patch: int = 8
    width: int = 256
    depth: int = 6
    heads: int = 4
    neighbours: int = 4
    decoder_width: int = 192
    decoder_depth: int = 2
    decoder_heads: int = 3

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ValueError(f"sizes of a frame encoder are positive whole numbers; got {self}")
        if self.width % self.heads or self.decoder_width % self.decoder_heads:
            raise ValueError(f"each width must be a multiple of its heads; got {self}")

    def as_dict(self) -> dict[str, Any]:
        """Give the configuration as plain values, for a weights file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrameEncoderConfig:
        """Take what `as_dict` gave."""
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Shown:
    """What of a scan the encoder is given.

    Attributes
    ----------
    frames : Tensor, shape (v,), int64
        Numbers of the frames, ascending.
    patches : Tensor, shape (v, k), int64
        Numbers of the patches of each, ascending, row by row over the frame.
    """

    frames: Tensor
    patches: Tensor

    @classmethod
    def all_of(cls, data: Diffraction, patch: int) -> Shown:
        """Show all patches of all frames.

        Parameters
        ----------
        data : Diffraction
            The frames.
        patch : int
            Pixels along a side of a patch.
        """
        number = tokens_along(data.counts.shape[-1], patch) ** 2
        frames = torch.arange(len(data), device=data.corner.device)
        return cls(frames, torch.arange(number, device=frames.device).expand(len(data), number))

    def pixels(self, size: int, patch: int) -> Tensor:
        """Mark the pixels of the shown patches, in the detector's order: (v, N, N), bool.

        Parameters
        ----------
        size : int
            N.
        patch : int
            Pixels along a side of a patch.
        """
        along = tokens_along(size, patch)
        marked = torch.zeros(len(self.frames), along**2, dtype=torch.bool, device=self.frames.device)
        marked = marked.scatter(1, self.patches, True).view(-1, along, along)
        return marked.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, :size, :size]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the encoder makes of frames.

    Attributes
    ----------
    shown : Shown
        Of which frames and patches.
    tokens : Tensor, shape (v, 2 + k, width)
        Class token, token of the frame as a whole, patches.
    mean_counts, vacuum_counts : Tensor, shape (v,)
        A pixel, over the shown valid pixels: what was counted, and what the assumed probe gives through vacuum.
    probe_channels : Tensor, shape (B, 3, N, N)
        The assumed probes at the detector, in its order, relative to the root of their mean intensity.
    vacuum : Tensor, shape (B, N, N)
        Photons that the assumed probes give through vacuum, in the detector's order.
    """

    shown: Shown
    tokens: Tensor
    mean_counts: Tensor
    vacuum_counts: Tensor
    probe_channels: Tensor
    vacuum: Tensor

    @property
    def class_tokens(self) -> Tensor:
        """Embeddings of the frames, (v, width)."""
        return self.tokens[:, 0]


class Attention(nn.Module):
    """Attention of tokens to others, added to what comes in after a layer norm.

    Parameters
    ----------
    width : int
        Channels of those that look.
    heads : int
        Of the attention.
    source : int, optional
        Channels of those that are looked at; by default they are the same tokens.
    """

    def __init__(self, width: int, heads: int, source: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.source_norm = None if source is None else nn.LayerNorm(source)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if source is None else source, 2 * width)
        self.mix = nn.Linear(width, width)

    def forward(self, tokens: Tensor, source: Tensor | None = None) -> Tensor:
        """Look at the same tokens, or at others: (n, L, width), and (n, S, source) if any, to (n, L, width)."""
        normed = self.norm(tokens)
        seen = normed if source is None or self.source_norm is None else self.source_norm(source)
        return tokens + self.attended(self.query(normed), self.key_value(seen))

    def attended(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Mix values by keys: (n, L, width) and (n, S, 2 width) to (n, L, width)."""
        n, length, width = query.shape
        q = query.view(n, length, self.heads, -1).transpose(1, 2)
        k, v = key_value.view(n, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        mixed: Tensor = self.mix(found)
        return mixed


class Perceptron(nn.Module):
    """A layer norm and two layers, added to what comes in.

    Parameters
    ----------
    width : int
        Channels of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 3 * width)
        self.narrow = nn.Linear(3 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change each token for itself."""
        changed: Tensor = tokens + self.narrow(F.gelu(self.widen(self.norm(tokens))))
        return changed


class NeighbourAttention(nn.Module):
    """Attention to the tokens of other frames, whose keys and values know how far those are displaced.

    Parameters
    ----------
    width, heads : int
        As of `Attention`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.place = nn.Sequential(
            nn.Linear(features_of(DISPLACEMENT_OCTAVES), width), nn.GELU(), nn.Linear(width, 2 * width)
        )

    def forward(self, tokens: Tensor, neighbours: Tensor, displacement: Tensor) -> Tensor:
        """Look at other frames.

        Parameters
        ----------
        tokens : Tensor, shape (v, L, width)
            Of all frames.
        neighbours : Tensor, shape (v, K), int64
            Rows of the frames that each looks at.
        displacement : Tensor, shape (v, K, F)
            Fourier features of how far they are away.
        """
        normed = self.attention.norm(tokens)
        key_value = self.attention.key_value(normed)  # (v, L, 2 width)
        place, query = self.place(displacement), self.attention.query(normed)
        # All at once where gradients are computed; else copies of neighbours' tokens would take most of the memory.
        at_a_time = len(tokens) if torch.is_grad_enabled() else AROUND
        found = []
        for part in torch.split(torch.arange(len(tokens), device=tokens.device), at_a_time):
            which = neighbours[part]
            # Not by an index in brackets, whose gradient is sorted.
            theirs = key_value.index_select(0, which.flatten()).view(*which.shape, *key_value.shape[1:])
            theirs = theirs + place[part][:, :, None]
            found.append(self.attention.attended(query[part], theirs.flatten(1, 2)))
        return tokens + torch.cat(found)


class Block(nn.Module):
    """Attention within a frame, in some blocks to its neighbours, and a perceptron.

    Parameters
    ----------
    width, heads : int
        As of `Attention`.
    looks_around : bool
        Whether frames attend to their neighbours.
    """

    def __init__(self, width: int, heads: int, looks_around: bool) -> None:
        super().__init__()
        self.within = Attention(width, heads)
        self.around = NeighbourAttention(width, heads) if looks_around else None
        self.perceptron = Perceptron(width)

    def forward(self, tokens: Tensor, neighbours: Tensor, displacement: Tensor) -> Tensor:
        """Change tokens; see `NeighbourAttention.forward`."""
        tokens = self.within(tokens)
        if self.around is not None:
            tokens = self.around(tokens, neighbours, displacement)
        changed: Tensor = self.perceptron(tokens)
        return changed


class FrameEncoder(nn.Module):
    """Encode the frames of scans.

    Parameters
    ----------
    config : FrameEncoderConfig, optional
        Sizes.
    """

    def __init__(self, config: FrameEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = size = config or FrameEncoderConfig()
        self.entry = nn.Linear(CHANNELS * size.patch**2, size.width)
        self.entry_norm = nn.LayerNorm(size.width)
        self.place = nn.Linear(features_of(PLACE_OCTAVES), size.width)
        self.facts = nn.Sequential(nn.Linear(FACTS, size.width), nn.GELU(), nn.Linear(size.width, size.width))
        self.class_token = nn.Parameter(0.02 * torch.randn(size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads, number % 2 == 1) for number in range(size.depth))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, probe: Tensor, data: Diffraction, shown: Shown | None = None) -> Encoded:
        """Encode frames.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Assumed probe of each scan.
        data : Diffraction
            The frames.
        shown : Shown, optional
            Which frames and patches the encoder is given; all if absent.
        """
        patch, size = self.config.patch, data.counts.shape[-1]
        shown = shown or Shown.all_of(data, patch)
        channels, vacuum = probe_at_detector(probe, data)
        given = data[shown.frames]
        scene = frame_scenes(given)
        counts, seen = _shown_counts(given, shown.pixels(size, patch))
        number = seen.sum(dim=(-2, -1)).clamp_min(1)
        means = [torch.where(seen, each, 0.0).sum(dim=(-2, -1)) / number for each in (counts, vacuum[scene])]
        relative = counts.sqrt() / (means[0] + DARK).sqrt()[:, None, None]
        images = torch.cat([relative.asinh()[:, None], seen[:, None].float(), channels[scene].asinh()], dim=1)
        chosen = taken(patches_of(images, patch), shown.patches)  # (v, k, C p p)
        facts = self._facts(means, seen.float().mean(dim=(-2, -1)), given)
        neighbours, displacement = nearest(given, scene, self.config.neighbours)
        features = fourier(displacement / size, DISPLACEMENT_OCTAVES)
        with torch.autocast(probe.device.type, dtype=torch.bfloat16, enabled=probe.is_cuda):
            tokens = self.entry_norm(self.entry(chosen)) + self.place(places_of(shown.patches, size, patch))
            first = self.class_token.expand(len(chosen), 1, -1)
            tokens = torch.cat([first, self.facts(facts)[:, None], tokens], dim=1)
            for block in self.blocks:
                tokens = block(tokens, neighbours, features)
            tokens = self.norm(tokens)
        return Encoded(shown, tokens, means[0], means[1], channels, vacuum)

    def _facts(self, means: list[Tensor], share: Tensor, given: Diffraction) -> Tensor:
        """Say what belongs to frames as a whole, in numbers of about 1: (v, FACTS)."""
        size, near = given.counts.shape[-1], float(not isinstance(given.propagator, FarField))
        counted, through = means
        logs = [
            (each + DARK).log10() / 3 for each in (counted, through if given.flux is None else through * given.flux)
        ]
        same = (torch.full_like(share, math.log2(size / 64)), torch.full_like(share, near))
        return torch.stack([*logs, share, *same], dim=1)


def tokens_along(size: int, patch: int) -> int:
    """Count the patches along a side of a frame; the last one may reach beyond it."""
    return -(-size // patch)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Cut images (n, C, N, N) into patches (n, T, C patch patch), row by row; zeros fill the last ones up."""
    missing = -images.shape[-1] % patch
    cut = F.pixel_unshuffle(F.pad(images, (0, missing, 0, missing)), patch)
    return cut.flatten(2).transpose(1, 2)


def images_of(patches: Tensor, size: int, patch: int) -> Tensor:
    """Undo `patches_of`: (n, T, C patch patch) to (n, C, N, N)."""
    along = tokens_along(size, patch)
    cut = patches.transpose(1, 2).reshape(len(patches), -1, along, along)
    return F.pixel_shuffle(cut, patch)[..., :size, :size]


def taken(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Take some tokens of each frame: (n, T, C) and (n, k) to (n, k, C)."""
    return tokens.gather(1, numbers[:, :, None].expand(-1, -1, tokens.shape[-1]))


def features_of(octaves: tuple[int, int]) -> int:
    """Count the Fourier features of a point in two dimensions."""
    return 4 * (octaves[1] - octaves[0])


def fourier(points: Tensor, octaves: tuple[int, int]) -> Tensor:
    """Compute Fourier features of points: (..., 2) to (..., 4 octaves).

    Parameters
    ----------
    points : Tensor, shape (..., 2)
        In widths of a frame.
    octaves : tuple of int
        Logarithms to base 2 of the fewest cycles over a frame, and of one that is no longer taken.
    """
    cycles = 2.0 ** torch.arange(*octaves, device=points.device)
    angle = 2 * math.pi * points[..., None] * cycles  # (..., 2, octaves)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def places_of(numbers: Tensor, size: int, patch: int) -> Tensor:
    """Compute Fourier features of the middles of patches (..., k), as seen from the middle of their frame."""
    along = tokens_along(size, patch)
    row, column = torch.div(numbers, along, rounding_mode="floor"), numbers % along
    middle = (torch.stack([row, column], dim=-1) + 0.5) * patch / size - 0.5
    return fourier(middle, PLACE_OCTAVES)


def probe_at_detector(probe: Tensor, data: Diffraction) -> tuple[Tensor, Tensor]:
    """Propagate probes through vacuum.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex64
        The assumed ones.
    data : Diffraction
        Says how to the detector.

    Returns
    -------
    Tensor, shape (B, 3, N, N)
        Root of the intensity, real and imaginary part of the first mode, in the detector's order, relative to the root
        of the mean intensity.
    Tensor, shape (B, N, N)
        The intensity, photons.
    """
    waves = data.propagator.forward(probe)
    if isinstance(data.propagator, FarField):
        # Its waves are not centred, so every other pixel has the other sign.
        index = torch.arange(probe.shape[-1], device=probe.device)
        waves = waves * (1 - 2 * ((index[:, None] + index) % 2))
    waves = data.propagator.to_detector(waves)
    photons = intensity(waves)
    unit = (photons.mean(dim=(-2, -1), keepdim=True) + 1e-12).sqrt()
    channels = [photons.sqrt() / unit, waves[:, 0].real / unit, waves[:, 0].imag / unit]
    return torch.stack(channels, dim=1), photons


def _shown_counts(given: Diffraction, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Give counts in the detector's order, 0 where a pixel is not valid or not shown, and where they are: (v, N, N)."""
    order = given.propagator.to_detector
    seen = pixels if given.valid is None else pixels & order(given.valid)
    # Selected, not multiplied: a masked pixel may hold anything, and NaN times 0 is NaN.
    return torch.where(seen, order(given.counts), 0.0), seen


def frame_scenes(data: Diffraction) -> Tensor:
    """Give the scan of each frame, (n,); 0 where all are of one."""
    return torch.zeros(len(data), dtype=torch.int64, device=data.corner.device) if data.scene is None else data.scene


def nearest(data: Diffraction, scene: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Find the nearest other frames of the same scan.

    Parameters
    ----------
    data : Diffraction
        The frames.
    scene : Tensor, shape (v,), int64
        Scan of each.
    number : int
        How many, K. Where there are fewer, the frame itself takes their place.

    Returns
    -------
    Tensor, shape (v, K), int64
        Rows of the neighbours.
    Tensor, shape (v, K, 2)
        How far they are away (rows, columns), pixels.
    """
    found = []
    rows = torch.arange(len(scene), device=scene.device)
    for part in torch.split(rows, ROWS):
        away = _displacement(data, part[:, None], rows[None])  # (r, v, 2)
        distance = away.square().sum(dim=-1)
        distance = distance.masked_fill(scene[part, None] != scene, torch.inf)
        distance = distance.masked_fill(part[:, None] == rows, torch.inf)
        least, which = distance.topk(min(number, len(scene)), dim=1, largest=False)
        found.append(torch.where(least.isinf(), part[:, None], which))
    neighbours = torch.cat(found)
    if (missing := number - neighbours.shape[1]) > 0:
        neighbours = torch.cat([neighbours, rows[:, None].expand(-1, missing)], dim=1)
    return neighbours, _displacement(data, rows[:, None], neighbours)


def _displacement(data: Diffraction, frames: Tensor, others: Tensor) -> Tensor:
    """Compute how far others are away: exactly the same where the whole scan lies elsewhere by whole pixels."""
    whole = (data.corner[others] - data.corner[frames]).float()
    return whole + (data.shift_px[others] - data.shift_px[frames])
