"""Network, network with refinement, and rPIE alone, on the simulated beamline at three doses.

    python benchmarks/reconstruction_by_dose.py [--frames 200] [--json FILE]

Random positions over the default window, sample `star` (a kind of object that the training stream
does not draw), all faults of the simulated devices on, the probe guess wrong by the configured
defocus error. Each row is one seed's complex NRMSE to the truth, with its seconds on this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi import metrics
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.live.build import build_reconstructor
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, Frame, RunInfo
from bluesky_cdi.sim_devices import SimulatedSource

METHODS: dict[str, dict[str, Any]] = {
    "network alone": {"name": "pinn", "refine_iterations": 0},
    "network, refined 3 times": {"name": "pinn", "refine_iterations": 3},
    "network, refined 3 times a step, to the end": {"name": "pinn", "refine_iterations": 3, "final_steps": 20},
    "5 rPIE from vacuum": {"name": "rpie", "refine_iterations": 5},
    "50 rPIE from vacuum": {"name": "rpie", "refine_iterations": 50},
    "100 LSQ-ML from vacuum": {"name": "lsqml", "refine_iterations": 100},
}


def frames_of(config: Config, number: int) -> tuple[list[Frame], SimulatedSource]:
    """Measure `number` frames at random positions of the window."""
    rng = np.random.default_rng(config.simulation.seed + 1)
    source = SimulatedSource(config)
    half = np.array(config.scan.extent_um) * 1e-6 / 2
    positions = rng.uniform(-half, half, (number, 2))
    flux = 1 + config.simulation.beam_fluctuation * rng.standard_normal(number)
    exposure = config.scan.exposure_s
    frames = [
        Frame(i + 1, p, source.expose((float(p[0]), float(p[1])), exposure, float(f)), exposure, float(f))
        for i, (p, f) in enumerate(zip(positions, flux, strict=True))
    ]
    return frames, source


def nrmse(estimate: Estimate, source: SimulatedSource) -> float:
    """Complex NRMSE to the simulation's truth, ambiguities removed."""
    truth = source.truth
    there = metrics.crop_to(truth.object, truth.origin_m, estimate.origin_m, estimate.object.shape, estimate.pixel_m)
    return metrics.compare(estimate.object, there, estimate.coverage, estimate.pixel_m)["complex_nrmse"]


def run(method: dict[str, Any], photons: float, seed: int, number: int) -> dict[str, float]:
    """One method on one simulated scan."""
    config = load_config(overrides={"simulation": {"photons": photons, "seed": seed}, "reconstructor": method})
    frames, source = frames_of(config, number)
    half = (np.array(config.scan.extent_um) * 1e-6 / 2).tolist()
    geometry = Geometry(**config.geometry.model_dump()).as_metadata()
    metadata = {"geometry": geometry, "window_m": [[-half[0], -half[1]], half]}
    info = RunInfo("benchmark", 1, metadata, frames[0].counts.shape)
    reconstructor = build_reconstructor(info, config)
    reconstructor.add(frames)
    started = time.perf_counter()
    estimate = reconstructor.step(1e9)
    for _ in range(method.get("final_steps", 1) - 1):
        estimate = reconstructor.step(1e9) or estimate
    if estimate is None:
        raise RuntimeError("no estimate from frames")
    return {"nrmse": nrmse(estimate, source), "seconds": time.perf_counter() - started}


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    doses = (1e4, 1e5, 1e6)
    rows = {
        name: {f"{dose:.0e}": [run(method, dose, seed, args.frames) for seed in range(args.seeds)] for dose in doses}
        for name, method in METHODS.items()
    }
    print(f"complex NRMSE, median of {args.seeds} seeds, {args.frames} frames of 64x64 (seconds, one CPU thread)")
    print(f"{'':36}" + "".join(f"{dose:>16.0e}" for dose in doses))
    for name, row in rows.items():
        cells = [[np.median([r[key] for r in runs]) for key in ("nrmse", "seconds")] for runs in row.values()]
        print(f"{name:36}" + "".join(f"{error:>9.3f} ({seconds:4.1f})" for error, seconds in cells))
    if args.json:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        record = {
            "rows": rows,
            "frames": args.frames,
            "machine": platform.processor() or platform.machine(),
            "commit": head.stdout.strip(),
        }
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
