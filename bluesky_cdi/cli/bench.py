"""``bluesky-cdi bench``: measurements."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import _make_folder, _positive
from bluesky_cdi.cli.output import _say_result

logger = logging.getLogger(__name__)


def _add_bench(commands: Any, common: argparse.ArgumentParser) -> None:
    bench = commands.add_parser("bench", help="measure this machine")
    parts = bench.add_subparsers(dest="part", required=True, metavar="WHAT")
    command = parts.add_parser(
        "throughput", parents=[common], help="frames a second, from counts in memory to the stitched object"
    )
    add = command.add_argument
    add(
        "--sizes", type=_positive, nargs="+", default=[64, 128, 256, 512], metavar="N",
        help="pixels along a side of the frames (default: 64 128 256 512)",
    )  # fmt: skip
    add("--weights", nargs="*", default=["canvas-small"], metavar="NAME", help="shipped, or a .safetensors file")
    add(
        "--model", action="append", default=[], metavar="SIZE",
        help="an untrained network too: fast, small, large, or stages=2,channels=16; repeatable",
    )  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    add("--devices", type=_positive, default=1, metavar="N", help="GPUs at work at the same time, each on its scans")
    add("--frames", type=_positive, metavar="N", help="frames of a batch (default: what keeps the device busy)")
    add("--modes", type=int, choices=range(1, 9), default=1, help="incoherent probe modes (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="least time for each number (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the JSON there as well")
    command.set_defaults(run=_bench_throughput)


def _bench_throughput(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench import throughput as bench

    if args.out:
        _make_folder(args.out.parent)
    devices = bench.devices_of(args.device, args.devices)
    models = bench.models_of(args.weights, args.model)
    found = bench.throughput(
        models, args.sizes, devices, args.seconds, args.frames, args.modes, told=lambda case: logger.info("%s", case)
    )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    rows = [("machine", f"{', '.join(found['machine']['devices'])}, {found['machine']['threads']} CPU threads")]
    rows += [(f"{case['model']}, {case['frame_px']}x{case['frame_px']}", _speed(case)) for case in found["cases"]]
    _say_result(args, found, rows)
    return 0


def _speed(case: dict[str, Any]) -> str:
    parts = case["us_per_frame"]
    split = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    low, high = case["frames_per_s_p10"], case["frames_per_s_p90"]
    memory = case["gpu_memory_bytes"]
    used = "" if memory is None else f"; {memory / 2**30:.1f} GiB"
    return (
        f"{case['frames_per_s']:.0f} frames/s ({low:.0f} to {high:.0f}), one batch of {case['frames']} alone "
        f"{case['one_batch_frames_per_s']:.0f}; µs a frame: {split}{used}"
    )
