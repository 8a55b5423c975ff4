"""``bench host``: a scan whose reconstruction is on a host that fails again and again."""

from __future__ import annotations

import argparse
from typing import Any

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.bench.common import add_out, finish, prepare, tell


def add_host(parts: Any, common: argparse.ArgumentParser) -> None:
    """Add ``bench host`` to `parts`, with the `common` options.

    Parameters
    ----------
    parts : argparse subparsers
        Those of ``bluesky-cdi bench``.
    common : ArgumentParser
        Options that every command has.
    """
    command = parts.add_parser(
        "host", parents=[common], help="what a scan loses while the host of its reconstruction fails again and again"
    )
    add = command.add_argument
    add("--frames", type=positive, default=10_000, help="of the raster, the next square (default: %(default)s)")
    add("--faults", type=positive, default=20, help="spread over the raster (default: %(default)s)")
    add("--exposure", type=float, default=0.05, metavar="S", help="of a frame, seconds (default: %(default)s)")
    add("--unreachable", type=float, default=60.0, metavar="S", help="the host is not heard (default: %(default)s s)")
    add("--step", type=positive, default=12, help="pixels from frame to frame (default: %(default)s)")
    add_out(command)
    command.set_defaults(run=_bench_host)


def _bench_host(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.host import Options, host

    prepare(args)
    found = host(Options(args.frames, args.faults, args.exposure, args.unreachable, args.step), tell)
    return finish(args, found, tables.host(found))
