"""Frames computed from a sample, a probe, and the errors and bad pixels of real devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.config import Config, SimulationConfig
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.sim_devices._beam import relative_exposure
from bluesky_cdi.sim_devices._source import Counts

PixelMask = npt.NDArray[np.bool_]
# The stage may leave the window of the scan by this share of its extent, on each side.
TRAVEL_MARGIN = 0.1
# So many rates are computed at a time: their fields fill some megabytes.
BLOCK_RATES = 128
# Position errors beyond this many standard deviations don't happen in a simulation's lifetime.
LARGEST_ERROR_SIGMA = 8


@dataclass(frozen=True, eq=False)
class Truth:
    """True sample, probe and errors of a simulation, which its documents do not hold.

    Attributes
    ----------
    object : ndarray, shape (Y, X), complex64
        Transmission function; vacuum is 1.
    probe : ndarray, shape (modes, N, N), complex64
        Incoherent modes; the sum of ``abs(probe)**2`` is the mean photons of a frame.
    grid : ObjectGrid
        Where the object's pixels are.
    dead, hot : ndarray, shape (N, N), bool
        Pixels that always read 0, and those that always read saturation.
    positions_m : list of tuple of float
        True (y, x) of every exposure so far, metres.
    """

    object: ComplexArray
    probe: ComplexArray
    grid: ObjectGrid
    dead: PixelMask
    hot: PixelMask
    positions_m: list[tuple[float, float]] = field(default_factory=list)

    @property
    def origin_m(self) -> tuple[float, float]:
        """Sample position (y, x) of the object's pixel [0, 0], metres."""
        return self.grid.origin_m

    @property
    def pixel_m(self) -> float:
        """Sample pixel, metres."""
        return self.grid.pixel_m


class SimulatedSource:
    """Frames of a synthetic sample: a `FrameSource`.

    The expected counts follow the far-field model of `bluesky_cdi.physics.forward` at the true
    position, which is the read-back plus a normal error drawn for each exposure. Then come
    Poisson noise, saturation, and the dead and hot pixels. Everything is seeded: the same
    configuration and the same sequence of exposures give the same frames.

    Parameters
    ----------
    config : Config
        Its sections `geometry`, `probe`, `scan` and `simulation`.

    Attributes
    ----------
    truth : Truth

    Raises
    ------
    ConfigError
        If there are more bad pixels than pixels, or saturation exceeds 32 bits.
    GeometryError
        If the probe does not fit the geometry.
    """

    def __init__(self, config: Config) -> None:
        seeds = np.random.SeedSequence(config.simulation.seed).spawn(3)
        faults, error, noise = (np.random.default_rng(seed) for seed in seeds)
        self._simulation = config.simulation
        self._nominal_s = config.scan.exposure_s
        self._error_rng = error
        self._noise_rng = noise
        self._dtype = counts_dtype(config.simulation.saturation)
        self.truth = make_truth(config, faults)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(N, N)."""
        return self.truth.grid.frame_px, self.truth.grid.frame_px

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """uint16, or uint32 where saturation needs it."""
        return self._dtype

    def expose(self, position_m: tuple[float, float], exposure_s: float, flux: float) -> Counts:
        """Take one frame, at the position plus a normal error.

        Parameters
        ----------
        position_m : tuple of float
            Read-back of the stage (y, x), metres.
        exposure_s : float
            Exposure, seconds.
        flux : float
            Incident flux relative to its mean; 0 behind a closed shutter.

        Returns
        -------
        ndarray, shape (N, N)
            Counts, zero frequency at ``[N // 2, N // 2]``.

        Raises
        ------
        GeometryError
            If the position is so far outside the scan's window that the sample is not defined there.
        """
        error = self._error_rng.normal(0.0, self._simulation.position_error_m, 2)
        true_m = (position_m[0] + float(error[0]), position_m[1] + float(error[1]))
        mean = self.expected(true_m, exposure_s, flux)
        self.truth.positions_m.append(true_m)
        return self._counted(mean)

    def expose_along(self, paths_m: FloatArray, exposure_s: float, flux: FloatArray) -> Counts:
        """Take frames during each of which the stage moves: their rates are means over the way.

        Parameters
        ----------
        paths_m : ndarray, shape (n, k, 2)
            Where the stage (y, x) is at k moments, evenly spread over each exposure, metres.
        exposure_s : float
            Exposure of each, seconds.
        flux : ndarray, shape (n,)
            Incident flux of each relative to its mean.

        Returns
        -------
        ndarray, shape (n, N, N)
            Counts, zero frequency at ``[N // 2, N // 2]``.

        Raises
        ------
        GeometryError
            If a position is so far outside the scan's window that the sample is not defined there.
        """
        n, k, _ = paths_m.shape
        true_m = paths_m + self._error_rng.normal(0.0, self._simulation.position_error_m, (n, 1, 2))
        share = relative_exposure(exposure_s, self._nominal_s)
        counts = np.empty((n, *self.frame_shape), self._dtype)
        block = max(1, BLOCK_RATES // k)
        for i in range(0, n, block):
            rates = self._intensities(true_m[i : i + block].reshape(-1, 2)).reshape(-1, k, *self.frame_shape)
            mean = rates.mean(axis=1) * flux[i : i + block, None, None] + self._simulation.background
            counts[i : i + block] = self._counted(mean * share)
        self.truth.positions_m.extend((float(y), float(x)) for y, x in true_m.mean(axis=1))
        return counts

    def expected(self, position_m: tuple[float, float], exposure_s: float, flux: float) -> FloatArray:
        """Compute mean counts at a true position, before saturation and bad pixels.

        Parameters
        ----------
        position_m : tuple of float
            True position (y, x), metres.
        exposure_s : float
            Exposure, seconds.
        flux : float
            Incident flux relative to its mean; 0 behind a closed shutter.

        Returns
        -------
        ndarray, shape (N, N), float64
            Photons.
        """
        share = relative_exposure(exposure_s, self._nominal_s)
        sample = self._intensities(np.array([position_m]))[0] * flux if flux > 0 else np.zeros(self.frame_shape)
        return (sample + self._simulation.background) * share

    def _counted(self, mean: FloatArray) -> Counts:
        """Draw counts (..., N, N) of their means, as the detector reads them."""
        counts = np.minimum(self._noise_rng.poisson(mean), self._simulation.saturation)
        counts[..., self.truth.dead] = 0
        counts[..., self.truth.hot] = self._simulation.saturation
        return counts.astype(self._dtype)

    def _intensities(self, positions_m: FloatArray) -> FloatArray:
        """Compute rates (n, N, N) at true positions (n, 2)."""
        import torch

        from bluesky_cdi.physics.forward import extract, frame_probes, rate

        grid = self.truth.grid
        corner, shift = grid.place(positions_m)
        probes = frame_probes(torch.from_numpy(self.truth.probe)[None], torch.from_numpy(shift))  # (n, M, N, N)
        sample = torch.from_numpy(self.truth.object)[None]  # (1, Y, X)
        patches = extract(sample, torch.from_numpy(corner), grid.frame_px)  # (n, N, N)
        return np.asarray(rate(probes, patches).numpy(), np.float64)


def counts_dtype(saturation: int) -> np.dtype[Any]:
    """Choose the smaller of uint16 and uint32 that holds the saturation.

    Parameters
    ----------
    saturation : int
        Largest count of a pixel.

    Raises
    ------
    ConfigError
        If neither does.
    """
    for kind in (np.uint16, np.uint32):
        if saturation <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise ConfigError(f"simulation.saturation must be at most {np.iinfo(np.uint32).max} (32 bits); it is {saturation}")


def travel_limits_um(config: Config) -> tuple[tuple[float, float], tuple[float, float]]:
    """Compute the limits of the simulated stage for y, then x: the scan's window and a margin, micrometres."""
    (cy, cx), (ey, ex) = config.scan.centre_um, config.scan.extent_um
    half_y, half_x = (0.5 + TRAVEL_MARGIN) * ey, (0.5 + TRAVEL_MARGIN) * ex
    return (cy - half_y, cy + half_y), (cx - half_x, cx + half_x)


def make_truth(config: Config, rng: np.random.Generator) -> Truth:
    """Make sample, probe and bad pixels of a simulation.

    Parameters
    ----------
    config : Config
        Its sections `geometry`, `probe`, `scan` and `simulation`.
    rng : Generator
        Chooses the bad pixels.

    Raises
    ------
    ConfigError
        If there are more bad pixels than pixels.
    """
    from bluesky_cdi.physics.objects import make_sample

    geometry = Geometry(**config.geometry.model_dump())
    limits_m = np.array(travel_limits_um(config)) * 1e-6  # (2, low and high)
    reach = LARGEST_ERROR_SIGMA * config.simulation.position_error_m
    grid = ObjectGrid.covering(limits_m[:, 0] - reach, limits_m[:, 1] + reach, geometry.pixel_m, geometry.frame_px)
    sample = make_sample(config.simulation.sample, grid.shape, config.simulation.seed)
    dead, hot = _bad_pixels(config.simulation, geometry.frame_px, rng)
    return Truth(sample, _true_probe(config, geometry), grid, dead, hot)


def _true_probe(config: Config, geometry: Geometry) -> ComplexArray:
    from bluesky_cdi.physics.probes import focused_probe

    probe = focused_probe(
        geometry,
        numerical_aperture=config.probe.numerical_aperture,
        central_stop=config.probe.central_stop,
        defocus_m=config.probe.defocus_m + config.simulation.defocus_error_m,
        # What the beam is does not depend on how many modes a reconstruction assumes.
        modes=1 if config.simulation.coherent_share == 1 else 2,
        coherent_share=config.simulation.coherent_share,
        photons=config.simulation.photons,
    )
    return np.asarray(probe.numpy())


def _bad_pixels(simulation: SimulationConfig, side: int, rng: np.random.Generator) -> tuple[PixelMask, PixelMask]:
    number = simulation.dead_pixels + simulation.hot_pixels
    if number > side * side:
        raise ConfigError(f"simulation.dead_pixels + hot_pixels is {number}; a frame has only {side * side} pixels")
    order = rng.permutation(side * side).reshape(side, side)
    dead = order < simulation.dead_pixels
    return dead, (order < number) & ~dead
