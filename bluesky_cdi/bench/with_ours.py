"""Reconstruct with this package, for comparison: the problem and the result of `with_ptychi`.

    python -m bluesky_cdi.bench.with_ours problem.npz result.npz

`algorithm` may be any engine of the package, or `pinn`: the shipped network, which predicts anew every ten epochs with
the probe refined so far, and LSQ-ML with its prediction as the prior; `refine_positions` (bool, absent: False) refines
the positions from an eighth of the epochs on, and the result then holds them as `positions_px`. `batch_size` 0 leaves
the engine its own choice.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi import __version__
from bluesky_cdi.bench.exchange import Arrays, diffraction, read_arrays
from bluesky_cdi.bench.machine import synchronise
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.reconstruction.batch import PREDICT_EVERY
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.refinement import prior_of, refiner


def run(problem: Mapping[str, Any]) -> Arrays:
    """Reconstruct; return the result's arrays."""
    torch.set_num_threads(problem["threads"])
    device = torch.device(problem["device"])
    started = time.perf_counter()
    data = diffraction(problem, device)
    probe = torch.from_numpy(problem["probe"].astype(np.complex64))[None].to(device)
    vacuum = torch.ones(data.object_shape, dtype=torch.complex64, device=device)
    epochs = problem["epochs"]
    positions_from = epochs // 8 if problem.get("refine_positions") else -1
    schedule = Schedule(epochs, problem.get("probe_from_epoch", 0), positions_from)
    way = _Predicted(schedule, device) if problem["algorithm"] == "pinn" else _Iterated(problem, schedule)
    solution = way.begin(Solution.start(vacuum, probe, data))
    synchronise(device)
    setup, seconds, deviance = time.perf_counter() - started, [], []
    for epoch in range(epochs):
        started = time.perf_counter()
        solution = way.epoch(solution, epoch)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
        deviance.append(solution.mean_deviance)
    solution = way.finish(solution, epochs)
    place = solution.data.corner.cpu().numpy() + data.counts.shape[-1] // 2 + solution.data.shift_px.cpu().numpy()
    return {
        "object": solution.object[0].cpu().numpy(),
        "probe": solution.probe[0].cpu().numpy(),
        "positions_px": place + np.asarray(problem.get("origin_px", (0.0, 0.0))),
        "loss": np.array(deviance),
        "seconds_per_epoch": np.array(seconds),
        "setup_seconds": setup,
        "peak_memory_bytes": _peak_memory(device),
        "version": f"bluesky_cdi {__version__}",
        "torch_version": torch.__version__,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


class _Iterated:
    """An engine from vacuum."""

    def __init__(self, problem: Mapping[str, Any], schedule: Schedule) -> None:
        self._engine = make_engine(problem["algorithm"], problem["seed"], problem["batch_size"] or None)
        self._schedule = schedule

    def begin(self, solution: Solution) -> Solution:
        return solution

    def epoch(self, solution: Solution, number: int) -> Solution:
        return self._engine.epoch(solution, self._schedule.refine(number))

    def finish(self, solution: Solution, epochs: int) -> Solution:
        return self._engine.finish(solution, self._schedule.refine(epochs - 1)) if epochs else solution


class _Predicted:
    """The network, whose prediction LSQ-ML refines, again and again."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        self._net: UnrolledNet = load_weights(device=device).unrolled_net
        self._engine: Engine | None = None
        self._schedule = schedule

    def begin(self, solution: Solution) -> Solution:
        return solution if self._schedule.epochs else self._predict(solution)

    def epoch(self, solution: Solution, number: int) -> Solution:
        if number % PREDICT_EVERY == 0:
            solution = self._predict(self._ended(solution, number))
        return solution if self._engine is None else self._engine.epoch(solution, self._schedule.refine(number))

    def finish(self, solution: Solution, epochs: int) -> Solution:
        return self._ended(solution, epochs - 1) if epochs else solution

    def _ended(self, solution: Solution, number: int) -> Solution:
        return solution if self._engine is None else self._engine.finish(solution, self._schedule.refine(number))

    @torch.no_grad()
    def _predict(self, solution: Solution) -> Solution:
        """Take the network's prediction if it explains the frames better, and it as the prior in any case."""
        found = predict_object(self._net, solution.probe, solution.data, solution.object)
        found = found * torch.sgn((found.conj() * solution.object).sum())
        prior = prior_of(self._net, found, solution.probe, solution.data)
        self._engine = refiner(prior, len(solution.data), PREDICT_EVERY)
        return min(solution, replace(solution, object=found), key=lambda each: each.judged().mean_deviance)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux


def main() -> None:
    """Read, reconstruct, write, and say how it went."""
    parser = argparse.ArgumentParser(description="Reconstruct a problem with bluesky_cdi.")
    parser.add_argument("problem", type=Path)
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    problem = read_arrays(args.problem)
    result = run(problem)
    np.savez(args.result, **result)
    print(
        f"bluesky_cdi {problem['algorithm']}, {problem['counts'].shape[0]} frames, "
        f"{problem['probe'].shape[0]} modes, batch {problem['batch_size'] or 'its own'}, {problem['device']}: "
        f"{len(result['loss'])} epochs in {result['seconds_per_epoch'].sum():.3f} s, "
        f"peak {result['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    print("deviance " + " ".join(f"{value:.4g}" for value in result["loss"]))


if __name__ == "__main__":
    main()
