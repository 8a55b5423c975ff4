"""What a step of the online reconstructor costs as a scan grows, region by region and on the whole canvas.

    python benchmarks/incremental_cost.py [--side 40] [--window 384] [--json FILE]

A raster of 64x64 frames of a simulated sample, measured row by row, comes in batches; after each the
network reconstructs. Both ways see the same frames. The true probe is the first guess's plus the configured
defocus error, and is refined. After the last frame come the worker's further steps.
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
from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.live.build import build_reconstructor
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, Frame, RunInfo
from bluesky_cdi.sim_devices import SimulatedSource


def config_of(side: int, step_px: int, window_px: int | None) -> Config:
    """A square raster of `side` by `side` frames, `step_px` pixels apart."""
    defaults = load_config()
    geometry = Geometry(**defaults.geometry.model_dump())
    extent_um = (side - 1) * step_px * geometry.pixel_m * 1e6
    return load_config(
        overrides={
            "scan": {"extent_um": [extent_um] * 2, "step_um": step_px * geometry.pixel_m * 1e6, "budget": side**2},
            "simulation": {"sample": "natural"},
            "reconstructor": {"window_px": window_px},
        }
    )


def frames_of(config: Config, source: SimulatedSource) -> list[Frame]:
    """The raster's frames in the order in which they are measured."""
    half = np.array(config.scan.extent_um) * 1e-6 / 2
    positions = raster(-half, half, config.scan.step_um * 1e-6)
    return [
        Frame(i + 1, p, source.expose((float(p[0]), float(p[1])), config.scan.exposure_s, 1.0))
        for i, p in enumerate(positions)
    ]


def nrmse(estimate: Estimate, source: SimulatedSource) -> float:
    """Complex NRMSE to the simulation's truth, ambiguities removed."""
    truth = source.truth
    there = metrics.crop_to(truth.object, truth.origin_m, estimate.origin_m, estimate.object.shape, estimate.pixel_m)
    return metrics.compare(estimate.object, there, estimate.coverage, estimate.pixel_m)["complex_nrmse"]


def run(config: Config, frames: list[Frame], source: SimulatedSource, batch: int) -> dict[str, Any]:
    """Seconds of each step against the frames so far, and the errors of the last images."""
    half = (np.array(config.scan.extent_um) * 1e-6 / 2).tolist()
    metadata = {
        "geometry": Geometry(**config.geometry.model_dump()).as_metadata(),
        "window_m": [[-h for h in half], half],
    }
    reconstructor = build_reconstructor(RunInfo("benchmark", 1, metadata, frames[0].counts.shape), config)
    steps, estimate = [], None
    for first in range(0, len(frames), batch):
        started = time.perf_counter()
        reconstructor.add(frames[first : first + batch])
        estimate = reconstructor.step(1e9) or estimate
        steps.append((min(first + batch, len(frames)), time.perf_counter() - started))
    if estimate is None:
        raise RuntimeError("no estimate from frames")
    measured, started = estimate, time.perf_counter()
    while (later := reconstructor.step(1e9)) is not None and time.perf_counter() - started < 60:
        estimate = later
    return {
        "canvas": list(estimate.object.shape),
        "steps": steps,
        "nrmse_when_measured": nrmse(measured, source),
        "nrmse": nrmse(estimate, source),
        "final_seconds": time.perf_counter() - started,
    }


def table(rows: dict[str, dict[str, Any]], lines: int = 10) -> str:
    """The seconds at some numbers of frames, then totals and errors."""
    names = list(rows)
    steps = [rows[name]["steps"] for name in names]
    shown = np.unique(np.linspace(0, len(steps[0]) - 1, lines).round().astype(int))
    out = [f"{'frames so far':>28}" + "".join(f"{name:>16}" for name in names)]
    out += [f"{steps[0][k][0]:>28}" + "".join(f"{s[k][1]:>16.2f}" for s in steps) for k in shown]
    cells = {
        "all steps, s": [f"{sum(seconds for _, seconds in s):.1f}" for s in steps],
        "NRMSE after the last frame": [f"{rows[name]['nrmse_when_measured']:.3f}" for name in names],
        "further steps, s": [f"{rows[name]['final_seconds']:.1f}" for name in names],
        "NRMSE at the end": [f"{rows[name]['nrmse']:.3f}" for name in names],
    }
    out += [f"{title:>28}" + "".join(f"{value:>16}" for value in values) for title, values in cells.items()]
    return "\n".join(out)


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40, help="frames along each side")
    parser.add_argument("--step", type=int, default=12, help="pixels from frame to frame")
    parser.add_argument("--window", type=int, default=384, help="reconstructor.window_px")
    parser.add_argument("--batch", type=int, default=32, help="frames added at a time")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"windows": args.window, "whole canvas": None}
    configs = {name: config_of(args.side, args.step, window) for name, window in ways.items()}
    source = SimulatedSource(configs["windows"])
    frames = frames_of(configs["windows"], source)
    rows = {name: run(config, frames, source, args.batch) for name, config in configs.items()}
    shape = rows["windows"]["canvas"]
    print(f"seconds of a step, {args.batch} frames of 64x64 added to it, one CPU thread")
    print(f"{len(frames)} frames on {shape[0]}x{shape[1]} pixels, windows of {args.window}")
    print(table(rows))
    if args.json:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        record = {
            "rows": rows,
            "frames": len(frames),
            "window_px": args.window,
            "machine": platform.processor() or platform.machine(),
            "commit": head.stdout.strip(),
        }
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
