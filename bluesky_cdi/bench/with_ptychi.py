"""Reconstruct with pty-chi, for comparison: problem in, result out, both NPZ files.

    PTYCHI_ENVIRONMENT/bin/python bluesky_cdi/bench/with_ptychi.py problem.npz result.npz

Needs pty-chi 2.2 (``pip install ptychi==2.2.0``, in an environment of its own) and nothing of
bluesky_cdi. Options that the problem doesn't state are pty-chi's own defaults.

The problem
-----------
counts : (n, N, N) float32
    Photons; zero frequency at ``[N // 2, N // 2]`` in the far field.
positions_px : (n, 2)
    (row, column) of the probe's centre, which is pixel ``[N // 2, N // 2]`` of the probe.
origin_px : (2,), optional
    Position of object pixel ``[0, 0]``; zero if absent.
object_shape : (2,)
probe : (M, N, N) complex64
    First guess; ``sum |probe|^2`` is the mean photons of a frame, under the orthonormal FFT.
mask : (N, N) bool, optional
    True where valid.
propagation : 'far' or 'near', optional
    The near field needs `wavelength_m`, `pixel_m` and `distance_m`.
algorithm : 'lsqml' or 'rpie'
epochs, batch_size, threads, seed : int
device : 'cpu' or 'cuda'
update_probe : bool, optional
    True if absent.
probe_from_epoch : int, optional
    First epoch, from 0, that updates the probe; 0 if absent.
batching : 'random', 'uniform' or 'compact', optional
momentum : float, optional
    `momentum_acceleration_gain` of LSQ-ML.
noise_model : 'gaussian' or 'poisson', optional
    Of LSQ-ML.
pad_for_shift : int, optional
    Pixels that pad the probe before it is shifted; pty-chi advises some for a bright near field, its example 50.
alpha, step_size : float, optional
    Of rPIE, object and probe. pty-chi adds up the changes that a batch's frames ask of the object, so that its
    default step of 1 is for few frames; its own examples take 0.1 with a tenth of the frames in a batch.

The result
----------
object : (Y, X) complex64
probe : (M, N, N) complex64, in the gauge and on the grid of the problem's
loss : (epochs,), mean of ``(sqrt(rate) - sqrt(counts))^2``, each batch before its own update
seconds_per_epoch : (epochs,), the device synchronised
setup_seconds : float
peak_memory_bytes : int, of the process on a CPU, of PyTorch's allocator on CUDA
version, torch_version, machine : str

pty-chi's LSQ-ML spends its first epoch on the probe's scale alone (`rescale_probe_intensity_in_first_epoch`).
Its model shifts the first probe mode by the parts of a pixel, and the others not. In the near field it leaves the
exit wave displaced by those parts, which moves the predicted frame: positions rounded to whole pixels fit better there.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ptychi.api as api
import torch
from ptychi.api.task import PtychographyTask


def read_problem(path: Path) -> dict[str, Any]:
    """Read the problem's arrays; what has no dimension comes as a plain number or string."""
    with np.load(path) as file:
        return {key: value.item() if value.ndim == 0 else value for key, value in file.items()}


def make_options(problem: dict[str, Any]) -> Any:
    """Make pty-chi's options: its defaults, changed by what the problem states."""
    options = {"lsqml": api.LSQMLOptions, "rpie": api.RPIEOptions}[problem["algorithm"]]()
    run = options.reconstructor_options
    run.num_epochs, run.batch_size = problem["epochs"], problem["batch_size"]
    run.random_seed = problem["seed"]
    run.default_device = api.Devices.GPU if problem["device"] == "cuda" else api.Devices.CPU
    run.batching_mode = api.BatchingModes(problem.get("batching", run.batching_mode))
    options.object_options.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    # pty-chi's patch begins at position + origin - (N - 1) / 2, so that half a pixel less makes N // 2 the centre.
    origin = np.asarray(problem.get("origin_px", (0.0, 0.0)))
    options.object_options.position_origin_coords = [-0.5, -0.5]
    problem["positions_px"] = problem["positions_px"] - origin
    options.probe_options.optimizable = bool(problem.get("update_probe", True))
    options.probe_options.optimization_plan.start = problem.get("probe_from_epoch", 0)
    options.data_options.save_data_on_device = problem["device"] == "cuda"
    forward = run.forward_model_options
    forward.pad_for_shift = problem.get("pad_for_shift", forward.pad_for_shift)
    set_algorithm(options, problem)
    if problem.get("propagation", "far") == "near":
        options.data_options.wavelength_m = problem["wavelength_m"]
        options.data_options.free_space_propagation_distance_m = problem["distance_m"]
        options.data_options.fft_shift = False
        options.object_options.pixel_size_m = problem["pixel_m"]
    return options


def set_algorithm(options: Any, problem: dict[str, Any]) -> None:
    """Set what only one of the algorithms has.

    Parameters
    ----------
    options : object
        pty-chi's options of the algorithm; changed in place.
    problem : dict
        Arrays and settings of the problem, by name.
    """
    if problem["algorithm"] == "lsqml":
        run = options.reconstructor_options
        run.momentum_acceleration_gain = problem.get("momentum", run.momentum_acceleration_gain)
        run.noise_model = api.NoiseModels(problem.get("noise_model", run.noise_model))
        return
    for part in (options.object_options, options.probe_options):
        part.alpha = problem.get("alpha", part.alpha)
        part.step_size = problem.get("step_size", part.step_size)


def probe_scale(problem: dict[str, Any]) -> float:
    """Divide pty-chi's probe by ours: its FFT in the far field is unnormalised, which divides the probe by N."""
    return 1.0 if problem.get("propagation", "far") == "near" else 1.0 / problem["counts"].shape[-1]


def make_task(problem: dict[str, Any]) -> PtychographyTask:
    """Make pty-chi's task of the problem, from an object of ones."""
    options = make_options(problem)
    return PtychographyTask(
        options,
        diffraction_data=problem["counts"],
        object_data=np.ones((1, *problem["object_shape"]), np.complex64),
        probe_data=(problem["probe"] * probe_scale(problem))[None].astype(np.complex64),
        probe_position_y_px=problem["positions_px"][:, 0].astype(np.float32),
        probe_position_x_px=problem["positions_px"][:, 1].astype(np.float32),
        valid_pixel_mask=problem.get("mask", np.ones(problem["counts"].shape[1:], bool)),
    )


def synchronise(cuda: bool) -> None:
    """Wait until a GPU has done all that it was asked."""
    if cuda:
        torch.cuda.synchronize()


def run(problem: dict[str, Any]) -> dict[str, Any]:
    """Reconstruct; return the result's arrays."""
    torch.set_num_threads(problem["threads"])
    cuda = problem["device"] == "cuda"
    started = time.perf_counter()
    task = make_task(problem)
    synchronise(cuda)
    setup, seconds = time.perf_counter() - started, []
    for _ in range(problem["epochs"]):
        started = time.perf_counter()
        task.run(1)
        synchronise(cuda)
        seconds.append(time.perf_counter() - started)
    # ru_maxrss counts kibibytes on Linux.
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "object": task.get_data_to_cpu("object", as_numpy=True)[0],
        "probe": task.get_data_to_cpu("probe", as_numpy=True)[0] / np.float32(probe_scale(problem)),
        "loss": task.reconstructor.loss_tracker.table["loss"].to_numpy(float),
        "seconds_per_epoch": np.array(seconds),
        "setup_seconds": setup,
        "peak_memory_bytes": peak,
        "version": f"ptychi {version('ptychi')}",
        "torch_version": torch.__version__,
        "machine": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
    }


def main() -> None:
    """Read, reconstruct, write, and say how it went."""
    parser = argparse.ArgumentParser(description="Reconstruct a problem with pty-chi.")
    parser.add_argument("problem", type=Path)
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    problem = read_problem(args.problem)
    result = run(problem)
    np.savez(args.result, **result)
    print(
        f"{result['version']} {problem['algorithm']}, {problem['counts'].shape[0]} frames, "
        f"{problem['probe'].shape[0]} modes, batch {problem['batch_size']}, {problem['device']}: "
        f"median {np.median(result['seconds_per_epoch']):.3f} s an epoch, "
        f"peak {result['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    print("loss " + " ".join(f"{value:.4g}" for value in result["loss"]))


if __name__ == "__main__":
    main()
