"""``bluesky-cdi calibrate``: predicted errors made true to size, on simulated scans."""

from __future__ import annotations

import argparse
import os
from typing import Any

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.output import say_result

# Processes beyond which a GPU is shared by too many.
MOST_JOBS = 8


def add_calibrate(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "calibrate", parents=[common], help="make predicted errors true to size: once for each network"
    )
    add = command.add_argument
    add("weights", help="shipped weights, or a .safetensors file, beside which the record goes; none: engines alone")
    add("--estimators", nargs="+", default=[], metavar="NAME", help="uncertainty estimators (default: those of a run)")
    add("--members", nargs="+", default=[], metavar="FILE", help="weights of a deep ensemble besides the network's")
    add("--scenes", type=positive, default=96, metavar="N", help="simulated scans (default: %(default)s)")
    add("--jobs", type=positive, metavar="N", help="processes (default: one a core, at most 8)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    command.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from bluesky_cdi.reconstruction.calibration.make import calibrate
    from bluesky_cdi.signals import EndingSignals

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if not args.jobs or args.jobs == 1:
        torch.set_num_threads(1)
    # Each scan is looked at by each estimator: two, where none is named.
    looks = args.scenes * (len(args.estimators) or 2)
    # Told to end, it ends its processes too.
    with EndingSignals(), tqdm(total=looks, unit="look", disable=bool(args.quiet)) as bar:
        path, found = calibrate(
            None if args.weights == "none" else args.weights,
            args.estimators,
            scenes=args.scenes,
            device=device,
            jobs=args.jobs or min(MOST_JOBS, os.cpu_count() or 1),
            members=args.members,
            on_progress=lambda _: bar.update(),
        )
    rows = [("record", str(path))]
    for each in found:
        for name, group in each.groups.items():
            like = f" (as of {group.like}: too few)" if group.like else ""
            said = f"{group.scenes} scans{like}; phase x {group.phase.scale:.2f}, intervals " + ", ".join(
                f"{width:.2f}" for width in group.phase.intervals
            )
            rows.append(
                (f"{each.estimator}, {name} photons a pixel" if "1e" in name else f"{each.estimator}, {name}", said)
            )
    say_result(args, {"record": str(path), "estimators": [each.as_json() for each in found]}, rows)
    return 0
