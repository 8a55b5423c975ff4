"""``bench engines``, ``lsqml`` and ``single-shot``: how good iterative engines are."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.cli.arguments import make_folder, positive
from bluesky_cdi.cli.bench.common import Part, add_data, add_device, add_out, data_folder, finish, prepare, tell
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# The names of `bench.suites.engines.CASES`, and the labels of its `ROWS`, which would load torch.
CASES = ("star_recorded", "p25", "star", "natural", "leaves", "lines", "circuit", "particles")
ROWS = (
    "network",
    "network, 30 of LSQ-ML",
    "LSQ-ML",
    "LSQ-ML, positions refined",
    "rPIE",
    "pty-chi LSQ-ML",
    "pty-chi rPIE",
)


def _engines_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--ptychi",
        metavar="PYTHON",
        help="interpreter of an environment with pty-chi 2.2 (default: our rows alone)",
    )
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    add("--epochs", type=positive, default=100, help="(default: %(default)s)")
    add(
        "--row", action="append", choices=ROWS, default=[], metavar="LABEL", help=f"only this one; of {'; '.join(ROWS)}"
    )
    add("--threads", type=positive, default=2, help="CPU threads of each process (default: %(default)s)")
    add("--speed", action="store_true", help="seconds an epoch of LSQ-ML with many frames instead")
    add("--sizes", type=positive, nargs="+", default=[128, 256], metavar="N", help="of --speed: pixels along a side")
    add("--frames", type=positive, default=10_000, help="of --speed (default: %(default)s)")
    add("--batch", type=positive, default=500, help="of --speed: frames of a mini-batch (default: %(default)s)")
    add_data(command)
    add_device(command, "cpu")
    add_out(command)


def _bench_engines(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.engines import Options, engines, speed

    prepare(args)
    [device] = devices_of(args.device, 1)
    options = Options(args.ptychi, args.row, args.epochs, str(device), args.threads)
    if not options.chosen:
        raise BlueskyCDIError(f"pty-chi's rows need --ptychi; asked for are {', '.join(args.row)}")
    if args.speed:
        found = speed(args.sizes, args.frames, args.batch, options, tell)
        return finish(args, found, tables.speed(found))
    found = engines(args.cases, _data(args), options, tell)
    return finish(args, found, tables.engines(found))


ENGINES = Part(
    "engines",
    "our engines and pty-chi's side by side, on recorded and simulated scans",
    _engines_options,
    _bench_engines,
)


def _lsqml_options(command: argparse.ArgumentParser) -> None:
    add_data(command)
    add_device(command, "cpu")
    add_out(command)


def _bench_lsqml(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.lsqml import lsqml

    prepare(args)
    found = lsqml(_data(args), devices_of(args.device, 1)[0], tell)
    return finish(args, found, tables.lsqml(found))


LSQML = Part("lsqml", "what LSQ-ML's likelihoods and mini-batches are worth", _lsqml_options, _bench_lsqml)


def _single_shot_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--size", type=positive, help="pixels along a side of the frame (default: 96)")
    add("--starts", type=positive, default=20, help="on each frame (default: %(default)s)")
    add("--seeds", type=positive, default=3, help="objects of each kind and dose (default: %(default)s)")
    add(
        "--encoder", type=Path, metavar="FILE",
        help="hold this network (`pretrain --single-frames`) against random starts instead, in frames of 64 pixels "
        "unless --size says otherwise",
    )  # fmt: skip
    add("--figure", type=Path, metavar="FILE", help="draw the reconstructions at the middle dose")
    add("--write", type=Path, metavar="FILE", help="write one frame of each isolated sample there (.npz), and no more")
    add_device(command, "cpu")
    add_out(command)


def _bench_single_shot(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.reports.figures import draw_single_shot
    from bluesky_cdi.bench.suites.single_shot import DOSES, Options, single_shot, write_frames

    prepare(args)
    if args.write:
        make_folder(args.write.parent)
        kinds = write_frames(args.write, args.size or Options.size)
        say_result(
            args, {"frames": str(args.write), "samples": kinds}, [("frames", f"{args.write}: {', '.join(kinds)}")]
        )
        return 0
    [device] = devices_of(args.device, 1)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if args.encoder:
        return _bench_network(args, device)
    options = Options(args.size or Options.size, args.starts, args.seeds, str(device))
    if args.figure:
        draw_single_shot(options, DOSES[1], args.figure)
    found = single_shot(options, tell)
    return finish(args, found, tables.single_shot(found))


def _bench_network(args: argparse.Namespace, device: torch.device) -> int:
    from bluesky_cdi.bench.reports.single_shot_network import table
    from bluesky_cdi.bench.suites.single_shot_network import Options, beside_network
    from bluesky_cdi.models.frame_weights import load_frame_model

    options = Options(args.size or Options.size, args.starts, args.seeds, device=str(device))
    found = beside_network(load_frame_model(args.encoder, device), options, tell)
    return finish(args, found, table(found))


SINGLE_SHOT = Part(
    "single-shot",
    "how often single frames are reconstructed from random starts",
    _single_shot_options,
    _bench_single_shot,
)


def _data(args: argparse.Namespace) -> Path | None:
    """Return the folder of recorded scans; without one they are left out."""
    folder = data_folder(args)
    if folder is None:
        logger.warning("recorded scans are not measured: name their folder with --data or BLUESKY_CDI_DATA")
    return folder
