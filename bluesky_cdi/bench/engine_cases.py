"""Scans on which iterative engines of several packages are compared, with the object that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bluesky_cdi.bench.exchange import Arrays, diffraction, place_on, recorded_arrays
from bluesky_cdi.bench.recorded import P25, STAR, RecordedScan, p25_near_field, siemens_star
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.protocols import ComplexArray, FloatArray

SIMULATED = ("star", "natural", "leaves", "lines", "circuit", "particles")
# Recorded scans by the names that the command line takes.
RECORDED: Mapping[str, Callable[[Path], RecordedScan]] = {
    "star_recorded": lambda data: siemens_star(data / STAR),
    "p25": lambda data: p25_near_field(data / P25),
}
# Frames computed at a time where a whole scan is simulated on a device.
CHUNK = 256


@dataclass(frozen=True, eq=False)
class EngineCase:
    """A scan to reconstruct, and what its object is held against.

    Attributes
    ----------
    name : str
    problem : dict
        Arrays of the scan, as `with_ptychi` describes them.
    reference : ndarray, shape (Y, X), complex
        The truth, or another reconstruction.
    recorded : bool
        Whether it was measured.
    """

    name: str
    problem: Arrays
    reference: ComplexArray
    recorded: bool = False


def recorded_case(name: str, data: Path) -> EngineCase:
    """Read a recorded scan.

    Parameters
    ----------
    name : str
        Of `RECORDED`.
    data : Path
        Folder of recorded scans.

    Returns
    -------
    EngineCase
    """
    recorded = RECORDED[name](data)
    return EngineCase(recorded.name, recorded_arrays(recorded), recorded.reference_on_grid, recorded=True)


def simulated_case(kind: str, frames: int = 169, photons: float = 1e5) -> EngineCase:
    """Simulate frames of 64x64 with two modes, a probe guess out of focus and positions a little wrong.

    Parameters
    ----------
    kind : str
        Of `objects.make_sample`.
    frames : int
        About how many; a square number.
    photons : float
        Of a frame through vacuum; noise is Poisson's.

    Returns
    -------
    EngineCase
    """
    rng = np.random.default_rng(11)
    geometry = Geometry(8000.0, 2.0, 172e-6, 64)
    steps = _square_grid(frames)
    positions_px = steps * 6.0 + rng.uniform(-1.5, 1.5, steps.shape)
    grid = _covering(positions_px, geometry)
    lens = {"numerical_aperture": 0.86e-3, "central_stop": 0.25, "modes": 2, "coherent_share": 0.9, "photons": photons}
    probe, guess = (focused_probe(geometry, defocus_m=d, **lens) for d in (0.265e-3, 0.25e-3))  # type: ignore[arg-type]  # values of several types
    truth = make_sample(kind, grid.shape, seed=5)
    problem = {
        **place_on(grid, positions_px + rng.normal(0, 0.1, positions_px.shape)),
        "probe": guess.numpy(),
        "counts": np.zeros((len(steps), 64, 64), np.float32),
    }
    data = diffraction(problem, "cpu", positions_px)
    rate = data.rate(data.probes(probe[None]), data.patches(torch.from_numpy(truth)[None]))
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(7))
    problem["counts"] = data.propagator.to_detector(counts).numpy()
    return EngineCase(f"simulated {kind}", problem, truth)


def speed_case(size: int, frames: int, device: torch.device) -> EngineCase:
    """Simulate many frames of one size for timing: a tissue-like sample, three modes, 5 % of a frame apart.

    Parameters
    ----------
    size : int
        Pixels along a side of the frames.
    frames : int
        About how many; a square number.
    device : torch.device
        Device that simulates, whose noise depends on its kind.

    Returns
    -------
    EngineCase
    """
    rng = np.random.default_rng(3)
    geometry = Geometry(8000.0, 2.0, 75e-6, size)
    steps = _square_grid(frames)
    positions_px = steps * 0.05 * size + rng.uniform(-1, 1, steps.shape)
    grid = _covering(positions_px, geometry)
    aperture = 0.4 * 75e-6 * size / 2 / 2.0
    probe = focused_probe(geometry, numerical_aperture=aperture, modes=3, coherent_share=0.9, photons=1e6)
    truth = make_sample("cells", grid.shape, seed=5)
    problem = {
        **place_on(grid, positions_px),
        "probe": probe.numpy(),
        "counts": np.zeros((len(steps), size, size), np.float32),
    }
    data = diffraction(problem, device)
    sample, light = torch.from_numpy(truth)[None].to(device), probe[None].to(device)
    torch.manual_seed(7)
    for first, part in zip(range(0, len(steps), CHUNK), data.chunks(CHUNK), strict=True):
        rate = part.rate(part.probes(light), part.patches(sample))
        problem["counts"][first : first + CHUNK] = part.propagator.to_detector(torch.poisson(rate)).cpu().numpy()
    return EngineCase(f"{len(steps)} frames of {size}x{size}", problem, truth)


def cases_of(names: tuple[str, ...] | list[str], data: Path | None) -> Iterator[EngineCase]:
    """Go through cases by name.

    Parameters
    ----------
    names : sequence of str
        Of `RECORDED` and `SIMULATED`.
    data : Path, optional
        Folder of recorded scans; without it they are left out.
    """
    for name in names:
        if name not in RECORDED:
            yield simulated_case(name)
        elif data is not None:
            yield recorded_case(name, data)


def _square_grid(frames: int) -> FloatArray:
    side = round(frames**0.5)
    return np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)


def _covering(positions_px: FloatArray, geometry: Geometry) -> ObjectGrid:
    pixel_m = geometry.pixel_m
    low_m, high_m = positions_px.min(axis=0) * pixel_m, positions_px.max(axis=0) * pixel_m
    return ObjectGrid.covering(low_m, high_m, pixel_m, geometry.frame_px, 8)
