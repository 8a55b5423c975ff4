"""``bench many``: what more workers are worth."""

from __future__ import annotations

import argparse

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.bench.common import Part, add_out, finish, prepare, tell


def _many_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--scans", type=positive, default=8, help="in the series (default: %(default)s)")
    add("--workers", type=positive, default=2, help="to be compared with one (default: %(default)s)")
    add("--repeats", type=positive, default=3, help="of each, in turn (default: %(default)s)")
    add("--iterations", type=positive, default=60, help="of LSQ-ML (default: %(default)s)")
    add("--frame-px", type=positive, default=64, help="pixels along a side of the frames (default: %(default)s)")
    add_out(command)


def _bench_many(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports.many import many as table
    from bluesky_cdi.bench.suites.many import Options, many

    prepare(args)
    torch.set_num_threads(1)
    options = Options(args.scans, args.workers, args.repeats, iterations=args.iterations, frame_px=args.frame_px)
    found = many(options, tell)
    return finish(args, found, table(found))


MANY = Part("many", "a series of scans by one worker of reconstruct-many and by several", _many_options, _bench_many)
