"""``bluesky-cdi bench pretraining``: what a frame encoder has learned without labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.cli.arguments import above_0, count, positive
from bluesky_cdi.cli.bench.common import Part, add_device, add_out, finish, prepare, tell

if TYPE_CHECKING:
    import torch

    from bluesky_cdi.models.frame_weights import TrainedFrameModel


def _pretraining_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "encoder",
        type=Path,
        nargs="?",
        help="file that `bluesky-cdi pretrain` wrote (default: what comes with the package)",
    )
    add("--scans", type=count, default=160, help="of the linear models of class tokens (default: %(default)s; 0: none)")
    add(
        "--weights",
        default="canvas-small",
        metavar="NAME",
        help="whose critic is held against it (default: %(default)s)",
    )
    add("--figure", type=Path, metavar="FILE", help="draw frames, what was shown of them, and what was predicted")
    add("--photons", type=float, default=1e5, help="of a frame of the figure's scan (default: %(default)g)")
    add("--scan", type=Path, metavar="FILE", help="draw a window of this recorded scan instead of a simulated one")
    add_device(command)
    add_out(command)


def _bench_pretraining(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.machine import devices_of, record
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.pretraining import linear_probes
    from bluesky_cdi.models.frame_weights import SHIPPED_ENCODER, load_frame_model
    from bluesky_cdi.models.weights import load_weights

    prepare(args)
    [device] = devices_of(args.device, 1)
    trained = load_frame_model(args.encoder or SHIPPED_ENCODER, device)
    if args.scans:
        found = linear_probes(trained, load_weights(args.weights, device), args.scans, device, tell)
    else:
        found = record([device], {"encoder": trained.name, "encoder_sha256": trained.sha256}, rows=[])
    found["predicted"] = _draw(args, trained, device) if args.figure else trained.record.get("validation", {})
    return finish(args, found, tables.pretraining(found))


PRETRAINING = Part(
    "pretraining",
    "what a frame encoder predicts of hidden frames, and its class tokens tell",
    _pretraining_options,
    _bench_pretraining,
)


def _draw(args: argparse.Namespace, trained: TrainedFrameModel, device: torch.device) -> dict[str, dict[str, float]]:
    """Draw the figure; what its scan's hidden pixels say, by the scan's name."""
    from bluesky_cdi import viz
    from bluesky_cdi.bench.suites.pretraining import masked_frames, recorded_window, simulated_window

    patch = trained.model.config.patch
    if args.scan:
        scans, shown, pixel_m = recorded_window(args.scan, patch, device)
        name = args.scan.name
    else:
        scans, shown, pixel_m = simulated_window(args.photons, patch, device)
        name = f"simulated, {args.photons:.0e} photons a frame"
    frames, objects, mask, values = masked_frames(trained, scans, shown)
    viz.save_figure(viz.show_masked_frames(frames, objects, mask, pixel_m=pixel_m, title=name), args.figure)
    return {name: values}


def _transfer_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("encoder", nargs="?", default="frames.encoder", help="frame encoder, its name or file (default: %(default)s)")
    add(
        "--instruments", nargs="+", choices=["star64", "p25", "simulated"], default=["simulated"], metavar="NAME",
        help="star64 and p25, which are recorded, or simulated (default: simulated)",
    )  # fmt: skip
    add("--frames", type=positive, nargs="+", default=[16, 64, 256], help="tuned on, so many (default: 16 64 256)")
    add(
        "--seconds",
        type=above_0,
        default=60.0,
        help="time of a tuning, on a CPU the processor's (default: %(default)s)",
    )
    add("--epochs", type=count, default=20, help="of LSQ-ML for the probe (default: %(default)s)")
    add("--seed", type=count, default=1, help="of all that is random (default: %(default)s)")
    add("--data", type=Path, metavar="DIR", help="folder of recorded scans")
    add_device(command, "cpu")
    add("--figure", type=Path, metavar="FILE", help="draw the learning curves there")
    add_out(command)


def _bench_transfer(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports.transfer import draw, table
    from bluesky_cdi.bench.suites.transfer import Options, transfer
    from bluesky_cdi.models.frame_weights import load_frame_model
    from bluesky_cdi.models.weights import path_of

    prepare(args)
    torch.set_num_threads(1)
    [device] = devices_of(args.device, 1)
    options = Options(args.instruments, args.frames, args.seconds, args.epochs, args.seed, args.data, device)
    found = transfer(load_frame_model(path_of(args.encoder)), options, tell)
    if args.figure:
        draw(found, args.figure)
    return finish(args, found, table(found))


TRANSFER = Part(
    "transfer",
    "how fast a frame encoder learns an instrument that it has not seen",
    _transfer_options,
    _bench_transfer,
)
