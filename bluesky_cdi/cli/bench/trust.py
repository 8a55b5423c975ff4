"""``bench trust``: what predicted errors are worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.cli.arguments import above_0, count, positive
from bluesky_cdi.cli.bench.common import Part, add_data, add_device, add_out, data_folder, finish, prepare, tell
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import torch

# The names of `bench.suites.trust.SCENES`, which would load torch.
SCENES = ("zone plate, star", "zone plate, photograph", "mirrors, circuit", "mirrors, cells")


def _trust_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--weights", nargs="+", default=["canvas-small"], metavar="NAME", help="shipped, files, or none: LSQ-ML alone")
    add("--estimators", nargs="+", default=[], metavar="NAME", help="uncertainty estimators (default: the usual one)")
    add("--members", nargs="+", default=[], metavar="FILE", help="weights of a deep ensemble besides the network's")
    add("--cases", nargs="+", choices=SCENES, default=list(SCENES), metavar="NAME", help=f"of {'; '.join(SCENES)}")
    add(
        "--doses", nargs="+", type=above_0, metavar="PHOTONS", help="of a frame (default: 1e4 1e5 1e6; of --target 1e5)"
    )
    add("--overlaps", nargs="+", type=float, default=[0.5, 0.67, 0.8], metavar="SHARE", help="linear overlaps")
    add("--seeds", type=positive, default=1, help="scans of each case (default: %(default)s)")
    add("--first-seed", type=count, default=0, help="of the scans (default: %(default)s)")
    add(
        "--target",
        type=above_0,
        metavar="RAD",
        help="instead, stop ten scans for each seed when the predicted phase error has reached this, and measure it",
    )
    add("--no-faults", action="store_true", help="leave out wrong probes and positions")
    add("--threads", type=positive, default=1, help="CPU threads (default: %(default)s)")
    add_data(command)
    add_device(command, "cpu")
    add_out(command)
    add("--figure", type=Path, metavar="FILE", help="draw reliability diagrams there")


def _bench_trust(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports.trust import Reliability, tables
    from bluesky_cdi.bench.suites.trust import DOSES, Options, trust

    prepare(args)
    if bad := [overlap for overlap in args.overlaps if not 0 <= overlap < 1]:
        raise BlueskyCDIError(f"--overlaps must be at least 0 and below 1; got {bad[0]:g}")
    torch.set_num_threads(args.threads)
    [device] = devices_of(args.device, 1)
    if args.target is not None:
        return _bench_target(args, device)
    options = Options(
        args.weights,
        args.estimators,
        args.cases,
        args.doses or DOSES,
        args.overlaps,
        args.seeds,
        not args.no_faults,
        data_folder(args),
        device,
        args.first_seed,
        args.members,
    )
    diagram = Reliability()
    found = trust(options, tell, diagram)
    if args.figure:
        diagram.draw(args.figure)
    return finish(args, found, tables(found))


TRUST = Part("trust", "what predicted errors are worth: shares, sizes, ranks", _trust_options, _bench_trust)


def _bench_target(args: argparse.Namespace, device: torch.device) -> int:
    from bluesky_cdi.bench.reports.trust import stopped
    from bluesky_cdi.bench.suites.trust_target import Options, stopped_at_target

    [dose, *others] = args.doses or [1e5]
    if len(args.weights) > 1 or others:
        raise BlueskyCDIError("--target takes one network and one dose: name them with --weights and --doses")
    options = Options(args.target, args.weights[0], dose, 10 * args.seeds, device=device, first_seed=args.first_seed)
    found = stopped_at_target(options, tell)
    return finish(args, found, stopped(found))
