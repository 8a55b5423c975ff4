"""``bluesky-cdi bench``: how fast networks are, and how good."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import _make_folder, _positive
from bluesky_cdi.cli.output import _say, _say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import torch

    from bluesky_cdi.bench.methods import Network

logger = logging.getLogger(__name__)

# The names of `bench.quality.SUITES`, which would load torch.
SUITES = ("dose", "overlap", "probe", "rate", "objects", "recorded")


def _add_bench(commands: Any, common: argparse.ArgumentParser) -> None:
    bench = commands.add_parser("bench", help="measure speed on this machine, and quality")
    parts = bench.add_subparsers(dest="part", required=True, metavar="WHAT")
    _add_throughput(parts, common)
    _add_quality(parts, common)
    _add_scan(parts, common)


def _add_throughput(parts: Any, common: argparse.ArgumentParser) -> None:
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
        help="an untrained network too: small, large, or stages=2,channels=16; repeatable",
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
    from bluesky_cdi.bench.machine import devices_of

    if args.out:
        _make_folder(args.out.parent)
    devices = devices_of(args.device, args.devices)
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


def _add_quality(parts: Any, common: argparse.ArgumentParser) -> None:
    command = parts.add_parser(
        "quality", parents=[common], help="errors of networks beside iterative engines, on held-out and recorded scans"
    )
    add = command.add_argument
    add("--weights", nargs="*", default=["canvas-small"], metavar="NAME", help="shipped, or a .safetensors file")
    add("--baseline", type=Path, metavar="FILE", help="weights of another network, whose object nothing refines")
    add("--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="NAME", help=f"of {', '.join(SUITES)}")
    add("--seeds", type=_positive, default=3, help="scans of each case (default: %(default)s)")
    add("--frame-px", type=int, choices=(64, 128), default=64, help="pixels along a side (default: %(default)s)")
    add(
        "--field", type=_above_0, default=1.25, metavar="FRAMES",
        help="side of the simulated scans' field in widths of a frame (default: %(default)s)",
    )  # fmt: skip
    add("--data", type=Path, metavar="DIR", help="folder of the recorded scans (default: $BLUESKY_CDI_DATA)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the JSON there as well")
    add("--figure", type=Path, metavar="DIR", help="draw the default scan at three doses and the recorded ones there")
    command.set_defaults(run=_bench_quality)


def _bench_quality(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.cases import Case
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.quality import Options, quality
    from bluesky_cdi.bench.quality_report import Figures, tables

    for folder in (args.out.parent if args.out else None, args.figure):
        if folder is not None:
            _make_folder(folder)
    [device] = devices_of(args.device, 1)
    data = args.data or (Path(os.environ["BLUESKY_CDI_DATA"]) if os.environ.get("BLUESKY_CDI_DATA") else None)
    networks = _networks(args.weights, args.baseline, device)
    options = Options(args.suites, args.seeds, Case(frame_px=args.frame_px, field=args.field), data, device)
    draw = Figures(args.figure, networks) if args.figure else None
    found = quality(networks, options, lambda scan: logger.info("%s", scan), draw)
    for name, why in found["skipped"].items():
        logger.warning("%s is not measured: %s", name, why)
    text = json.dumps(found, indent=1)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    _say(text if args.json else tables(found))
    return 0


def _add_scan(parts: Any, common: argparse.ArgumentParser) -> None:
    command = parts.add_parser(
        "scan", parents=[common], help="write a scan of `bench quality`, for other programs or `train --probe`"
    )
    add = command.add_argument
    add("out", type=Path, help="file to write, ending in .npz (canonical), .cxi, or .h5 (Ptychodus)")
    add("--sample", default="star", metavar="KIND", help="star, natural, circuit, gold, ... (default: %(default)s)")
    add("--dose", type=_above_0, default=1e5, metavar="PHOTONS", help="of a frame (default: %(default)s)")
    add("--frame-px", type=int, choices=(64, 128), default=64, help="pixels along a side (default: %(default)s)")
    add("--seed", type=_from_0, default=0, help="of sample, positions and noise (default: %(default)s)")
    command.set_defaults(run=_bench_scan)


def _bench_scan(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.cases import Case, scan_of
    from bluesky_cdi.io import write_scan

    scan = scan_of(Case(dose=args.dose, sample=args.sample, frame_px=args.frame_px), args.seed)
    _make_folder(args.out.parent)
    write_scan(args.out, scan)
    found = {"scan": str(args.out), "frames": len(scan), "frame_px": args.frame_px, "name": scan.name}
    _say_result(args, found, [("scan", str(args.out)), ("frames", f"{len(scan)} of {args.frame_px}x{args.frame_px}")])
    return 0


def _networks(weights: Sequence[str], baseline: Path | None, device: torch.device) -> list[Network]:
    from bluesky_cdi.bench.methods import Network
    from bluesky_cdi.models.weights import load_weights

    trained = [load_weights(name, device) for name in weights]
    networks = [Network(each.name, each.net) for each in trained]
    if baseline is not None:
        networks.append(Network(baseline.stem, load_weights(baseline, device).net))
    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        raise BlueskyCDIError(f"networks go by their files' names, which must differ; they are {', '.join(names)}")
    return networks


def _from_0(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on; got {text!r}")
    return int(text)


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


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
