"""What fine-tuning on the frames of one run brings on recorded scans, beside an engine and the reference.

    python benchmarks/fine_tuning.py [--scan star64] [--seconds 120] [--device cuda] [--weights NAME] [--png FILE]

Nine frames of ten are given to every row but the reference's, which has seen them all; the tenth is unseen, and also
unseen by what tuning itself holds out. Deviance is that of a frame a pixel, and beside it over that of the reference
on the same frames. NRMSE and phase error are against the reference's object, which is not the truth. In the row ``its
probe alone`` the network as it was has the tuned one's probe; its seconds are those of the whole tuning. The reference
of P25 lacks what its package refined beside object and probe: its deviance is far above that of any engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recorded_cases import CASES, Recorded
from torch import Tensor

from bluesky_cdi import metrics
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, deviance_of, iterate
from bluesky_cdi.live.refinement import prior_of, refiner
from bluesky_cdi.models.canvas import CanvasNet
from bluesky_cdi.models.weights import DEFAULT, load_weights
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.training.finetune import FineTuner

# Iterations after a network.
REFINED_FOR = 5

Clock = Callable[[], float]
Row = tuple[str, Tensor, Tensor, float]  # label, object (1, Y, X), probe (1, M, N, N), seconds


def rows(case: Recorded, given: Diffraction, net: CanvasNet, args: argparse.Namespace) -> Iterator[Row]:
    """Everything that is compared."""
    clock = time.process_time if args.cpu_time else time.monotonic
    yield from _network(net, case.probe, given, "network", 0.0, clock)
    tuner = FineTuner(net, clock=clock)
    tuned, took = _timed(lambda: tuner.tune(case.probe, given, args.seconds, _tell), case.probe, clock)
    print(
        f"  {tuned.steps} steps, held-out deviance {tuned.before:.4f} before, {tuned.after:.4f} after, "
        f"{'kept' if tuned.kept else 'not kept'}, ended by {tuned.ended}",
        flush=True,
    )
    yield from _network(net, tuned.probe, given, "its probe alone", took, clock)
    yield from _network(tuned.net, tuned.probe, given, "fine-tuned", took, clock)
    ones = torch.ones(given.canvas_shape, dtype=torch.complex64, device=case.probe.device)
    vacuum, schedule = Solution.start(ones, case.probe, given), Schedule(args.epochs)
    found, took = _timed(lambda: iterate(make_engine("lsqml"), vacuum, schedule).solution, case.probe, clock)
    yield f"LSQ-ML, {args.epochs} epochs", found.canvas, found.probe, took


def _network(
    net: CanvasNet, probe: Tensor, data: Diffraction, label: str, before: float, clock: Clock
) -> Iterator[Row]:
    """The network's one pass, and what a few iterations make of it, as in a live run."""
    canvas, took = _timed(lambda: net(probe, data)[-1], probe, clock)
    yield label, canvas, probe, before + took
    start = Solution.start(canvas, probe, data)

    def refined() -> Solution:
        engine = refiner(prior_of(net, canvas, probe, data), len(data), REFINED_FOR)
        return iterate(engine, start, Schedule(REFINED_FOR)).solution

    found, more = _timed(refined, probe, clock)
    yield f"{label}, refined", found.canvas, found.probe, before + took + more


def _timed(work: Callable[[], Any], like: Tensor, clock: Clock) -> tuple[Any, float]:
    started = clock()
    with torch.no_grad():
        done = work()
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return done, clock() - started


def _tell(seconds: float, deviance: float) -> None:
    print(f"  {seconds:6.1f} s: held-out deviance {deviance:.4f}", flush=True)


@torch.no_grad()
def judged(case: Recorded, row: Row, given: Tensor, unseen: Tensor) -> dict[str, float]:
    """Deviance of given and unseen frames, and what they are of the reference's; errors against its object."""
    _, canvas, probe, seconds = row
    deviance = deviance_of(canvas, probe, case.data).cpu()
    light = torch.zeros(case.data.canvas_shape, device=probe.device)
    for part in case.data.chunks(64):
        light += accumulate(intensity(part.probes(probe)), part.corner, part.canvas_shape)
    mask = metrics.illuminated(light[0].cpu().numpy(), 0.05)
    aligned = metrics.align(canvas[0].cpu().numpy(), case.reference, mask)
    numbers = {"seconds": seconds}
    for name, frames in (("given", given), ("unseen", unseen)):
        numbers[name] = float(deviance[frames].mean())
        numbers[f"{name}_ratio"] = numbers[name] / float(case.reference_deviance[frames].mean())
    numbers["nrmse"] = metrics.complex_nrmse(aligned.object, aligned.truth, mask)
    numbers["phase_mae_rad"] = metrics.phase_mae_rad(aligned.object, aligned.truth, mask)
    return numbers


def measure(args: argparse.Namespace, name: str, net: CanvasNet) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Print a scan's table; its numbers, and the objects to draw."""
    case = CASES[name](args.data, args.device)
    index = torch.arange(len(case.data))
    # Not the tenth that tuning holds out of what it is given.
    unseen, given = index[index % 10 == 4], index[index % 10 != 4]
    print(f"{name}: {len(given)} frames given, {len(unseen)} unseen, canvas {case.data.canvas_shape[1:]}", flush=True)
    reference = [float(case.reference_deviance[frames].mean()) for frames in (given, unseen)]
    table: dict[str, Any] = {"reference": {"given": reference[0], "unseen": reference[1]}}
    images = {"reference": case.reference}
    lines = []
    for row in rows(case, case.data[given.to(args.device)], net, args):
        numbers = table[row[0]] = judged(case, row, given, unseen)
        images[row[0]] = row[1][0].cpu().numpy()
        lines.append(
            f"{row[0]:32}{numbers['given']:9.4f} {numbers['given_ratio']:6.2f} {numbers['unseen']:9.4f} "
            f"{numbers['unseen_ratio']:6.2f} {numbers['nrmse']:7.3f} {numbers['phase_mae_rad']:7.3f} "
            f"{numbers['seconds']:8.1f}"
        )
    print(f"{name:32}{'given':>9} {'ratio':>6} {'unseen':>9} {'ratio':>6} {'NRMSE':>7} {'rad':>7} {'s':>8}")
    print(f"{'reference (has seen all)':32}{reference[0]:9.4f} {1:6.2f} {reference[1]:9.4f} {1:6.2f}")
    print("\n".join(lines), flush=True)
    return table, images


def draw(images: dict[str, np.ndarray], path: Path) -> None:
    """Phases side by side, each turned to its own mean."""
    from matplotlib.figure import Figure

    shown = {label: image for label, image in images.items() if "LSQ-ML" not in label or "epochs" in label}
    figure = Figure(figsize=(4 * len(shown), 4.2), layout="constrained")
    for ax, (label, image) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        rows, columns = image.shape
        middle = image[rows // 5 : -rows // 5, columns // 5 : -columns // 5]
        phase = np.angle(middle * np.conj(middle.mean()))
        ax.imshow(phase, cmap="gray", vmin=-1.0, vmax=1.0)
        ax.set_title(label, fontsize=10)
        ax.set_axis_off()
    figure.savefig(path, dpi=70)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BLUESKY_CDI_DATA", "../shared/data")))
    parser.add_argument("--scan", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--weights", default=DEFAULT)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=200, help="of LSQ-ML, the converged engine")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's CPU time: on a busy machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path, help="the phases side by side; of several scans, one file each")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trained = load_weights(args.weights, args.device)
    tables = {}
    for name in args.scan:
        tables[name], images = measure(args, name, trained.net)
        if args.png:
            draw(images, args.png if len(args.scan) == 1 else args.png.with_stem(f"{args.png.stem}-{name}"))
    if args.json:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        record = {
            "tables": tables, "seconds": args.seconds, "threads": args.threads, "cpu_time": args.cpu_time,
            "weights": trained.sha256, "commit": head.stdout.strip(),
            "machine": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        }  # fmt: skip
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
