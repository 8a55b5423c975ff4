"""Single frames of isolated samples, as scans of one frame each: another inverse problem for the frame encoder.

A sample in darkness, in a plane wave: its exit wave is all that there is, so the *probe* of such a scan is what is
known of the sample's extent, a box of light with the frame's photons, and the *object* the exit wave relative to it.
Far field, encoder, decoders and losses are those of scans; no whole frame can be hidden, so patches alone are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, fft2c, to_corner
from bluesky_cdi.single_shot.support import autocorrelation_support
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.objects import ObjectPool
from bluesky_cdi.training.pretraining.scans import POOL_STEPS, Scans, mixed

# Pixels along a side of a frame, and frames of a batch, on a GPU and on a CPU.
SIZE, FRAMES, CPU_FRAMES = 64, 512, 8
# Objects that samples are cut from.
POOL, CPU_POOL = 256, 8
# Radii of samples in widths of a frame, their harmonics, and rows that a stated extent is larger than the true one, at
# most, on each side.
RADII, HARMONICS, MARGIN_PX = (0.12, 0.22), (2, 3, 4, 5), 2
# Share of a sample's amplitude that its thickest part lacks, from least to most; share of the samples that are real.
LOSSES, REAL_SHARE = (0.0, 0.9), 0.3
# By which share the light in a box grows from its middle to its last row, and to its last column.
TILT = (0.5, 0.25)


class SingleFrameSource:
    """Give the frames of any step; a `ScanSource` of scans of one frame.

    Parameters
    ----------
    device : torch.device
        Where the batches are.
    seed : int
        Of everything.
    photons : tuple of float
        Least and most photons of a frame.
    rank : int
        Number of the process among those that train together.
    frames : int, optional
        Of a batch; by default as many as the device is fit for.

    Attributes
    ----------
    names : list of str
        Of recorded frames' files: none.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        photons: tuple[float, float] = (1e5, 1e8),
        rank: int = 0,
        frames: int | None = None,
    ) -> None:
        self._device, self._seed, self._photons, self._rank = device, seed, photons, rank
        cuda = device.type == "cuda"
        self._frames = frames or (FRAMES if cuda else CPU_FRAMES)
        self._objects = POOL if cuda else CPU_POOL
        self._number = -1
        self._pool: ObjectPool | None = None
        self._draws = Draws(device, seed)
        self.names: Sequence[str] = []

    def batch(self, step: int) -> tuple[Scans, Draws]:
        """Give the frames of a step, and what else is random in it.

        Parameters
        ----------
        step : int
            Number of the step.
        """
        pool, draws = self._pool_of(step), self._draws
        draws.reseed(mixed(self._seed, self._rank, step, 4), mixed(self._seed, step, 4))
        return draw_frames(draws, pool, self._frames, self._photons, SIZE), draws

    def _pool_of(self, step: int) -> ObjectPool:
        number = step // POOL_STEPS
        if self._pool is None or number != self._number:
            self._draws.reseed(mixed(self._seed, self._rank, number, 5), mixed(self._seed, number, 5))
            self._pool, self._number = ObjectPool(self._draws, self._objects, 2 * SIZE), number
        return self._pool


def draw_frames(draws: Draws, pool: ObjectPool, number: int, photons: tuple[float, float], size: int) -> Scans:
    """Draw isolated samples and a frame of each.

    Parameters
    ----------
    draws : Draws
        Draws all.
    pool : ObjectPool
        Where the insides of samples come from.
    number : int
        Frames.
    photons : tuple of float
        Least and most of a frame, log-uniform.
    size : int
        Pixels along a side of a frame, N.

    Returns
    -------
    Scans
        Their truth is the exit wave over the probe; probes are boxes that hold the samples.
    """
    sample, box = _isolated(draws, pool.cut(number, size))
    low, high = map(math.log10, photons)
    dose = 10 ** draws.uniform(number, 1, 1, low=low, high=high)
    wave = sample * (dose / sample.abs().square().sum(dim=(-2, -1), keepdim=True)).sqrt()
    counts = draws.poisson(to_corner(fft2c(wave).abs().square()))
    # Expected photons, not counted ones: of the counts the encoder is given what is shown, and nothing else.
    probe = box_of_light(box, dose[:, 0, 0])
    truth = torch.where(box, wave / probe[:, 0].real.clamp_min(1e-12), 0.0)
    data = as_scans(counts)
    return Scans(probe, data, probe, data, truth)


def as_scans(counts: Tensor) -> Diffraction:
    """Take frames for scans of one frame each, whose objects are as large as the frame.

    Parameters
    ----------
    counts : Tensor, shape (B, N, N)
        Photons; zero frequency at ``[0, 0]``.
    """
    number, size = counts.shape[:2]
    nowhere = torch.zeros(number, 2, dtype=torch.int64, device=counts.device)
    scene = torch.arange(number, device=counts.device)
    return Diffraction(counts, nowhere, nowhere.to(counts.dtype), (number, size, size), scene=scene)


def measured_frames(counts: Tensor) -> Scans:
    """Take measured frames: the autocorrelation tells the extent of each sample.

    Parameters
    ----------
    counts : Tensor, shape (B, N, N)
        Photons; zero frequency at ``[0, 0]``.

    Returns
    -------
    Scans
    """
    box = torch.stack([autocorrelation_support(each) for each in counts])
    probe, data = box_of_light(box, counts.sum(dim=(-2, -1))), as_scans(counts)
    return Scans(probe, data, probe, data)


def box_of_light(box: Tensor, photons: Tensor) -> Tensor:
    """Make probes inside boxes: (B, N, N) bool and (B,) to (B, 1, N, N) complex64.

    They are brighter towards one corner. A frame is that of a sample and of its conjugate twin, between which even
    light, which is its own twin, could never choose (Fienup and Wackerman, J. Opt. Soc. Am. A 3, 1897 (1986)).

    Parameters
    ----------
    box : Tensor, shape (B, N, N), bool
        Where the samples may be.
    photons : Tensor, shape (B,)
        Of each frame.
    """
    size = box.shape[-1]
    axis = torch.arange(size, device=box.device) - size // 2
    slopes = []
    for dim in (-1, -2):
        along = torch.where(box.any(dim=dim), axis, 0)
        slopes.append(along / along.amax(dim=-1, keepdim=True).clamp_min(1))  # (B, N), -1 to 1
    tilted = 1 + TILT[0] * slopes[0][:, :, None] + TILT[1] * slopes[1][:, None, :]
    amplitude = torch.where(box, tilted, 0.0)
    total = amplitude.square().sum(dim=(-2, -1), keepdim=True)
    return (amplitude * (photons[:, None, None] / total).sqrt())[:, None].to(torch.complex64)


def exit_waves(obj: Tensor, probe: Tensor) -> Tensor:
    """Multiply objects with their probes: (B, N, N) and (B, 1, N, N) to (B, N, N)."""
    return obj * probe[:, 0]


def _isolated(draws: Draws, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Cut irregular round samples out of objects (B, N, N), and draw boxes about them; both in the middle."""
    number, size = inside.shape[:2]
    axis = torch.arange(size, device=inside.device) - size // 2
    rows, columns = axis[:, None].float(), axis[None].float()
    angle, radius = torch.atan2(rows, columns), torch.hypot(rows, columns)
    bumps = torch.zeros_like(inside.real)
    for k in HARMONICS:
        height, turn = draws.uniform(number, 1, 1, low=-0.2, high=0.2) / k, math.tau * draws.uniform(number, 1, 1)
        bumps = bumps + height * torch.cos(k * angle + turn)
    outline = (size * draws.uniform(number, 1, 1, low=RADII[0], high=RADII[1]) * (1 + bumps) - radius + 0.5).clamp(0, 1)
    phase = inside.angle()
    depth = phase.abs() / phase.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    loss = draws.uniform(number, 1, 1, low=LOSSES[0], high=LOSSES[1])
    real = draws.uniform(number, 1, 1) < REAL_SHARE
    sample = outline * torch.polar(inside.abs() * (1 - loss * depth), torch.where(real, 0.0, phase))
    spans = [_span((outline > 0).any(dim=axis)) for axis in (-1, -2)]  # middle and half extent, rows and columns
    rows, columns = ((axis + size // 2 + middle[:, None]) % size for middle, _ in spans)  # (B, N) each
    which = torch.arange(number, device=inside.device)[:, None, None]
    centred = sample[which, rows[:, :, None], columns[:, None, :]]
    margin = (draws.uniform(2, number, 1) * (MARGIN_PX + 1)).long()
    inside_box = [axis.abs() <= half[:, None] + more for (_, half), more in zip(spans, margin, strict=True)]
    return centred, inside_box[0][:, :, None] & inside_box[1][:, None, :]


def _span(there: Tensor) -> tuple[Tensor, Tensor]:
    """Find middle and half extent, about ``N // 2``, of where something is: (B, N) to two of (B,)."""
    size = there.shape[-1]
    index = torch.arange(size, device=there.device) - size // 2
    first = torch.where(there, index, size).amin(dim=-1)
    last = torch.where(there, index, -size).amax(dim=-1)
    middle = torch.div(first + last, 2, rounding_mode="floor")
    return middle, torch.maximum(last - middle, middle - first)
