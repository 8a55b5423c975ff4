"""Simulated measurements for training: objects, probes, positions, counts, made where the network is.

Everything is drawn from two seeded generators, one for what decides about whole batches, so a seed and a device name a
training run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.forward import Diffraction, extract, to_centre
from bluesky_cdi.physics.probes import orthogonal_modes
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum, Propagator


@dataclass(frozen=True)
class SceneShape:
    """How large a batch of scenes is.

    Parameters
    ----------
    frame_px : int
        N.
    grid_px : int
        Side of each object.
    frames : tuple of int
        Fewest and most frames of a scene.
    scenes : int
        Scenes of a batch, B.
    share : float
        Share of the batches that have this shape.
    """

    frame_px: int
    grid_px: int
    frames: tuple[int, int]
    scenes: int
    share: float

    def of_frames(self, frame_px: int) -> SceneShape:
        """Give as much room around other frames, and as many fewer scenes as larger frames have more pixels."""
        scenes = min(self.scenes, max(1, round(self.scenes * (self.frame_px / frame_px) ** 2)))
        return replace(self, frame_px=frame_px, grid_px=self.grid_px - self.frame_px + frame_px, scenes=scenes)


SHAPES = (
    SceneShape(64, 128, (4, 48), 110, 0.35),
    SceneShape(64, 192, (24, 120), 50, 0.22),
    SceneShape(128, 224, (6, 40), 38, 0.25),
    SceneShape(64, 96, (1, 8), 180, 0.06),
    SceneShape(256, 416, (4, 16), 11, 0.07),
    SceneShape(512, 560, (2, 8), 4, 0.05),
)
# Side of the objects that objects are cut from.
OBJECT_PX = 560
# Of these scenes a batch on a CPU has so many: with all of them a run would make few steps.
CPU_SHARE = 1 / 18
# Share of the batches that are measured in the near field, and their range of ``N pixel^2 / (wavelength z)``.
NEAR_SHARE = 0.12
FRESNEL_NUMBERS = (2.0, 30.0)
# Share of the objects that turn the phase by up to 12 rad, as some micrometres of gold do; the others by up to 2.6.
THICK_SHARE = 0.3
# The assumed probes are wrong in half of the batches: by up to the first strength, or in a share of them the second, as
# guesses of instruments are. A strength of 1 is a phase of about 0.6 rad rms over the pupil.
PROBE_ERRORS, POOR_PROBE_SHARE = (0.8, 4.0), 0.25


@dataclass(frozen=True, eq=False)
class Batch:
    """Scenes with their truth.

    Attributes
    ----------
    truth : Tensor, shape (B, Y, X), complex64
    probe : Tensor, shape (B, M, N, N), complex64
        The assumed probe, which the network is given: the true one with an error.
    data : Diffraction
        Counts at the true positions, with the assumed positions, which the network is given.
    true_probe : Tensor, shape (B, M, N, N), complex64
        With the photons of the assumed probe, which set the scale of the object.
    true_data : Diffraction
        The same counts with the true positions.
    """

    truth: Tensor
    probe: Tensor
    data: Diffraction
    true_probe: Tensor
    true_data: Diffraction


class SceneStream:
    """Endless batches of simulated scans.

    Parameters
    ----------
    device : torch.device
    seed : int
    photons : tuple of float
        Least and most photons of a frame; drawn log-uniformly.
    pool : int
        Objects kept and cut from; one in 64 batches renews an eighth of them.
    object_px : int
        Side of the objects in the pool; a object can't be larger.
    probe : Tensor, shape (M, N, N), complex, optional
        The true probe of all scenes, up to its photons, and all are far fields; each has its own if absent.
    decisions : int, optional
        Seed of what decides about whole batches, their sizes among it; default: `seed`. Streams with the same draw
        batches of the same size, so that of processes that train together none waits for another.

    Raises
    ------
    ConfigError
        If no shape of `SHAPES` has frames of the probe's size.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        photons: tuple[float, float] = (1e3, 1e8),
        pool: int = 256,
        object_px: int = OBJECT_PX,
        probe: Tensor | None = None,
        decisions: int | None = None,
    ) -> None:
        self.device = device
        self._probe = None if probe is None else _of_unit_energy(probe.to(device, torch.complex64))
        of_scenes = 1 if device.type == "cuda" else CPU_SHARE
        self._shapes = [replace(each, scenes=max(1, round(of_scenes * each.scenes))) for each in shapes_for(probe)]
        self._generator = torch.Generator(device=device)
        # What decides about a whole batch is drawn beside the GPU, which so is never waited for.
        self._decisions = torch.Generator()
        self.reseed(seed, decisions)
        self.photons = photons
        self.object_px = object_px
        self._drawn = 0
        eighth = max(1, pool // 8)
        self._pool = [self.objects(eighth, object_px) for _ in range(8)]

    def reseed(self, seed: int, decisions: int | None = None) -> None:
        """Begin another sequence of scenes.

        Parameters
        ----------
        seed : int
            Seed of what is drawn for each scene.
        decisions : int, optional
            Seed of what decides about whole batches; default: `seed`.
        """
        self._generator.manual_seed(seed)
        self._decisions.manual_seed(seed if decisions is None else decisions)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform random numbers.

        Parameters
        ----------
        *shape : int
            Of the result.
        low, high : float
            Bounds.
        """
        return low + (high - low) * torch.rand(*shape, device=self.device, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        """Draw normal random numbers."""
        return torch.randn(*shape, device=self.device, generator=self._generator)

    def between(self, low: float, high: float) -> float:
        """Draw a uniform random number that decides about a whole batch.

        Parameters
        ----------
        low, high : float
            Bounds.
        """
        return low + (high - low) * float(torch.rand((), generator=self._decisions))

    def whole(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included.

        Parameters
        ----------
        low, high : int
            Least and most.
        """
        return int(torch.randint(low, high + 1, (), generator=self._decisions))

    def chance(self, probability: float) -> bool:
        """Draw a yes or no."""
        return self.between(0, 1) < probability

    def draw(self, shape: SceneShape | None = None, exact: bool = False) -> Batch:
        """Simulate a batch of scans.

        Parameters
        ----------
        shape : SceneShape, optional
            If absent a random one of `SHAPES`, on a CPU with fewer scenes.
        exact : bool
            Tell the true probe and positions of far fields, and mask nothing.

        Raises
        ------
        ValueError
            If the object is larger than the objects of the pool.
        """
        shape = shape or self._pick_shape()
        if shape.grid_px > self.object_px:
            # On a GPU an index beyond the pool would end the process.
            raise ValueError(f"objects of {self.object_px} pixels can't fill a object of {shape.grid_px}")
        scenes, size = shape.scenes, shape.frame_px
        self._drawn += 1
        if self._drawn % 64 == 0:
            self._pool[self._drawn // 64 % 8] = self.objects(len(self._pool[0]), self.object_px)
        truth = self._cut(scenes, shape.grid_px)
        photons = 10 ** self.uniform(scenes, low=math.log10(self.photons[0]), high=math.log10(self.photons[1]))
        modes = 1 if self.chance(0.5) else self.whole(2, 3)
        unit = self.probes(scenes, size, modes) if self._probe is None else self._probe
        probe = unit * photons.sqrt()[:, None, None, None]
        per_scene = self.whole(*shape.frames)
        centre, scene = self._positions(scenes, per_scene, size, shape.grid_px)
        flux = (1 + 0.03 * self.normal(len(centre))).clamp(0.5, 1.5)
        far = exact or self._probe is not None or not self.chance(NEAR_SHARE)
        propagator = FAR_FIELD if far else self._near_field(size)
        corner, shift = place(centre, size, shape.grid_px)
        grids = (scenes, shape.grid_px, shape.grid_px)
        blank = torch.zeros((), device=self.device).expand(len(centre), size, size)
        actual = Diffraction(blank, corner, shift, grids, flux, scene, propagator=propagator)
        counts = self._measure(truth, probe, actual)
        assumed = centre if exact else centre + self._error(0.3) * self.normal(*centre.shape)
        corner, shift = place(assumed, size, shape.grid_px)
        mask = self._mask(size) if not exact and self.chance(0.2) else None
        actual = replace(actual, counts=counts, mask=mask)
        data = replace(actual, corner=corner, shift_px=shift)
        assumed_probe = probe if exact else self._misjudge(probe)
        return Batch(truth, assumed_probe, data, _with_photons_of(probe, assumed_probe), actual)

    def objects(self, number: int, size: int) -> Tensor:
        """Draw transmission functions of mixed kinds.

        Parameters
        ----------
        number : int
            How many.
        size : int
            Pixels along a side.

        Returns
        -------
        Tensor, shape (number, size, size), complex64
        """
        kinds = (self._texture, self._leaves, self._sparse, self._lines)
        pick = self.uniform(number, 1, 1) * len(kinds)
        fields = [kind(number, size) for kind in kinds]
        thickness = sum(((pick >= i) & (pick < i + 1)) * f for i, f in enumerate(fields))
        blend = self.uniform(number, 1, 1, low=-1, high=0.6).clamp_min(0)
        thickness = (1 - blend) * thickness + blend * fields[0] * (thickness > 0)
        absorber = torch.where(self.uniform(number, 1, 1) < 0.6, thickness, fields[1])
        thick = self.uniform(number, 1, 1) < THICK_SHARE
        least, most = torch.where(thick, 2.6, 0.1), torch.where(thick, 12.0, 2.6)
        phase = (least + (most - least) * self.uniform(number, 1, 1)) * thickness
        sign = torch.where(self.uniform(number, 1, 1) < 0.75, -1.0, 1.0)
        loss = self.uniform(number, 1, 1, low=-0.3, high=0.8).clamp_min(0)
        return torch.polar(torch.exp(-loss * absorber), sign * phase)

    def probes(self, number: int, size: int, modes: int) -> Tensor:
        """Draw unit-energy probes of aberrated lenses.

        Parameters
        ----------
        number : int
            How many.
        size : int
            Pixels along a side.
        modes : int
            Incoherent modes of each.

        Returns
        -------
        Tensor, shape (number, modes, size, size), complex64
        """
        grid = torch.arange(size, device=self.device, dtype=torch.float32) - size // 2
        y, x = torch.meshgrid(grid, grid, indexing="ij")

        def draw(low: float, high: float) -> Tensor:
            return self.uniform(number, 1, 1, low=low, high=high)

        aperture = draw(0.07, 0.38) * size
        radius = torch.hypot(y, x).expand(number, size, size)
        stop = draw(-0.3, 0.6).clamp_min(0) * aperture
        round_lens = (aperture - radius + 0.5).clamp(0, 1) * (radius - stop + 0.5).clamp(0, 1)
        square_lens = (aperture - y.abs() + 0.5).clamp(0, 1) * (aperture * draw(0.6, 1.2) - x.abs() + 0.5).clamp(0, 1)
        amplitude = torch.where(self.uniform(number, 1, 1) < 0.7, round_lens, square_lens)
        spot = draw(0.03, 0.27) * torch.where(self.uniform(number, 1, 1) < 0.5, -1.0, 1.0)
        u, v = y / aperture, x / aperture
        # A phase of pi * spot * aperture at the edge moves the edge ray by `spot` frame widths.
        phase = math.pi * spot * aperture * (u**2 + v**2)
        phase = phase + 0.7 * self.normal(number, 1, 1) * (u**2 - v**2) + 0.7 * self.normal(number, 1, 1) * u * v
        phase = phase + 0.5 * self.normal(number, 1, 1) * (3 * (u**2 + v**2) - 2) * v
        first = to_centre(torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, phase), dim=(-2, -1))))
        if modes == 1:
            return first[:, None] / first.abs().square().sum(dim=(-2, -1)).sqrt()[:, None, None, None]
        basis = orthogonal_modes(first, modes)  # (number, M, N, N)
        share = self.uniform(number, 1, low=0.7, high=1.0)
        shares = torch.cat([share, (1 - share).expand(number, modes - 1) / (modes - 1)], dim=1)
        return basis * shares.sqrt()[:, :, None, None]

    def _pick_shape(self) -> SceneShape:
        pick, total = self.between(0, sum(shape.share for shape in self._shapes)), 0.0
        for shape in self._shapes:
            total += shape.share
            if pick < total:
                return shape
        return self._shapes[0]

    def _error(self, most: float) -> float:
        """Draw the size of an error: half of the batches have none, the others up to `most`."""
        return max(0.0, self.between(-most, most))

    def _cut(self, scenes: int, size: int) -> Tensor:
        pool = self._pool[self.whole(0, 7)]
        which = (self.uniform(scenes, high=len(pool) - 0.001)).long()
        corner = (self.uniform(scenes, 2) * (self.object_px - size)).long()
        cut = extract(pool, corner, size, which)
        if self.chance(0.5):
            cut = cut.transpose(-1, -2)
        if self.chance(0.5):
            cut = cut.flip(-1)
        return cut.contiguous()

    def _positions(self, scenes: int, per_scene: int, size: int, obj: int) -> tuple[Tensor, Tensor]:
        """Draw probe centres (n, 2) in pixels and their scenes: jittered grids, random sets, or clusters."""
        room = obj - size - 2
        if self.chance(0.5):
            side = math.ceil(math.sqrt(per_scene))
            step = room / max(side, 1)
            cell = torch.arange(per_scene, device=self.device)
            grid = torch.stack([cell // side, cell % side], dim=1) * step + step / 2
            centre = grid + 0.4 * step * (self.uniform(scenes, per_scene, 2) - 0.5)
        else:
            centre = room * self.uniform(scenes, per_scene, 2)
            if self.chance(0.3):
                centre = room / 4 + centre / 2
        scene = torch.arange(scenes, device=self.device).repeat_interleave(per_scene)
        return (centre + size // 2 + 1).reshape(-1, 2), scene

    def _near_field(self, size: int) -> Propagator:
        """Draw a distance in the near field; pixel and wavelength only scale it."""
        low, high = map(math.log10, FRESNEL_NUMBERS)
        number, pixel_m, wavelength_m = 10 ** self.between(low, high), 1e-7, 1e-10
        distance_m = size * pixel_m**2 / (wavelength_m * number)
        return AngularSpectrum(size, pixel_m, wavelength_m, distance_m, device=self.device)

    def _measure(self, truth: Tensor, probe: Tensor, frames: Diffraction) -> Tensor:
        """Draw counts of frames in the working order, with a background that nobody knows of."""
        expected = frames.rate(frames.probes(probe), frames.patches(truth))
        return torch.poisson(expected + 10 ** self.between(-5, -2), generator=self._generator)

    def _mask(self, size: int) -> Tensor:
        """Draw valid pixels: a few dead pixels and dead rows (module gaps)."""
        mask = self.uniform(size, size) > 0.002
        if self.chance(0.5):
            row = self.whole(int(size * 0.1), int(size * 0.9))
            mask[row : row + 2] = False
        return mask

    def _misjudge(self, probe: Tensor) -> Tensor:
        """Give the probe low-order aberrations and an error of scale, half of the time."""
        strength = self._error(PROBE_ERRORS[self.chance(POOR_PROBE_SHARE)])
        if strength == 0:
            return probe
        number, size = probe.shape[0], probe.shape[-1]
        grid = torch.fft.fftfreq(size, device=self.device)
        weight = torch.fft.fft2(probe).abs().square().sum(dim=1)  # (B, N, N)
        squared = grid[:, None] ** 2 + grid[None, :] ** 2  # (N, N)
        extent = ((weight * squared).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1))).sqrt()
        u, v = grid[:, None] / extent[:, None, None], grid[None, :] / extent[:, None, None]
        terms = (u**2 + v**2 - 1, u**2 - v**2, 2 * u * v, u * (u**2 + v**2 - 2), v * (u**2 + v**2 - 2))
        phase = sum(0.4 * strength * self.normal(number, 1, 1) * t.clamp(-6, 6) for t in terms)
        scale = 1 + 0.05 * strength * self.normal(number, 1, 1, 1)
        bent: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * torch.polar(torch.ones_like(phase), phase)[:, None])
        return bent * scale

    def _texture(self, number: int, size: int) -> Tensor:
        k = torch.hypot(*torch.meshgrid(*(torch.fft.fftfreq(size, device=self.device),) * 2, indexing="ij"))
        k[0, 0] = 1
        exponent = self.uniform(number, 1, 1, low=0.7, high=2.3)
        noise = torch.fft.ifft2(torch.fft.fft2(self.normal(number, size, size)) * k**-exponent).real
        noise = (noise - noise.mean(dim=(1, 2), keepdim=True)) / noise.std(dim=(1, 2), keepdim=True)
        return torch.sigmoid(1.7 * noise)

    def _leaves(self, number: int, size: int, leaves: int = 60, ground: float = 1.0) -> Tensor:
        """Draw dead leaves (Lee, Mumford and Huang, Int. J. Comput. Vis. 41, 35 (2001)): shapes that occlude."""
        grid = torch.arange(size, device=self.device, dtype=torch.float32) - size // 2
        y, x = torch.meshgrid(grid, grid, indexing="ij")
        out = ground * self.uniform(number, 1, 1).expand(number, size, size)
        for _ in range(leaves):
            cy, cx = (self.uniform(number, 1, 1) - 0.5) * size, (self.uniform(number, 1, 1) - 0.5) * size
            radius = 2 + self.uniform(number, 1, 1) ** 2 * size * 0.16
            other = radius * self.uniform(number, 1, 1, low=0.15, high=1.6)
            turn = self.uniform(number, 1, 1) * math.pi
            u = (x - cx) * turn.cos() + (y - cy) * turn.sin()
            v = (y - cy) * turn.cos() - (x - cx) * turn.sin()
            ellipse = (1 - torch.hypot(u / radius, v / other)) * torch.minimum(radius, other)
            box = torch.minimum(radius - u.abs(), other - v.abs())
            edge = torch.where(self.uniform(number, 1, 1) < 0.5, ellipse, box)
            inside = (edge + 0.5).clamp(0, 1)
            out = out + inside * (self.uniform(number, 1, 1) - out)
        return out

    def _sparse(self, number: int, size: int) -> Tensor:
        """Draw few shapes on vacuum."""
        return self._leaves(number, size, leaves=12, ground=0.0)

    def _lines(self, number: int, size: int) -> Tensor:
        """Draw gratings of one period, inside a disc, on vacuum."""
        grid = torch.arange(size, device=self.device, dtype=torch.float32) - size // 2
        y, x = torch.meshgrid(grid, grid, indexing="ij")
        cy, cx = ((self.uniform(number, 1, 1) - 0.5) * size for _ in range(2))
        turn, period = self.uniform(number, 1, 1) * math.pi, self.uniform(number, 1, 1, low=5, high=40)
        wave = torch.sin(2 * math.pi * (x * turn.cos() + y * turn.sin()) / period)
        disc = self.uniform(number, 1, 1, low=0.15, high=0.9) * size - torch.hypot(y - cy, x - cx)
        return (wave * period / 6 + 0.5).clamp(0, 1) * (disc + 0.5).clamp(0, 1)


def shapes_for(probe: Tensor | None) -> tuple[SceneShape, ...]:
    """List the shapes of `SHAPES` that have frames of a probe's size (..., N, N); all without one.

    Raises
    ------
    ConfigError
        If there are none.
    """
    if probe is None:
        return SHAPES
    size = probe.shape[-1]
    fitting = tuple(shape for shape in SHAPES if shape.frame_px == size)
    if not fitting:
        sizes = ", ".join(str(known) for known in sorted({shape.frame_px for shape in SHAPES}))
        raise ConfigError(f"training draws frames of {sizes} pixels a side; the probe has {size}: crop or pad it")
    return fitting


def _of_unit_energy(probe: Tensor) -> Tensor:
    """Scale a probe (M, N, N) to unit energy."""
    return probe / probe.abs().square().sum().sqrt()


def _with_photons_of(probe: Tensor, other: Tensor) -> Tensor:
    """Scale probes (B, M, N, N) to the photons of others."""
    photons, wanted = (each.abs().square().sum(dim=(-3, -2, -1), keepdim=True) for each in (probe, other))
    return probe * (wanted / photons).sqrt()


def place(centre: Tensor, size: int, obj: int) -> tuple[Tensor, Tensor]:
    """Convert pixel centres to patch corners and sub-pixel shifts, kept on the object.

    Parameters
    ----------
    centre : Tensor, shape (n, 2)
        (row, column) of each probe, pixels.
    size : int
        Pixels along a side of a patch.
    obj : int
        Pixels along a side of the object.

    Returns
    -------
    tuple of Tensor, shape (n, 2)
        Corners (int64), and shifts in pixels.
    """
    half = size // 2
    nearest = centre.round().clamp(half, obj - size + half)
    return nearest.long() - half, centre - nearest
