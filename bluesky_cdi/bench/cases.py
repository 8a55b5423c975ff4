"""Simulated scans that reconstructions are judged on, and that training does not draw."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.forward import Diffraction, to_centre
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.objects import SAMPLES, make_sample
from bluesky_cdi.physics.optics import mirror_pair_field
from bluesky_cdi.physics.probes import partially_coherent, scaled_to, width_px
from bluesky_cdi.physics.zone_plate import OrderSortingAperture, ZonePlate, zone_plate_field
from bluesky_cdi.protocols import FloatArray

# Stop and order-sorting aperture make a hollow beam with a faint halo; training draws plain lenses. This far out of
# focus its width, by the second moment, is a third of the frame's.
ZONE_PLATE = ZonePlate(80e-9, 150e-6, 40e-6, OrderSortingAperture(30e-6, 10e-3))
DEFOCUS_M = 0.22e-3
# Positions are off their grid by up to this share of the step, which keeps the grid out of the object.
JITTER = 0.2
# Of the pair of mirrors: half opening angles and distances from the foci (y, x), which make an astigmatic beam.
MIRRORS_NA, MIRRORS_DEFOCUS_M = (0.9e-3, 0.7e-3), (0.25e-3, -0.15e-3)
# Share of the photons in the first of several modes.
MAIN_SHARE = 0.85


@dataclass(frozen=True)
class Wrong:
    """What is assumed wrongly of a scan, besides the aberrations of `Case.probe_error_rad`.

    Parameters
    ----------
    aperture : float
        Numerical aperture of the assumed lens over the true one.
    no_stop : bool
        Whether the assumed lens lacks central stop and order-sorting aperture.
    powers : {'true', 'equal', 'one'}
        What is assumed of the modes: their true powers, equal ones, or that there is but the first.
    centre_px : tuple of int
        Where the beam's centre lies on the frames (rows, columns), pixels from where it is assumed to lie.
    pixel : float
        By which share the sample's pixel is assumed too large: the detector's distance is.
    """

    aperture: float = 1.0
    no_stop: bool = False
    powers: Literal["true", "equal", "one"] = "true"
    centre_px: tuple[int, int] = (0, 0)
    pixel: float = 0.0


@dataclass(frozen=True)
class Case:
    """A simulated scan.

    Parameters
    ----------
    dose : float
        Photons of a frame through vacuum.
    overlap : float
        Linear overlap, 1 - step / width, with the probe's width by its second moment (`probes.width_px`).
    probe_error_rad : float
        Defocus and astigmatism of the assumed probe relative to the true one: root mean square over the pupil.
    refine_probe : bool
        Whether engines refine the assumed probe.
    count_scale : float
        Factor on counts and on the assumed probe's photons: a detector that counts in other units.
    sample : str
        A kind of `objects.make_sample`.
    frame_px : int
        Pixels along a side of the frames, N.
    field : float
        Side of the square of probe centres, in widths of the frame's window. It is the same for all overlaps, so
        less overlap means fewer frames of the same object.
    thickness : float
        How many times thicker than usual the sample is.
    modes : int
        Incoherent modes of the beam.
    wrong : Wrong
        What is assumed wrongly besides.
    optics : {'zone plate', 'mirrors'}
        What focuses the beam. Of the pair of mirrors no other probe can be assumed.
    position_error_px : float
        Standard deviation, along each axis, of the assumed positions around the true ones, pixels.

    Raises
    ------
    ConfigError
        If there is no such scan.
    """

    dose: float = 1e5
    overlap: float = 0.67
    probe_error_rad: float = 0.0
    refine_probe: bool = False
    count_scale: float = 1.0
    sample: str = "star"
    frame_px: int = 64
    field: float = 1.25
    thickness: float = 1.0
    modes: int = 1
    wrong: Wrong = Wrong()
    optics: Literal["zone plate", "mirrors"] = "zone plate"
    position_error_px: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("dose", "count_scale", "field", "thickness"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a finite positive number; it is {getattr(self, name)!r}")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be at least 0 and below 1; it is {self.overlap!r}")
        if not self.position_error_px >= 0:
            raise ConfigError(f"position_error_px must be 0 or more; it is {self.position_error_px!r}")
        if self.optics == "mirrors" and (self.probe_error_rad or self.wrong != Wrong()):
            raise ConfigError("no other probe can be assumed of a pair of mirrors: choose optics='zone plate'")
        if self.sample not in SAMPLES:
            raise ConfigError(f"a sample is one of {', '.join(SAMPLES)}; got {self.sample!r}")

    @property
    def geometry(self) -> Geometry:
        """A hard X-ray instrument; the frame's window on the sample is 1.8 µm whatever `frame_px` is."""
        return Geometry(8000.0, 2.0, 172e-6, self.frame_px)


def photons(dose: float) -> str:
    """Write a dose as a label: 1e5, 1.6e6."""
    return f"{dose:.2g}".replace("e+0", "e")


def simulate(case: Case, seed: int, device: torch.device) -> Problem:
    """Make a scan: sample, positions off their grid, Poisson counts.

    Sample, positions and noise depend on the seed alone, so that cases that differ in what the methods are
    given differ in nothing else. Noise is drawn on the CPU: every device gets the same counts.

    Parameters
    ----------
    case : Case
        What is simulated.
    seed : int
        Of sample, positions and noise.
    device : torch.device
        Device that methods will compute on.

    Returns
    -------
    Problem
    """
    rng = np.random.default_rng(seed)
    geometry = case.geometry
    pixel_m, side = geometry.pixel_m, case.field * geometry.pixel_m * case.frame_px
    grid = ObjectGrid.covering(np.zeros(2), np.full(2, side), pixel_m, case.frame_px, case.frame_px // 8)
    probe = _probe(case, geometry)
    positions_m = grid_positions(side, (1 - case.overlap) * width_px(probe) * pixel_m, rng)
    corner, shift = grid.place(positions_m)
    truth = make_sample(case.sample, grid.shape, seed, thickness=case.thickness)
    blank = torch.zeros(()).expand(len(corner), case.frame_px, case.frame_px)
    data = Diffraction(blank, torch.from_numpy(corner), torch.from_numpy(shift).float(), (1, *grid.shape))
    counts = case.count_scale * _measured(torch.from_numpy(truth)[None], probe[None], data, seed)
    counts = torch.roll(counts, case.wrong.centre_px, dims=(-2, -1))
    aberrations = _aberrations(case.probe_error_rad, rng) if case.probe_error_rad else None
    # A generator of its own: what is wrong changes nothing else.
    off = np.random.default_rng([seed, 1]).standard_normal(positions_m.shape) * case.position_error_px * pixel_m
    corner_px, shift_px = _assumed_places(grid, positions_m + off, case.wrong.pixel)
    return Problem(
        Diffraction(counts.to(device), corner_px.to(device), shift_px.to(device), data.object_shape),
        scaled_to(_assumed_probe(case, aberrations), case.dose * case.count_scale)[None].to(device),
        case.refine_probe,
        truth,
        illuminated_mask(summed_illumination(probe[None], data)[0].numpy()),
        grid.origin_m,
        pixel_m,
    )


def scan_of(case: Case, seed: int) -> Scan:
    """Put the scan of `simulate` into the form that other programs can read, with the assumed probe.

    Parameters
    ----------
    case : Case
        What is simulated.
    seed : int
        Of sample, positions and noise.

    Returns
    -------
    Scan
    """
    problem = simulate(case, seed, torch.device("cpu"))
    return Scan(
        to_centre(problem.data.counts).numpy(),
        positions_of(problem),
        case.geometry,
        problem.probe[0].numpy(),
        name=f"{case.sample}, {photons(case.dose)} photons, seed {seed}",
        source={"propagation": "far field", "simulated": asdict(case), "seed": seed},
    )


def positions_of(problem: Problem) -> FloatArray:
    """Compute where frames were measured, (y, x), metres, (n, 2)."""
    centre_px = problem.data.corner + problem.probe.shape[-1] // 2 + problem.data.shift_px
    return np.asarray(problem.origin_m) + centre_px.double().numpy() * problem.pixel_m


def grid_positions(side_m: float, step_m: float, rng: np.random.Generator) -> FloatArray:
    """Lay positions on a square grid in the middle of a field, each off by up to `JITTER` steps.

    Parameters
    ----------
    side_m : float
        Side of the field, metres.
    step_m : float
        Step of the grid, metres.
    rng : numpy.random.Generator
        Draws how far each is off.

    Returns
    -------
    ndarray, shape (n, 2)
        (y, x) from the field's corner, metres.
    """
    number = math.floor(side_m / step_m + 1e-9) + 1
    line = (side_m - (number - 1) * step_m) / 2 + step_m * np.arange(number)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.asarray(grid + JITTER * step_m * rng.uniform(-1, 1, grid.shape))


def true_probe(case: Case) -> Tensor:
    """Make the probe that frames are simulated with, (M, N, N), complex64."""
    return scaled_to(_probe(case, case.geometry), case.dose * case.count_scale)


def _probe(
    case: Case, geometry: Geometry, wrong: Wrong = Wrong(), aberrations: Mapping[int, float] | None = None
) -> Tensor:
    if case.optics == "mirrors":
        field = mirror_pair_field(geometry, numerical_aperture=MIRRORS_NA, defocus_m=MIRRORS_DEFOCUS_M)
    else:
        field = _field(geometry, wrong.aperture, wrong.no_stop, tuple((aberrations or {}).items()))
    return partially_coherent(field, case.modes, MAIN_SHARE if case.modes > 1 else 1.0, case.dose)


# Nearly all scans of a suite have one lens, and its field takes longer to compute than the scan.
@functools.lru_cache(maxsize=16)
def _field(geometry: Geometry, aperture: float, no_stop: bool, aberrations: tuple[tuple[int, float], ...]) -> Tensor:
    lens = replace(ZONE_PLATE, outermost_zone_m=ZONE_PLATE.outermost_zone_m / aperture)
    if no_stop:
        lens = replace(lens, stop_diameter_m=0.0, sorting=None, orders={1: 1.0})
    return zone_plate_field(geometry, lens, defocus_m=DEFOCUS_M, aberrations=dict(aberrations))


def _assumed_probe(case: Case, aberrations: Mapping[int, float] | None) -> Tensor:
    """Make the assumed probe, of any brightness: on the assumed pixel the true one looks smaller."""
    wrong = case.wrong
    geometry = replace(case.geometry, distance_m=case.geometry.distance_m * (1 + wrong.pixel))
    modes = _probe(case, geometry, wrong, aberrations)
    if wrong.powers == "equal":
        return modes / modes.abs().square().sum(dim=(-2, -1), keepdim=True).sqrt()
    return modes[:1] if wrong.powers == "one" else modes


def _assumed_places(grid: ObjectGrid, positions_m: FloatArray, pixel: float) -> tuple[Tensor, Tensor]:
    """Place frames on the grid as with a pixel that is too large by a share: closer together, about their middle."""
    middle = positions_m.mean(axis=0)
    corner, shift = grid.place(middle + (positions_m - middle) / (1 + pixel))
    return torch.from_numpy(corner), torch.from_numpy(shift).float()


def _aberrations(rms_rad: float, rng: np.random.Generator) -> dict[int, float]:
    """Draw a random mixture of defocus and both astigmatisms (Noll 4, 5, 6) of a given strength."""
    mixture = rng.standard_normal(3)
    mixture *= rms_rad / np.linalg.norm(mixture)
    return dict(zip((4, 5, 6), mixture.tolist(), strict=True))


def _measured(sample: Tensor, probe: Tensor, data: Diffraction, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rates = (part.rate(part.probes(probe), part.patches(sample)) for part in data.chunks(frames_at_once(probe)))
    return torch.cat([torch.poisson(rate, generator=generator) for rate in rates])
