"""Our iterative engines and pty-chi's side by side, on recorded and simulated scans.

    python benchmarks/engines_beside_ptychi.py --ptychi PTYCHI_ENVIRONMENT/bin/python [--device cuda] [--json FILE]
    python benchmarks/engines_beside_ptychi.py --ptychi ... --speed --device cuda

Every row has the same frames, the same first guess of the probe and the same number of epochs, begins
with an object of ones, and runs in a process of its own, one after the other. pty-chi is asked through
`with_ptychi.py`, which says what of it is default. Deviance is that of our forward model on the object and
probe of the row (and the positions, where they are refined); for pty-chi the lower of that with positions as
recorded and rounded to whole pixels. Error and ring correlation (the mean of all rings) of recorded scans are against
the reference, which pty-chi itself (Siemens star) or cdtools (P25) made; those of simulated scans against the truth.
``halves`` is the mean ring correlation of two independent halves of the frames, which no reference favours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from with_ours import diffraction, read_problem

from bluesky_cdi import metrics
from bluesky_cdi.engines.ptychography import deviance_of
from bluesky_cdi.io import read_cxi, read_reference, read_scan
from bluesky_cdi.live.build import with_modes
from bluesky_cdi.offline import first_guess
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.geometry import Canvas, Geometry
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe

HERE = Path(__file__).parent
SIMULATED = ("star", "natural", "leaves", "lines", "circuit", "particles")
STAR, P25 = "siemens_velociprobe", "petra_p25_nearfield"


@dataclass(frozen=True)
class Row:
    """One engine with its settings."""

    label: str
    ours: bool
    settings: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("network", True, {"algorithm": "pinn", "batch_size": 0, "epochs": 0}),
    Row("network, 30 of LSQ-ML", True, {"algorithm": "pinn", "batch_size": 0, "epochs": 30}),
    Row("LSQ-ML", True, {"algorithm": "lsqml", "batch_size": 0}),
    Row("LSQ-ML, positions refined", True, {"algorithm": "lsqml", "batch_size": 0, "refine_positions": True}),
    Row("rPIE", True, {"algorithm": "rpie", "batch_size": 0}),
    Row("pty-chi LSQ-ML", False, {"algorithm": "lsqml", "batch_size": 64}),
    Row("pty-chi rPIE", False, {"algorithm": "rpie", "batch_size": 64, "step_size": 0.1}),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A scan to reconstruct, and what to compare with: an object on the same canvas."""

    name: str
    problem: dict[str, Any]
    reference: np.ndarray


def star_case(folder: Path) -> Case:
    """The recorded Siemens star, far field, three modes."""
    scan = read_scan(folder / STAR / "canonical.npz")
    reference = read_reference(folder / STAR / "reference.npz", scan)
    canvas = _canvas(scan)
    first = np.rint((np.array(canvas.origin_m) - reference.origin_m) / canvas.pixel_m).astype(int)
    return Case("Siemens star", _problem(scan, canvas, 3), _window(reference.object, first, canvas.shape))


def p25_case(folder: Path) -> Case:
    """The recorded near field of P25, one mode."""
    scan = read_cxi(folder / P25 / "PETRAIII_P25_Near_Field_Ptycho.cxi", focus_to_sample_m=3.65e-3)
    canvas = _canvas(scan)
    with np.load(folder / P25 / "reference.npz") as file:
        reference = file["obj"]
    # The reference's canvas has 200 pixels more than the frames need on every side.
    low = scan.positions_m.min(axis=0) - scan.geometry.frame_px // 2 * canvas.pixel_m
    first = np.rint((np.array(canvas.origin_m) - low) / canvas.pixel_m).astype(int) + 200
    return Case("P25, near field", _problem(scan, canvas, 1), _window(reference, first, canvas.shape))


def simulated_case(kind: str, frames: int = 169, photons: float = 1e5) -> Case:
    """Frames of 64x64 with two modes, Poisson noise, a probe guess out of focus and positions a little wrong."""
    rng = np.random.default_rng(11)
    geometry = Geometry(8000.0, 2.0, 172e-6, 64)
    side = round(frames**0.5)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    positions_px = grid * 6.0 + rng.uniform(-1.5, 1.5, grid.shape)
    pixel = geometry.pixel_m
    canvas = Canvas.covering(positions_px.min(axis=0) * pixel, positions_px.max(axis=0) * pixel, pixel, 64, 8)
    lens = {"numerical_aperture": 0.86e-3, "central_stop": 0.25, "modes": 2, "coherent_share": 0.9, "photons": photons}
    probe, guess = (focused_probe(geometry, defocus_m=d, **lens) for d in (0.265e-3, 0.25e-3))
    truth = make_sample(kind, canvas.shape, seed=5)
    problem = {
        "positions_px": positions_px + rng.normal(0, 0.1, positions_px.shape),
        "origin_px": np.array(canvas.origin_m) / canvas.pixel_m,
        "object_shape": np.array(canvas.shape),
        "probe": guess.numpy(),
        "counts": np.zeros((len(grid), 64, 64), np.float32),
    }
    data = diffraction(problem, "cpu", positions_px)
    rate = data.rate(data.probes(probe[None]), data.patches(torch.from_numpy(truth)[None]))
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(7))
    problem["counts"] = data.propagator.to_detector(counts).numpy()
    return Case(f"simulated {kind}", problem, truth)


def speed_case(size: int, frames: int) -> Case:
    """Many frames of one size for timing: dead leaves, three modes, positions 5 % of a frame apart."""
    rng = np.random.default_rng(3)
    geometry = Geometry(8000.0, 2.0, 75e-6, size)
    side = round(frames**0.5)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    positions_px = grid * 0.05 * size + rng.uniform(-1, 1, grid.shape)
    pixel = geometry.pixel_m
    canvas = Canvas.covering(positions_px.min(axis=0) * pixel, positions_px.max(axis=0) * pixel, pixel, size, 8)
    lens = {"numerical_aperture": 0.4 * 75e-6 * size / 2 / 2.0, "modes": 3, "coherent_share": 0.9, "photons": 1e6}
    probe = focused_probe(geometry, defocus_m=0.0, **lens)
    truth = make_sample("cells", canvas.shape, seed=5)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = {
        "positions_px": positions_px,
        "origin_px": np.array(canvas.origin_m) / pixel,
        "object_shape": np.array(canvas.shape),
        "probe": probe.numpy(),
        "counts": np.zeros((len(grid), size, size), np.float32),
    }
    data = diffraction(problem, device)
    canvas_there, probe_there = torch.from_numpy(truth)[None].to(device), probe[None].to(device)
    torch.manual_seed(7)
    for number, part in enumerate(data.chunks(256)):
        rate = part.rate(part.probes(probe_there), part.patches(canvas_there))
        counts = part.propagator.to_detector(torch.poisson(rate)).cpu().numpy()
        problem["counts"][number * 256 : number * 256 + len(counts)] = counts
    return Case(f"{len(grid)} frames of {size}x{size}", problem, truth)


def solve(case: Case, row: Row, common: dict[str, Any], interpreter: str, folder: Path) -> dict[str, Any]:
    """Run one row in a process of its own."""
    problem = {**case.problem, **common, **row.settings}
    rounded = not row.ours and problem.get("propagation") == "near"
    if rounded:
        # On the grid of the canvas: pty-chi's near field has no parts of pixels (see `with_ptychi.py`).
        problem["positions_px"] = np.rint(problem["positions_px"] - problem["origin_px"]) + problem["origin_px"]
    paths = folder / "problem.npz", folder / "result.npz"
    np.savez(paths[0], **problem)
    python, script = (sys.executable, "with_ours.py") if row.ours else (interpreter, "with_ptychi.py")
    environment = {**os.environ, "OMP_NUM_THREADS": str(common["threads"])}
    subprocess.run([python, str(HERE / script), *map(str, paths)], check=True, env=environment, stdout=sys.stderr)
    return read_problem(paths[1])


def cost(result: dict[str, Any]) -> dict[str, Any]:
    """What a result cost; the first quarter of the epochs warms up."""
    seconds = result["seconds_per_epoch"]
    return {
        "seconds_per_epoch": float(np.median(seconds[len(seconds) // 4 :])) if len(seconds) else float("nan"),
        "peak_memory_mib": float(result["peak_memory_bytes"]) / 2**20,
        "machine": result["machine"],
        "version": result["version"],
    }


def deviance(case: Case, row: Row, result: dict[str, Any], device: str) -> float:
    """Mean Poisson deviance per pixel; NaN where the engine diverged."""
    if not np.isfinite(result["object"]).all():
        return float("nan")
    found = torch.from_numpy(result["object"])[None].to(device), torch.from_numpy(result["probe"])[None].to(device)
    recorded, origin = case.problem["positions_px"], np.asarray(case.problem["origin_px"])
    tried = [result["positions_px"]] if row.ours else [recorded, np.rint(recorded - origin) + origin]
    return min(float(deviance_of(*found, diffraction(case.problem, device, at)).mean()) for at in tried)


def quality(case: Case, result: dict[str, Any]) -> dict[str, float]:
    """Error and ring correlation against the case's reference."""
    if not np.isfinite(result["object"]).all():
        return dict.fromkeys(("nrmse", "frc"), float("nan"))
    light = _light(torch.from_numpy(result["probe"])[None], diffraction(case.problem, "cpu"))
    return _against(case.reference, result["object"], light)


def halves(case: Case, row: Row, common: dict[str, Any], interpreter: str, folder: Path) -> float:
    """Mean ring correlation of two independent halves of the frames."""
    found, light = [], []
    for first in (0, 1):
        part = {**case.problem, **{k: case.problem[k][first::2] for k in ("counts", "positions_px")}}
        half = Case(case.name, part, case.reference)
        result = solve(half, row, common, interpreter, folder)
        found.append(result["object"])
        light.append(_light(torch.from_numpy(result["probe"])[None], diffraction(part, "cpu")))
    if not all(np.isfinite(image).all() for image in found):
        return float("nan")
    return float(_against(found[0], found[1], np.minimum(*light))["frc"])


def _against(reference: np.ndarray, image: np.ndarray, light: np.ndarray) -> dict[str, float]:
    mask = metrics.illuminated(light, 0.05)
    aligned = metrics.align(image, reference, mask)
    square = _inner_square(mask)
    curve = metrics.fourier_ring_correlation(aligned.object[square], aligned.truth[square], 1.0)
    return {
        "nrmse": metrics.complex_nrmse(aligned.object, aligned.truth, mask),
        "frc": float(curve.correlation.mean()),
    }


def _inner_square(mask: np.ndarray) -> tuple[slice, slice]:
    """A large square inside a mask, for rings need a rectangle without gaps."""
    distance = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    reach = int(distance.max()) - 1
    return slice(y - reach, y + reach + 1), slice(x - reach, x + reach + 1)


def _light(probe: torch.Tensor, data: Diffraction) -> np.ndarray:
    total = torch.zeros(data.canvas_shape)
    for part in data.chunks(64):
        total += accumulate(intensity(part.probes(probe)), part.corner, part.canvas_shape)
    return np.asarray(total[0].numpy())


def _canvas(scan: Any) -> Canvas:
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    return Canvas.covering(low, high, scan.geometry.pixel_m, scan.geometry.frame_px, 8)


def _problem(scan: Any, canvas: Canvas, modes: int) -> dict[str, Any]:
    from bluesky_cdi.config import Config

    counts = np.asarray(scan.counts, np.float32)
    probe = with_modes(first_guess(scan, Config()), modes, scan.geometry.frame_px)
    photons = np.quantile(counts.sum(axis=(1, 2)), 0.9)
    problem = {
        "counts": counts,
        "positions_px": scan.positions_m / canvas.pixel_m,
        "origin_px": np.array(canvas.origin_m) / canvas.pixel_m,
        "object_shape": np.array(canvas.shape),
        "probe": (probe * np.sqrt(photons / (np.abs(probe) ** 2).sum())).astype(np.complex64),
        "propagation": scan.geometry.propagation,
    }
    if scan.mask is not None:
        problem["mask"] = scan.mask
    if scan.geometry.propagation == "near":
        geometry = scan.geometry
        problem |= {"wavelength_m": geometry.wavelength_m, "pixel_m": geometry.pixel_m}
        problem["distance_m"] = geometry.effective_distance_m
    return problem


def _window(image: np.ndarray, first: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The part of an image under a canvas; beyond its border the border goes on."""
    sides = zip(first, shape, image.shape, strict=True)
    rows, columns = (np.clip(np.arange(start, start + n), 0, side - 1) for start, n, side in sides)
    return image[np.ix_(rows, columns)]


def _cases(names: list[str], folder: Path) -> Iterator[Case]:
    for name in names:
        if name == "star_recorded":
            yield star_case(folder)
        elif name == "p25":
            yield p25_case(folder)
        else:
            yield simulated_case(name)


def compare(args: argparse.Namespace, common: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Quality and cost on every scan."""
    table: dict[str, Any] = {}
    print(f"{'':48}{'deviance':>9} {'NRMSE':>7} {'FRC':>6} {'halves':>6} {'s/epoch':>8} {'MiB':>6}")
    for case in _cases(args.cases, args.data):
        recorded = not case.name.startswith("simulated")
        for row in args.rows:
            result = solve(case, row, common, args.ptychi, folder)
            numbers = {"deviance": deviance(case, row, result, args.device), **quality(case, result), **cost(result)}
            if recorded and "LSQ-ML" in row.label:
                numbers["halves"] = halves(case, row, common, args.ptychi, folder)
            table.setdefault(case.name, {})[row.label] = numbers
            print(
                f"{case.name + ', ' + row.label:48}{numbers['deviance']:9.4f} {numbers['nrmse']:7.4f} "
                f"{numbers['frc']:6.3f} {numbers.get('halves', float('nan')):6.3f} "
                f"{numbers['seconds_per_epoch']:8.3f} {numbers['peak_memory_mib']:6.0f}",
                flush=True,
            )
    return table


def speed(args: argparse.Namespace, common: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds an epoch of LSQ-ML with many frames, both in the same mini-batches."""
    table: dict[str, Any] = {}
    print(f"{'':48}{'deviance':>9} {'s/epoch':>8} {'frames/s':>9} {'MiB':>7}")
    for size in args.sizes:
        case = speed_case(size, args.frames)
        for row in (row for row in ROWS if row.label in ("LSQ-ML", "pty-chi LSQ-ML")):
            timed = Row(row.label, row.ours, {**row.settings, "batch_size": args.batch})
            result = solve(case, timed, common, args.ptychi, folder)
            numbers = {"deviance": deviance(case, timed, result, args.device), **cost(result)}
            table.setdefault(case.name, {})[row.label] = numbers
            rate = len(case.problem["counts"]) / numbers["seconds_per_epoch"]
            print(
                f"{case.name + ', ' + row.label:48}{numbers['deviance']:9.4f} {numbers['seconds_per_epoch']:8.3f} "
                f"{rate:9.0f} {numbers['peak_memory_mib']:7.0f}",
                flush=True,
            )
    return table


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ptychi", help="Python interpreter of an environment with pty-chi; our rows alone without")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BLUESKY_CDI_DATA", "../shared/data")))
    parser.add_argument("--cases", nargs="+", default=["star_recorded", "p25", *SIMULATED])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--row", action="append", choices=[row.label for row in ROWS], help="only this one; repeatable")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed", action="store_true", help="seconds an epoch with many frames instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.speed and not args.ptychi:
        parser.error("--speed needs --ptychi")
    args.rows = [row for row in ROWS if args.ptychi or row.ours]
    if args.row:
        args.rows = [row for row in args.rows if row.label in args.row]
    common = {"epochs": args.epochs, "device": args.device, "threads": args.threads, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        table = (speed if args.speed else compare)(args, common, Path(folder))
    if args.json:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        record = {
            "table": table, "common": common, "commit": head.stdout.strip(),
            "processor": platform.processor() or platform.machine(),
        }  # fmt: skip
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
