"""Simulated scans that predicted errors are calibrated on: of objects and probes that training does not draw.

``bench trust`` tests on others again. Objects here are winding bands, crystals, particles, pavements and hills, probes
are those of segmented apertures, Gaussian beams, and beams behind a diffuser; training draws textures, leaves and
gratings under round and square lenses, and the test has stars, photographs, circuits and cells under zone plates and
pairs of mirrors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.physics.forward import extract, fft2c, frame_probes, ifft2c, rate
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.patterns import facets, labyrinth, particles
from bluesky_cdi.physics.probes import scaled_to, width_px
from bluesky_cdi.protocols import ComplexArray, FloatArray, Frame

# Of a scene: photons a frame, linear overlap, and the phase that an object turns by at most.
PHOTONS, OVERLAP, PHASE_RAD = (2e3, 5e6), (0.45, 0.85), (0.1, 2.5)
# Absorption of the amplitude's logarithm over the phase.
ABSORPTION = (0.0, 0.3)
# Width of the square of probe centres, over a frame's.
FIELD = (0.6, 0.9)
# Most frames along a side: more cost time and tell little more.
MOST_FRAMES = 10
# Shares of the scenes with a wrong probe and wrong positions; how wrong: root mean square over the pupil, and pixels.
WRONG_PROBES, WRONG_POSITIONS = 0.1, 0.05
PROBE_ERROR_RAD, POSITION_ERROR_PX = (0.1, 0.8), (0.2, 1.2)
JITTER = 0.2
PIXEL_M = 2.8e-8


@dataclass(frozen=True, eq=False)
class Scene:
    """A simulated scan with its truth.

    Attributes
    ----------
    grid : ObjectGrid
    truth : ndarray, shape (Y, X), complex64
    frames : list of Frame
        At the positions that are assumed.
    probe : ndarray, shape (1, N, N), complex64
        The assumed one.
    """

    grid: ObjectGrid
    truth: ComplexArray
    frames: list[Frame]
    probe: ComplexArray


def draw_scene(seed: int, frame_px: int = 64) -> Scene:
    """Draw a scan.

    Parameters
    ----------
    seed : int
        Of all that is random in it.
    frame_px : int
        Pixels along a side of the frames.

    Returns
    -------
    Scene
    """
    rng = np.random.default_rng([20_011, seed])
    photons = _log_uniform(rng, PHOTONS)
    field = PROBES[rng.choice(list(PROBES), p=PROBE_SHARES)](rng, frame_px)
    probe = scaled_to(torch.from_numpy(field)[None], photons)
    side_px = rng.uniform(*FIELD) * frame_px
    centres_px = _centres(rng, side_px, (1 - rng.uniform(*OVERLAP)) * width_px(probe))
    grid = ObjectGrid.covering(np.zeros(2), np.full(2, side_px * PIXEL_M), PIXEL_M, frame_px)
    truth = _object(rng, grid.shape)
    corner, shift = grid.place(centres_px * PIXEL_M)
    counts = _counts(probe, truth, corner, shift, rng)
    fault = rng.random()
    assumed = _misjudged(probe, _log_uniform(rng, PROBE_ERROR_RAD), rng) if fault < WRONG_PROBES else probe
    off_px = _log_uniform(rng, POSITION_ERROR_PX) if WRONG_PROBES <= fault < WRONG_PROBES + WRONG_POSITIONS else 0.0
    stated_m = (centres_px + off_px * rng.standard_normal(centres_px.shape)).clip(0, side_px) * PIXEL_M
    frames = [Frame(k + 1, position, each) for k, (position, each) in enumerate(zip(stated_m, counts, strict=True))]
    return Scene(grid, truth, frames, assumed.numpy())


def gaussian_beam(rng: np.random.Generator, frame_px: int) -> ComplexArray:
    """Draw a Gaussian beam with a curved front, (N, N), complex64."""
    y, x = _axes(frame_px)
    width, other = rng.uniform(0.05, 0.13, 2) * frame_px
    curvature = rng.uniform(-0.5, 0.5) / np.sqrt(width * other)
    front = curvature * (y**2 + x**2) / np.sqrt(width * other)
    return np.asarray(np.exp(-((y / width) ** 2) / 2 - (x / other) ** 2 / 2 + 1j * front), np.complex64)


def diffused_beam(rng: np.random.Generator, frame_px: int) -> ComplexArray:
    """Draw the focus of a soft aperture behind a diffuser, (N, N), complex64."""
    y, x = _axes(frame_px)
    aperture = rng.uniform(0.12, 0.3) * frame_px
    soft = np.exp(-(((y**2 + x**2) / aperture**2) ** 3))
    spread = rng.uniform(0.03, 0.09)
    noise = np.fft.fft2(rng.standard_normal((frame_px, frame_px)))
    smooth = np.fft.ifft2(noise * np.fft.ifftshift(np.exp(-(y**2 + x**2) / (spread * frame_px) ** 2))).real
    phase = rng.uniform(0.8, 2.0) * smooth / smooth.std()
    return np.asarray(ifft2c(torch.from_numpy(soft * np.exp(1j * phase))).numpy(), np.complex64)


def pavement(shape: tuple[int, int], rng: np.random.Generator, stone_px: float) -> npt.NDArray[np.float64]:
    """Lay stones, each of one thickness: the pixels that are nearest to each of some random points."""
    from scipy.spatial import KDTree

    number = max(2, round(shape[0] * shape[1] / stone_px**2))
    pixels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 2)
    _, stone = KDTree(rng.uniform(0, 1, (number, 2)) * shape).query(pixels)
    return np.asarray(rng.uniform(0, 1, number)[stone].reshape(shape))


def hills(shape: tuple[int, int], rng: np.random.Generator, width_px: float) -> npt.NDArray[np.float64]:
    """Draw a smooth landscape whose hills are some pixels wide, from 0 to 1."""
    from scipy.ndimage import gaussian_filter

    ground = gaussian_filter(rng.standard_normal(shape), width_px)
    return np.asarray((ground - ground.min()) / np.ptp(ground))


def segmented_beam(rng: np.random.Generator, frame_px: int) -> ComplexArray:
    """Draw the defocused beam of an aperture with 3 to 6 corners and two or three struts, (N, N), complex64."""
    y, x = _axes(frame_px)
    aperture, corners, turn = rng.uniform(0.14, 0.34) * frame_px, rng.integers(3, 7), rng.uniform(0, 2 * np.pi)
    angle, radius = np.arctan2(y, x) - turn, np.hypot(y, x)
    sector = 2 * np.pi / corners
    depth = aperture - radius * np.cos((angle + sector / 2) % sector - sector / 2)
    open_part = np.clip(depth + 0.5, 0, 1)
    for strut in rng.uniform(0, np.pi, rng.integers(2, 4)):
        open_part = open_part * np.clip(np.abs(y * np.cos(strut) - x * np.sin(strut)) - 0.03 * aperture, 0, 1)
    spot, spherical = rng.uniform(0.05, 0.22) * rng.choice([-1, 1]), 0.8 * rng.standard_normal()
    r = radius / aperture
    phase = np.pi * spot * aperture * r**2 + spherical * (6 * r**4 - 6 * r**2)
    return np.asarray(ifft2c(torch.from_numpy(open_part * np.exp(1j * phase))).numpy(), np.complex64)


PROBES: Mapping[str, Callable[[np.random.Generator, int], ComplexArray]]
PROBES = {"segmented": segmented_beam, "gaussian": gaussian_beam, "diffuser": diffused_beam}
# How often each is drawn: most instruments have lenses or mirrors.
PROBE_SHARES = (0.6, 0.2, 0.2)
OBJECTS: Mapping[str, Callable[[tuple[int, int], np.random.Generator], npt.NDArray[np.float64]]]
OBJECTS = {
    "bands": lambda shape, rng: labyrinth(shape, rng, period_px=rng.uniform(8, 24)),
    "crystals": lambda shape, rng: facets(shape, rng, 40, (4.0, rng.uniform(10, 24))),
    "particles": lambda shape, rng: particles(shape, rng, 40, (2.0, rng.uniform(5, 12))),
    "pavement": lambda shape, rng: pavement(shape, rng, rng.uniform(6, 25)),
    "hills": lambda shape, rng: hills(shape, rng, rng.uniform(3, 12)),
}


def _object(rng: np.random.Generator, shape: tuple[int, int]) -> ComplexArray:
    thickness = OBJECTS[list(OBJECTS)[rng.integers(len(OBJECTS))]](shape, rng)
    return np.asarray(np.exp(-_log_uniform(rng, PHASE_RAD) * (rng.uniform(*ABSORPTION) + 1j) * thickness), np.complex64)


def _centres(rng: np.random.Generator, side_px: float, step_px: float) -> FloatArray:
    """Lay probe centres on a grid in the middle of a square, each off by up to a share of the step: (n, 2)."""
    number = min(math.floor(side_px / step_px) + 1, MOST_FRAMES)
    line = (side_px - (number - 1) * step_px) / 2 + step_px * np.arange(number)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.asarray((grid + JITTER * step_px * rng.uniform(-1, 1, grid.shape)).clip(0, side_px))


def _counts(
    probe: torch.Tensor, truth: ComplexArray, corner: FloatArray, shift: FloatArray, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    patches = extract(torch.from_numpy(truth)[None], torch.from_numpy(corner), probe.shape[-1])
    probes = frame_probes(probe[None], torch.from_numpy(shift).float())
    return rng.poisson(rate(probes, patches).numpy()).astype(np.float32)


def _misjudged(probe: torch.Tensor, rms_rad: float, rng: np.random.Generator) -> torch.Tensor:
    """Give a probe a mixture of defocus and astigmatism, `rms_rad` over its pupil."""
    y, x = _axes(probe.shape[-1])
    pupil = fft2c(probe[0])
    light = pupil.abs().square().numpy().astype(np.float64)
    light /= light.sum()
    extent = math.sqrt(float((light * (y**2 + x**2)).sum()))
    terms = np.stack([y**2 + x**2, y**2 - x**2, 2 * y * x]) / extent**2
    phase = np.tensordot(rng.standard_normal(3), terms.clip(-6, 6), axes=1)
    phase -= (light * phase).sum()
    phase *= rms_rad / math.sqrt(float((light * phase**2).sum()))
    bent: torch.Tensor = ifft2c(pupil * torch.from_numpy(np.exp(1j * phase).astype(np.complex64)))[None]
    return bent


def _axes(size: int) -> tuple[FloatArray, FloatArray]:
    line = np.arange(size) - size // 2
    return line[:, None].astype(np.float64), line[None, :].astype(np.float64)


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
