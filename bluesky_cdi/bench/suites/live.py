"""How good the live reconstructor is by dose: network alone, refined, and engines, on the simulated beamline.

Random positions over the default window, sample `star` (a kind of object that the training stream does not draw), all
faults of the simulated devices on, the probe guess wrong by the configured defocus error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.beamline import error_of, half_window_m, measured_frames, reconstructor_of
from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import FrameError
from bluesky_cdi.protocols import Frame
from bluesky_cdi.sim_devices import SimulatedSource

DOSES = (1e4, 1e5, 1e6)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "network alone": {"name": "pinn", "refine_iterations": 0},
    "network, refined 3 times": {"name": "pinn", "refine_iterations": 3},
    "network, refined 3 times a step, to the end": {"name": "pinn", "refine_iterations": 3, "final_steps": 20},
    "5 rPIE from vacuum": {"name": "rpie", "refine_iterations": 5},
    "50 rPIE from vacuum": {"name": "rpie", "refine_iterations": 50},
    "100 LSQ-ML from vacuum": {"name": "lsqml", "refine_iterations": 100},
}


def live(frames: int = 200, seeds: int = 3, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure all methods at all doses.

    Parameters
    ----------
    frames : int
        Frames of a scan.
    seeds : int
        Scans of each dose.
    on_progress : callable, optional
        Called with the name of each scan before it is reconstructed.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: for each method and dose the complex NRMSE and the seconds of each
        seed.
    """
    tell = on_progress or (lambda _: None)
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, method in METHODS.items():
        for dose in DOSES:
            tell(f"{name}, {dose:.0e} photons")
            found = [_run(method, dose, seed, frames) for seed in range(seeds)]
            rows.setdefault(name, {})[f"{dose:.0e}"] = found
    return record([torch.device("cpu")], {"frames": frames, "seeds": seeds}, rows=rows)


def _run(method: Mapping[str, Any], photons: float, seed: int, number: int) -> dict[str, float]:
    """Run one method on one simulated scan."""
    config = load_config(overrides={"simulation": {"photons": photons, "seed": seed}, "reconstructor": dict(method)})
    source = SimulatedSource(config)
    frames = _random_frames(config, source, number)
    reconstructor = reconstructor_of(config)
    reconstructor.add(frames)
    started = time.perf_counter()
    estimate = reconstructor.step(np.inf)
    for _ in range(method.get("final_steps", 1) - 1):
        estimate = reconstructor.step(np.inf) or estimate
    if estimate is None:
        raise FrameError(f"a scan needs at least one frame; {number} were measured")
    return {"complex_nrmse": error_of(estimate, source), "seconds": time.perf_counter() - started}


def _random_frames(config: Config, source: SimulatedSource, number: int) -> list[Frame]:
    rng = np.random.default_rng(config.simulation.seed + 1)
    half_m = half_window_m(config)
    positions_m = rng.uniform(-half_m, half_m, (number, 2))
    flux = 1 + config.simulation.flux_fluctuation * rng.standard_normal(number)
    return measured_frames(config, source, positions_m, flux)
