"""``bench host``: a scan whose reconstruction is on a host that fails again and again."""

from __future__ import annotations

import argparse
import signal
import sys

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.bench.common import Part, add_device, add_out, finish, prepare, tell


def _host_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--frames",
        type=positive,
        default=10_000,
        help="of the raster, up to the next square; measured twice (default: %(default)s)",
    )
    add("--faults", type=positive, default=20, help="faults, spread over the second raster (default: %(default)s)")
    add(
        "--source",
        choices=("session", "documents"),
        default="session",
        help="a session with a catalog on the simulated beamline, or documents written to its journal at a rate, "
        "reconstructed by the network (default: %(default)s)",
    )
    add(
        "--exposure",
        type=float,
        default=0.05,
        metavar="S",
        help="of a frame, seconds; of a session's (default: %(default)s)",
    )
    add("--rate", type=positive, default=20, metavar="R", help="frames/s of documents (default: %(default)s)")
    add(
        "--unreachable",
        type=float,
        default=60.0,
        metavar="S",
        help="so long a host that is stopped is not heard, seconds (default: %(default)s)",
    )
    add("--step", type=positive, default=12, help="pixels from frame to frame (default: %(default)s)")
    add_device(command)
    add_out(command)


def _bench_host(args: argparse.Namespace) -> int:
    # Whoever ends this ends what it has started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.host import Options, host

    prepare(args)
    if args.source == "documents":
        from bluesky_cdi.bench.machine import devices_of
        from bluesky_cdi.bench.suites import host_documents as documents

        [device] = devices_of(args.device, 1)
        options = documents.Options(args.frames, args.faults, args.rate, args.unreachable, str(device))
        found = documents.host_documents(options, tell)
        return finish(args, found, tables.host(found))
    found = host(Options(args.frames, args.faults, args.exposure, args.unreachable, args.step, args.device), tell)
    return finish(args, found, tables.host(found))


HOST = Part(
    "host",
    "what a scan loses while the host of its reconstruction fails again and again",
    _host_options,
    _bench_host,
)
