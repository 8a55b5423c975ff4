"""Scans that reconstructions are judged on: simulated ones that training does not draw, and recorded ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.bench.problem import Problem, light_of
from bluesky_cdi.config import Config
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.io import Scan, read_cxi, read_reference, read_scan
from bluesky_cdi.live.build import with_modes
from bluesky_cdi.live.detector_faults import valid_pixels
from bluesky_cdi.metrics import illuminated
from bluesky_cdi.offline import first_guess
from bluesky_cdi.physics.forward import Diffraction, to_centre
from bluesky_cdi.physics.geometry import Canvas, Geometry
from bluesky_cdi.physics.lit_frames import frames_at_once
from bluesky_cdi.physics.objects import SAMPLES, make_sample
from bluesky_cdi.physics.probes import scaled_to, width_px, zone_plate_probe
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.physics.zone_plate import OrderSortingAperture, ZonePlate
from bluesky_cdi.protocols import ComplexArray, FloatArray

# Stop and order-sorting aperture make a hollow beam with a faint halo; training draws plain lenses. This far out of
# focus its width, by the second moment, is a third of the frame's.
ZONE_PLATE = ZonePlate(80e-9, 150e-6, 40e-6, OrderSortingAperture(30e-6, 10e-3))
DEFOCUS_M = 0.22e-3
# Positions are off their grid by up to this share of the step, which keeps the grid out of the object.
JITTER = 0.2
# Every eighth frame of a recorded scan is kept from the methods and only judged.
HELD_OUT_EVERY = 8
# Of a recorded scan only the well lit part is held against the reference, which knows no better elsewhere.
RECORDED_SHARE = 0.1


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
        Defocus and astigmatism of the told probe relative to the true one: root mean square over the pupil.
    refine_probe : bool
        Whether engines refine the told probe.
    count_scale : float
        Factor on counts and on the told probe's photons: a detector that counts in other units.
    sample : str
        A kind of `objects.make_sample`.
    frame_px : int
        Pixels along a side of the frames, N.
    field : float
        Side of the square of probe centres, in widths of the frame's window. It is the same for all overlaps, so
        less overlap means fewer frames of the same object.

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

    def __post_init__(self) -> None:
        for name in ("dose", "count_scale", "field"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a finite positive number; it is {getattr(self, name)!r}")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be at least 0 and below 1; it is {self.overlap!r}")
        if self.sample not in SAMPLES:
            raise ConfigError(f"a sample is one of {', '.join(SAMPLES)}; got {self.sample!r}")

    @property
    def geometry(self) -> Geometry:
        """A hard X-ray instrument; the frame's window on the sample is 1.8 µm whatever `frame_px` is."""
        return Geometry(8000.0, 2.0, 172e-6, self.frame_px)


def photons(dose: float) -> str:
    """A dose as a label: 1e5, 1.6e6."""
    return f"{dose:.2g}".replace("e+0", "e")


def simulate(case: Case, seed: int, device: torch.device) -> Problem:
    """Make a scan: sample, positions off their grid, Poisson counts.

    Sample, positions and noise depend on the seed alone, so that cases that differ in what the methods are
    told differ in nothing else. Noise is drawn on the CPU: every device gets the same counts.
    """
    rng = np.random.default_rng(seed)
    geometry = case.geometry
    pixel_m, side = geometry.pixel_m, case.field * geometry.pixel_m * case.frame_px
    canvas = Canvas.covering(np.zeros(2), np.full(2, side), pixel_m, case.frame_px, case.frame_px // 8)
    probe = _probe(geometry, case.dose)
    positions_m = grid_positions(side, (1 - case.overlap) * width_px(probe) * pixel_m, rng)
    corner, shift = canvas.place(positions_m)
    truth = make_sample(case.sample, canvas.shape, seed)
    blank = torch.zeros(()).expand(len(corner), case.frame_px, case.frame_px)
    data = Diffraction(blank, torch.from_numpy(corner), torch.from_numpy(shift).float(), (1, *canvas.shape))
    counts = case.count_scale * _measured(torch.from_numpy(truth)[None], probe[None], data, seed)
    told = probe
    if case.probe_error_rad:
        told = _probe(geometry, case.dose, _aberrations(case.probe_error_rad, rng))
    return Problem(
        Diffraction(counts.to(device), data.corner.to(device), data.shift_px.to(device), data.canvas_shape),
        scaled_to(told, case.dose * case.count_scale)[None].to(device),
        case.refine_probe,
        truth,
        illuminated(light_of(probe[None], data)),
        canvas.origin_m,
        pixel_m,
    )


def scan_of(case: Case, seed: int) -> Scan:
    """The scan of `simulate` as other programs can read it, with the probe that methods are told."""
    problem = simulate(case, seed, torch.device("cpu"))
    centre_px = problem.data.corner + case.frame_px // 2 + problem.data.shift_px
    return Scan(
        to_centre(problem.data.counts).numpy(),
        np.asarray(problem.origin_m) + centre_px.double().numpy() * problem.pixel_m,
        case.geometry,
        problem.probe[0].numpy(),
        name=f"{case.sample}, {photons(case.dose)} photons, seed {seed}",
        source={"propagation": "far field", "simulated": asdict(case), "seed": seed},
    )


def grid_positions(side_m: float, step_m: float, rng: np.random.Generator) -> FloatArray:
    """Positions (n, 2) of a square grid in the middle of a field, each off by up to `JITTER` steps, metres."""
    number = math.floor(side_m / step_m + 1e-9) + 1
    line = (side_m - (number - 1) * step_m) / 2 + step_m * np.arange(number)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.asarray(grid + JITTER * step_m * rng.uniform(-1, 1, grid.shape))


def _probe(geometry: Geometry, photons: float, aberrations: Mapping[int, float] | None = None) -> Tensor:
    return zone_plate_probe(geometry, ZONE_PLATE, defocus_m=DEFOCUS_M, aberrations=aberrations, photons=photons)


def _aberrations(rms_rad: float, rng: np.random.Generator) -> dict[int, float]:
    """Defocus and both astigmatisms (Noll 4, 5, 6) in a random mixture of a given strength."""
    mixture = rng.standard_normal(3)
    mixture *= rms_rad / np.linalg.norm(mixture)
    return dict(zip((4, 5, 6), mixture.tolist(), strict=True))


def _measured(sample: Tensor, probe: Tensor, data: Diffraction, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rates = (part.rate(part.probes(probe), part.patches(sample)) for part in data.chunks(frames_at_once(probe)))
    return torch.cat([torch.poisson(rate, generator=generator) for rate in rates])


def siemens_star(folder: Path, device: torch.device) -> Problem:
    """The recorded Siemens star of the Velociprobe: far field, one mode known, three to be found."""
    scan = read_scan(folder / "canonical.npz")
    reference = read_reference(folder / "reference.npz", scan)
    return recorded(scan, reference.object, reference.origin_m, 3, device)


def p25_near_field(folder: Path, device: torch.device) -> Problem:
    """The recorded near field of P25, whose probe is not known."""
    scan = read_cxi(folder / "PETRAIII_P25_Near_Field_Ptycho.cxi", focus_to_sample_m=3.65e-3)
    with np.load(folder / "reference.npz") as file:
        reference = file["obj"]
    # The reference's canvas begins 200 pixels before the first frame's.
    first = scan.positions_m.min(axis=0) - (scan.geometry.frame_px // 2 + 200) * scan.geometry.pixel_m
    return recorded(scan, reference, (float(first[0]), float(first[1])), 1, device)


# Recorded scans by name: their folder and how it is read.
RECORDED: Mapping[str, tuple[str, Callable[[Path, torch.device], Problem]]] = {
    "Siemens star": ("siemens_velociprobe", siemens_star),
    "P25, near field": ("petra_p25_nearfield", p25_near_field),
}


def recorded(
    scan: Scan, reference: ComplexArray, origin_m: tuple[float, float], modes: int, device: torch.device
) -> Problem:
    """A recorded scan without its held-out frames.

    Parameters
    ----------
    scan : Scan
    reference : ndarray, shape (Y', X'), complex
        Another reconstruction, on the scan's pixel.
    origin_m : tuple of float
        Sample position (y, x) of its pixel [0, 0], metres.
    modes : int
        Probe modes.
    device : torch.device
    """
    geometry, positions_m = scan.geometry, scan.positions_m
    pixel_m, size = geometry.pixel_m, geometry.frame_px
    canvas = Canvas.covering(positions_m.min(axis=0), positions_m.max(axis=0), pixel_m, size, 8)
    counts = np.asarray(scan.counts, np.float32)
    valid = valid_pixels(counts) if scan.mask is None else valid_pixels(counts) & scan.mask
    probe = torch.from_numpy(with_modes(first_guess(scan, Config()), modes, size))
    # Nearly the photons of a frame through vacuum, which set the probe's scale.
    probe = scaled_to(probe, float(np.quantile((counts * valid).sum(axis=(1, 2)), 0.9)))[None].to(device)
    propagator = propagator_of(geometry, device)
    corner, shift = canvas.place(positions_m)
    data = Diffraction(
        propagator.to_working(torch.from_numpy(counts)).to(device),
        torch.from_numpy(corner).to(device),
        torch.from_numpy(shift).to(device, torch.float32),
        (1, *canvas.shape),
        mask=propagator.to_working(torch.from_numpy(valid)).to(device),
        propagator=propagator,
    )
    lit = illuminated(light_of(probe, data), RECORDED_SHARE)
    first = np.rint((np.array(canvas.origin_m) - origin_m) / pixel_m).astype(np.int64)
    held_out = torch.arange(len(scan), device=device) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    return Problem(
        data[~held_out], probe, True, _window(reference, first, canvas.shape), lit, canvas.origin_m, pixel_m,
        data[held_out], geometry.propagation,
    )  # fmt: skip


def _window(image: ComplexArray, first: npt.NDArray[np.int64], shape: tuple[int, int]) -> ComplexArray:
    """The part of an image under a canvas; beyond its border the border goes on."""
    sides = zip(first, shape, image.shape, strict=True)
    rows, columns = (np.clip(np.arange(start, start + n), 0, side - 1) for start, n, side in sides)
    return np.asarray(image[np.ix_(rows, columns)])
