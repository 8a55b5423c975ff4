"""Scans of the simulated beamline without its devices: frames, a reconstructor for them, and the error to the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, FloatArray, Frame, Reconstructor, RunInfo, ScanArea
from bluesky_cdi.reconstruction.build import build_agent, build_reconstructor
from bluesky_cdi.reconstruction.points import points_of
from bluesky_cdi.sim_devices import SimulatedSource

# What is known of a frame, as an agent ingests it.
Point = Mapping[str, Any]


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


@dataclass(frozen=True, eq=False)
class Step:
    """A decision of an adaptive scan, and what is known after its frames.

    Attributes
    ----------
    frames : int
        Measured by then.
    estimate : Estimate or None
        None where there is no image yet.
    reason : str
        Why the scan stopped; empty while it goes on.
    """

    frames: int
    estimate: Estimate | None
    reason: str = ""


def adaptive_steps(
    config: Config, source: SimulatedSource, budget: int, tell: Callable[[Point], Point] = lambda point: point
) -> Iterator[Step]:
    """Scan until the agent stops, each decision with all frames in the image.

    Parameters
    ----------
    config : Config
        Of beamline, agent and reconstruction.
    source : SimulatedSource
        Gives the frames.
    budget : int
        Most of them.
    tell : callable, optional
        What the agent is told of a frame, of what is known of it.

    Yields
    ------
    Step
        One after each batch, and a last one with why the scan stopped.
    """
    half, reconstructor = half_window_m(config), reconstructor_of(config)
    low, high = ((float(-half[0]), float(-half[1])), (float(half[0]), float(half[1])))
    agent = build_agent(ScanArea(low, high, config.scan.step_um * 1e-6, budget), config)
    rng = np.random.default_rng(config.simulation.seed + 1)
    step = Step(0, None)
    try:
        while len((proposal := agent.propose(config.scan.batch)).positions_m):
            number = len(proposal.positions_m)
            flux = 1 + config.simulation.flux_fluctuation * rng.standard_normal(number)
            reconstructor.add(measured_frames(config, source, proposal.positions_m, flux, step.frames + 1))
            step = Step(step.frames + number, reconstructor.step(math.inf) or step.estimate)
            if step.estimate is not None:
                agent.ingest([tell(point) for point in points_of(step.estimate)])
            yield step
    finally:
        reconstructor.close()
    yield replace(step, reason=proposal.reason)


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
