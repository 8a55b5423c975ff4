"""What a step of the online reconstructor costs as a scan grows, tile by tile and on the whole object.

A raster of 64x64 frames of a simulated sample, measured row by row, comes in batches; after each the network
reconstructs. Both ways see the same frames. The true probe is the first guess's plus the configured defocus error, and
is refined. After the last frame come the worker's further steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.bench.beamline import error_of, half_window_m, measured_frames, reconstructor_of
from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import FrameError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Frame
from bluesky_cdi.sim_devices import SimulatedSource

# Steps after the last frame end after this time at the latest.
LATER_S = 60.0


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    side : int
        Frames along each side of the raster.
    step_px : int
        Pixels from frame to frame.
    window_px : int
        `reconstructor.window_px` of the first of the two ways; the other has none.
    batch : int
        Frames added at a time.
    """

    side: int = 40
    step_px: int = 12
    window_px: int = 384
    batch: int = 32


def steps(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure both ways on the same frames.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with the name of each way before it begins.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: for each way the seconds of each step against the frames so far, and
        the complex NRMSE after the last frame and at the end.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    configs = {"windows": _config(options, options.window_px), "whole object": _config(options, None)}
    source = SimulatedSource(configs["windows"])
    frames = _raster_frames(configs["windows"], source)
    rows = {}
    for name, config in configs.items():
        tell(name)
        rows[name] = _run(config, frames, source, options.batch)
    return record([torch.device("cpu")], {**asdict(options), "frames": len(frames)}, rows=rows)


def _config(options: Options, window_px: int | None) -> Config:
    """Configure a square raster around 0."""
    step_um = options.step_px * Geometry(**load_config().geometry.model_dump()).pixel_m * 1e6
    return load_config(
        overrides={
            "scan": {
                "extent_um": [(options.side - 1) * step_um] * 2,
                "step_um": step_um,
                "budget": options.side**2,
            },
            "simulation": {"sample": "natural"},
            "reconstructor": {"window_px": window_px},
        }
    )


def _raster_frames(config: Config, source: SimulatedSource) -> list[Frame]:
    """Measure the raster's frames row by row."""
    half_m = half_window_m(config)
    return measured_frames(config, source, raster(-half_m, half_m, config.scan.step_um * 1e-6))


def _run(config: Config, frames: Sequence[Frame], source: SimulatedSource, batch: int) -> dict[str, Any]:
    reconstructor = reconstructor_of(config)
    costs, estimate = [], None
    for first in range(0, len(frames), batch):
        started = time.perf_counter()
        reconstructor.add(frames[first : first + batch])
        estimate = reconstructor.step(np.inf) or estimate
        costs.append((min(first + batch, len(frames)), time.perf_counter() - started))
    if estimate is None:
        raise FrameError("a scan needs at least one frame; the raster has none")
    measured, started = estimate, time.perf_counter()
    while (later := reconstructor.step(np.inf)) is not None and time.perf_counter() - started < LATER_S:
        estimate = later
    final_s = time.perf_counter() - started
    return {
        "object_px": list(estimate.object.shape),
        "steps": costs,
        "complex_nrmse_when_measured": error_of(measured, source),
        "complex_nrmse": error_of(estimate, source),
        "final_seconds": final_s,
    }
