"""``bench resolution``: scans that stop at a wanted resolution, and whether they have it."""

from __future__ import annotations

import argparse

from bluesky_cdi.cli.arguments import above_0, positive
from bluesky_cdi.cli.bench.common import Part, add_out, finish, prepare, tell


def _resolution_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--samples", nargs="+", default=["star", "leaves"], metavar="KIND", help="(default: star leaves)")
    add(
        "--doses", type=above_0, nargs="+", default=[3e3, 1e4, 3e4], metavar="PHOTONS",
        help="of a frame (default: 3e3 1e4 3e4)",
    )  # fmt: skip
    add(
        "--targets", type=above_0, nargs="+", default=[75.0, 100.0], metavar="NM", help="full periods (default: 75 100)"
    )
    add("--seeds", type=positive, default=1, help="scans of each (default: %(default)s)")
    add("--budget", type=positive, default=250, help="most frames of a scan (default: %(default)s)")
    add("--reconstructor", default="pinn", help="name of it (default: %(default)s)")
    add_out(command)


def _bench_resolution(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports.resolution import resolution as table
    from bluesky_cdi.bench.suites.resolution import Options, resolution

    prepare(args)
    torch.set_num_threads(1)
    targets_m = [1e-9 * target for target in args.targets]
    options = Options(args.samples, args.doses, targets_m, args.seeds, args.budget, args.reconstructor)
    found = resolution(options, tell)
    return finish(args, found, table(found))


RESOLUTION = Part(
    "resolution",
    "simulated scans that stop at a wanted resolution, and whether they have it",
    _resolution_options,
    _bench_resolution,
)
