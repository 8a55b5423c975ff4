"""Scans of the simulated beamline without its devices: frames, a reconstructor for them, and the error to the truth."""

from __future__ import annotations

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, FloatArray, Frame, Reconstructor, RunInfo
from bluesky_cdi.reconstruction.build import build_reconstructor
from bluesky_cdi.sim_devices import SimulatedSource


def half_window_m(config: Config) -> FloatArray:
    """Return half the extent (y, x) of the scan's window around 0, metres."""
    return np.array(config.scan.extent_um) * 1e-6 / 2


def measured_frames(
    config: Config, source: SimulatedSource, positions_m: FloatArray, flux: FloatArray | None = None, first: int = 1
) -> list[Frame]:
    """Expose a frame at each position, in order.

    Parameters
    ----------
    config : Config
        Its exposure time.
    source : SimulatedSource
        Sample and faults; its state goes on.
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    flux : ndarray, shape (n,), optional
        Incident flux, which the frames state; 1 if absent.
    first : int
        Number of the first frame.

    Returns
    -------
    list of Frame
    """
    exposure = config.scan.exposure_s
    each = np.ones(len(positions_m)) if flux is None else flux
    return [
        Frame(first + i, p, source.expose((float(p[0]), float(p[1])), exposure, float(f)), exposure, float(f))
        for i, (p, f) in enumerate(zip(positions_m, each, strict=True))
    ]


def reconstructor_of(config: Config) -> Reconstructor:
    """Make the live reconstructor of a scan of the configured window."""
    half = half_window_m(config)
    geometry = Geometry(**config.geometry.model_dump())
    metadata = {"geometry": geometry.as_metadata(), "window_m": [(-half).tolist(), half.tolist()]}
    return build_reconstructor(RunInfo("benchmark", 1, metadata, (geometry.frame_px,) * 2), config)


def error_of(estimate: Estimate, source: SimulatedSource) -> float:
    """Compute the complex NRMSE to the simulation's truth.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.
    source : SimulatedSource
        The simulated beamline, which holds the true object.

    Returns
    -------
    float
        0: the truth but for scale, ramp and shift.
    """
    return compare_estimate(estimate, source.truth.object, source.truth.origin_m).numbers["complex_nrmse"]
