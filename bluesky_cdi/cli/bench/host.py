"""``bench host``: a scan whose reconstruction is on a host that fails again and again."""

from __future__ import annotations

import argparse

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.bench.common import Part, add_out, finish, prepare, tell


def _host_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--frames",
        type=positive,
        default=10_000,
        help="of the raster, up to the next square; measured twice (default: %(default)s)",
    )
    add("--faults", type=positive, default=20, help="faults, spread over the second raster (default: %(default)s)")
    add("--exposure", type=float, default=0.05, metavar="S", help="of a frame, seconds (default: %(default)s)")
    add(
        "--unreachable",
        type=float,
        default=60.0,
        metavar="S",
        help="so long a host that is stopped is not heard, seconds (default: %(default)s)",
    )
    add("--step", type=positive, default=12, help="pixels from frame to frame (default: %(default)s)")
    add_out(command)


def _bench_host(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.host import Options, host

    prepare(args)
    found = host(Options(args.frames, args.faults, args.exposure, args.unreachable, args.step), tell)
    return finish(args, found, tables.host(found))


HOST = Part(
    "host",
    "what a scan loses while the host of its reconstruction fails again and again",
    _host_options,
    _bench_host,
)
