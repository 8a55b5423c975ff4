"""Reconstruct with this package, for comparison: the problem and the result of `with_ptychi.py`.

    python benchmarks/with_ours.py problem.npz result.npz

`algorithm` may be any engine of the package, or `pinn`: the shipped network, which reads anew every ten epochs with
the probe refined so far, and LSQ-ML with its reading as the prior; `refine_positions` (bool, absent: False) refines the
positions from an eighth of the epochs on, and the result then holds them as `positions_px`. `batch_size` 0 leaves
the engine its own choice.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.lsqml import Lsqml
from bluesky_cdi.engines.ptychography import Schedule, Solution
from bluesky_cdi.live.refinement import prior_of, refiner
from bluesky_cdi.models.canvas import CanvasNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.offline import READ_EVERY
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum, Propagator


def read_problem(path: Path) -> dict[str, Any]:
    """Arrays of the problem; what has no dimension as a plain number or string."""
    with np.load(path) as file:
        return {key: value.item() if value.ndim == 0 else value for key, value in file.items()}


def propagator_for(problem: dict[str, Any], device: str) -> Propagator:
    """From the sample to the detector."""
    if problem.get("propagation", "far") == "far":
        return FAR_FIELD
    size = problem["counts"].shape[-1]
    return AngularSpectrum(
        size, problem["pixel_m"], problem["wavelength_m"], problem["distance_m"], device=device
    )


def diffraction(problem: dict[str, Any], device: str, positions_px: np.ndarray | None = None) -> Diffraction:
    """The frames on their canvas."""
    centre = (problem["positions_px"] if positions_px is None else positions_px) - np.asarray(
        problem.get("origin_px", (0.0, 0.0))
    )
    nearest = np.rint(centre)
    propagator = propagator_for(problem, device)
    counts = propagator.to_working(torch.from_numpy(np.asarray(problem["counts"], np.float32)).to(device))
    mask = torch.from_numpy(problem["mask"]) if "mask" in problem else None
    return Diffraction(
        counts,
        torch.from_numpy(nearest.astype(np.int64) - counts.shape[-1] // 2).to(device),
        torch.from_numpy(centre - nearest).to(device, torch.float32),
        (1, *(int(side) for side in problem["object_shape"])),
        mask=None if mask is None or bool(mask.all()) else propagator.to_working(mask).to(device),
        propagator=propagator,
    )


@torch.no_grad()
def read_anew(net: CanvasNet, solution: Solution) -> tuple[Solution, Lsqml]:
    """The network's reading if it explains the frames better, and the engine that has it as the prior."""
    reading = net(solution.probe, solution.data)[-1]
    reading = reading * torch.sgn((reading.conj() * solution.canvas).sum())
    engine = refiner(prior_of(net, reading, solution.probe, solution.data), len(solution.data), READ_EVERY)
    fresh = replace(solution, canvas=reading)
    return min(solution, fresh, key=lambda found: found.judged().mean_deviance), engine


def run(problem: dict[str, Any]) -> dict[str, Any]:
    """Reconstruct; the result's arrays."""
    torch.set_num_threads(problem["threads"])
    device = problem["device"]
    synchronise = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    started = time.perf_counter()
    data = diffraction(problem, device)
    probe = torch.from_numpy(problem["probe"].astype(np.complex64))[None].to(device)
    canvas = torch.ones(data.canvas_shape, dtype=torch.complex64, device=device)
    net = load_weights(device=device).canvas_net if problem["algorithm"] == "pinn" else None
    engine = None if net else make_engine(problem["algorithm"], problem["seed"], problem["batch_size"] or None)
    epochs = problem["epochs"]
    positions_from = epochs // 8 if problem.get("refine_positions") else -1
    schedule = Schedule(epochs, problem.get("probe_from_epoch", 0), positions_from)
    solution = Solution.start(canvas, probe, data)
    synchronise()
    setup, seconds, deviance = time.perf_counter() - started, [], []
    if net is not None and not epochs:
        solution, _ = read_anew(net, solution)
    for epoch in range(epochs):
        started = time.perf_counter()
        if net is not None and epoch % READ_EVERY == 0:
            if engine is not None:
                solution = engine.finish(solution, schedule.refine(epoch))
            solution, engine = read_anew(net, solution)
        solution = engine.epoch(solution, schedule.refine(epoch))
        synchronise()
        seconds.append(time.perf_counter() - started)
        deviance.append(solution.mean_deviance)
    if engine is not None:
        solution = engine.finish(solution, schedule.refine(epochs - 1))
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
    )
    place = solution.data.corner.cpu().numpy() + data.counts.shape[-1] // 2 + solution.data.shift_px.cpu().numpy()
    return {
        "object": solution.canvas[0].cpu().numpy(),
        "probe": solution.probe[0].cpu().numpy(),
        "positions_px": place + np.asarray(problem.get("origin_px", (0.0, 0.0))),
        "loss": np.array(deviance),
        "seconds_per_epoch": np.array(seconds),
        "setup_seconds": setup,
        "peak_memory_bytes": peak,
        "version": "bluesky_cdi",
        "torch_version": torch.__version__,
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
    }


def main() -> None:
    """Read, reconstruct, write, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", type=Path)
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    problem = read_problem(args.problem)
    result = run(problem)
    np.savez(args.result, **result)
    print(
        f"bluesky_cdi {problem['algorithm']}, {problem['counts'].shape[0]} frames, "
        f"{problem['probe'].shape[0]} modes, batch {problem['batch_size'] or 'its own'}, {problem['device']}: "
        f"median {np.median(result['seconds_per_epoch']):.3f} s an epoch, "
        f"peak {result['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    print("deviance " + " ".join(f"{value:.4g}" for value in result["loss"]))


if __name__ == "__main__":
    main()
