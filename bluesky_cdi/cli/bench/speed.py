"""``bench throughput``, ``bench steps``, ``bench events`` and ``bench memory``: what things cost."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.bench.common import Part, add_device, add_out, finish, prepare, tell
from bluesky_cdi.cli.output import say_result


def _throughput_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--sizes",
        type=positive,
        nargs="+",
        default=[64, 128, 256, 512],
        metavar="N",
        help="pixels along a side of the frames (default: 64 128 256 512)",
    )
    add("--weights", nargs="*", default=["canvas-small"], metavar="NAME", help="shipped, or a .safetensors file")
    add(
        "--model",
        action="append",
        default=[],
        metavar="SIZE",
        help="an untrained network too: small, large, or stages=2,channels=16; repeatable",
    )
    add("--devices", type=positive, default=1, metavar="N", help="GPUs at work at the same time, each on its scans")
    add("--frames", type=positive, metavar="N", help="frames of a batch (default: what keeps the device busy)")
    add("--modes", type=int, choices=range(1, 9), default=1, help="incoherent probe modes (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="least time for each number (default: %(default)s)")
    add_device(command)
    add_out(command)


def _bench_throughput(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.suites import throughput as bench

    prepare(args)
    devices = devices_of(args.device, args.devices)
    models = bench.models_of(args.weights, args.model)
    found = bench.throughput(
        models,
        args.sizes,
        devices,
        args.seconds,
        args.frames,
        args.modes,
        on_progress=tell,
    )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    rows = [("machine", f"{', '.join(found['machine']['devices'])}, {found['machine']['threads']} CPU threads")]
    rows += [(f"{case['model']}, {case['frame_px']}x{case['frame_px']}", _speed(case)) for case in found["cases"]]
    say_result(args, found, rows)
    return 0


THROUGHPUT = Part(
    "throughput",
    "frames a second, from counts in memory to the stitched object",
    _throughput_options,
    _bench_throughput,
)


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


def _steps_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--side", type=positive, default=40, help="frames along each side (default: %(default)s)")
    add("--step", type=positive, default=12, help="pixels from frame to frame (default: %(default)s)")
    add("--window", type=positive, default=384, help="reconstructor.window_px (default: %(default)s)")
    add("--batch", type=positive, default=32, help="frames added at a time (default: %(default)s)")
    add_out(command)


def _bench_steps(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.steps import Options, steps

    prepare(args)
    torch.set_num_threads(1)
    found = steps(Options(args.side, args.step, args.window, args.batch), tell)
    return finish(args, found, tables.steps(found))


STEPS = Part(
    "steps",
    "seconds of a step of the live reconstructor as a scan grows, on one CPU thread",
    _steps_options,
    _bench_steps,
)


def _events_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--events", type=positive, default=3000, help="of each of the three (default: %(default)s)")
    add("--rounds", type=positive, default=3, help="rasters that these are split into (default: %(default)s)")
    add("--step", type=positive, default=12, help="pixels from frame to frame (default: %(default)s)")
    add_out(command)


def _bench_events(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.events import Options, events

    prepare(args)
    found = events(Options(args.events, args.rounds, args.step), tell)
    return finish(args, found, tables.events(found))


EVENTS = Part(
    "events", "milliseconds of an event: bare, with the journal, in a live session", _events_options, _bench_events
)


def _memory_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--runs", type=positive, default=10, help="one after the other (default: %(default)s)")
    add("--events", type=positive, default=300, help="of each run (default: %(default)s)")
    add("--step", type=positive, default=12, help="pixels from frame to frame (default: %(default)s)")
    add("--tidy", action="store_true", help="collect garbage, and give free memory back, after each run")
    scan = command.add_argument_group("one long scan")
    add = scan.add_argument
    add("--scan", action="store_true", help="what an hour's scan holds in its course, in simulated time, instead")
    add("--side", type=positive, default=120, help="frames along each side of it (default: %(default)s)")
    add("--memory", type=positive, default=32, metavar="MB", help="reconstructor.memory_mb (default: %(default)s)")
    add_device(command, "cpu")
    add_out(command)


def _bench_memory(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.memory import Options, memory

    prepare(args)
    if args.scan:
        from bluesky_cdi.bench.suites import scan_memory as bench

        scan = bench.Options(side=args.side, step_px=args.step, memory_mb=args.memory, device=args.device)
        found = bench.scan_memory(scan, tell)
        return finish(args, found, tables.scan_memory(found))
    found = memory(Options(args.runs, args.events, args.step, args.tidy), tell)
    return finish(args, found, tables.memory(found))


MEMORY = Part(
    "memory", "what the three processes of a live session hold, run after run", _memory_options, _bench_memory
)
