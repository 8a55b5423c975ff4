"""Simulated measurements for training: objects, probes, positions, counts, made where the network is.

Everything is drawn from the two seeded generators of `Draws`, so a seed and a device name a training run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum, Propagator
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.objects import ObjectPool
from bluesky_cdi.training.probes import draw_probes, misjudge


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
# Objects that are kept and cut from; on a CPU about as many for each scene of a batch, since drawing them takes long.
POOL, CPU_POOL = 256, 16
# Share of the batches that are measured in the near field, and their range of ``N pixel^2 / (wavelength z)``.
NEAR_SHARE = 0.12
FRESNEL_NUMBERS = (2.0, 30.0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Scenes with their truth.

    Attributes
    ----------
    truth : Tensor, shape (B, Y, X), complex64
        Objects that the frames are of; vacuum is 1.
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
        Where scenes are drawn.
    seed : int
        Of what is drawn.
    photons : tuple of float
        Least and most photons of a frame; drawn log-uniformly.
    pool : int, optional
        Objects kept and cut from, by default 256, on a CPU 16; one in 64 batches renews an eighth of them.
    object_px : int
        Side of the objects in the pool; an object can't be larger.
    probe : Tensor, shape (M, N, N), complex, optional
        The true probe of all scenes, up to its photons, and all are far fields; each has its own if absent.
    decisions : int, optional
        Seed of what decides about whole batches, their sizes among it; default: `seed`. Streams with the same draw
        batches of the same size, so that of processes that train together none waits for another.

    Attributes
    ----------
    draws : Draws
        Where all randomness comes from.
    pool : ObjectPool
        Where the scenes' objects come from.
    photons : tuple of float
        As given; may be changed between batches.

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
        pool: int | None = None,
        object_px: int = OBJECT_PX,
        probe: Tensor | None = None,
        decisions: int | None = None,
    ) -> None:
        self.draws = Draws(device, seed, decisions)
        self._probe = None if probe is None else _of_unit_energy(probe.to(device, torch.complex64))
        of_scenes = 1 if device.type == "cuda" else CPU_SHARE
        self._shapes = [replace(each, scenes=max(1, round(of_scenes * each.scenes))) for each in shapes_for(probe)]
        self.photons = photons
        if pool is None:
            pool = POOL if device.type == "cuda" else CPU_POOL
        self.pool = ObjectPool(self.draws, pool, object_px)

    def draw_at(
        self, photons: Sequence[float], batches: int, shape: SceneShape, exact: bool = False
    ) -> Iterator[Batch]:
        """Simulate the same scans at several doses: their objects, which take most of the time, are drawn once.

        Parameters
        ----------
        photons : sequence of float
            Mean photons of a frame.
        batches : int
            At each dose.
        shape : SceneShape
            Of each batch.
        exact : bool
            As of `draw`.
        """
        begin = self.draws.state()
        for dose in photons:
            self.draws.restore(begin)
            self.photons = (dose, 1.001 * dose)
            for _ in range(batches):
                yield self.draw(shape, exact)

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
        shape, draws = shape or self._pick_shape(), self.draws
        scenes, size = shape.scenes, shape.frame_px
        truth = self.pool.cut(scenes, shape.grid_px)
        photons = 10 ** draws.uniform(scenes, low=math.log10(self.photons[0]), high=math.log10(self.photons[1]))
        modes = 1 if draws.chance(0.5) else draws.whole(2, 3)
        unit = draw_probes(draws, scenes, size, modes) if self._probe is None else self._probe
        probe = unit * photons.sqrt()[:, None, None, None]
        per_scene = draws.whole(*shape.frames)
        centre, scene = self._positions(scenes, per_scene, size, shape.grid_px)
        flux = (1 + 0.03 * draws.normal(len(centre))).clamp(0.5, 1.5)
        far = exact or self._probe is not None or not draws.chance(NEAR_SHARE)
        propagator = FAR_FIELD if far else self._near_field(size)
        corner, shift = place(centre, size, shape.grid_px)
        grids = (scenes, shape.grid_px, shape.grid_px)
        blank = torch.zeros((), device=draws.device).expand(len(centre), size, size)
        actual = Diffraction(blank, corner, shift, grids, flux, scene, propagator=propagator)
        counts = self._measure(truth, probe, actual)
        assumed = centre if exact else centre + draws.error(0.3) * draws.normal(*centre.shape)
        corner, shift = place(assumed, size, shape.grid_px)
        mask = self._mask(size) if not exact and draws.chance(0.2) else None
        actual = replace(actual, counts=counts, mask=mask)
        data = replace(actual, corner=corner, shift_px=shift)
        assumed_probe = probe if exact else misjudge(draws, probe)
        return Batch(truth, assumed_probe, data, _with_photons_of(probe, assumed_probe), actual)

    def _pick_shape(self) -> SceneShape:
        pick, total = self.draws.between(0, sum(shape.share for shape in self._shapes)), 0.0
        for shape in self._shapes:
            total += shape.share
            if pick < total:
                return shape
        return self._shapes[0]

    def _positions(self, scenes: int, per_scene: int, size: int, obj: int) -> tuple[Tensor, Tensor]:
        """Draw probe centres (n, 2) in pixels and their scenes: jittered grids, random sets, or clusters."""
        room = obj - size - 2
        if self.draws.chance(0.5):
            side = math.ceil(math.sqrt(per_scene))
            step = room / max(side, 1)
            cell = torch.arange(per_scene, device=self.draws.device)
            grid = torch.stack([cell // side, cell % side], dim=1) * step + step / 2
            centre = grid + 0.4 * step * (self.draws.uniform(scenes, per_scene, 2) - 0.5)
        else:
            centre = room * self.draws.uniform(scenes, per_scene, 2)
            if self.draws.chance(0.3):
                centre = room / 4 + centre / 2
        scene = torch.arange(scenes, device=self.draws.device).repeat_interleave(per_scene)
        return (centre + size // 2 + 1).reshape(-1, 2), scene

    def _near_field(self, size: int) -> Propagator:
        """Draw a distance in the near field; pixel and wavelength only scale it."""
        low, high = map(math.log10, FRESNEL_NUMBERS)
        number, pixel_m, wavelength_m = 10 ** self.draws.between(low, high), 1e-7, 1e-10
        distance_m = size * pixel_m**2 / (wavelength_m * number)
        return AngularSpectrum(size, pixel_m, wavelength_m, distance_m, device=self.draws.device)

    def _measure(self, truth: Tensor, probe: Tensor, frames: Diffraction) -> Tensor:
        """Draw counts of frames in the working order, with a background that nobody knows of."""
        expected = frames.rate(frames.probes(probe), frames.patches(truth))
        return self.draws.poisson(expected + 10 ** self.draws.between(-5, -2))

    def _mask(self, size: int) -> Tensor:
        """Draw valid pixels: a few dead pixels and dead rows (module gaps)."""
        mask = self.draws.uniform(size, size) > 0.002
        if self.draws.chance(0.5):
            row = self.draws.whole(int(size * 0.1), int(size * 0.9))
            mask[row : row + 2] = False
        return mask


def shapes_for(probe: Tensor | None) -> tuple[SceneShape, ...]:
    """List the shapes of `SHAPES` that have frames of a probe's size (..., N, N); all without one.

    Parameters
    ----------
    probe : Tensor, shape (..., N, N), or None
        The one probe to train for.

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
