"""``bench compression``: bytes a frame, and what fewer of them cost."""

from __future__ import annotations

import argparse

from bluesky_cdi.cli.arguments import above_0, positive
from bluesky_cdi.cli.bench.common import Part, add_data, add_out, data_folder, finish, prepare, tell


def _compression_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--doses", type=above_0, nargs="*", default=[1e3, 1e4, 1e5, 1e6], metavar="PHOTONS",
        help="of a frame, of the simulated scans (default: 1e3 1e4 1e5 1e6); none: recorded scans alone",
    )  # fmt: skip
    add("--frames", type=positive, default=169, help="about how many a simulated scan has (default: %(default)s)")
    add("--epochs", type=positive, default=30, help="of the reconstructions (default: %(default)s)")
    add_data(command)
    add_out(command)


def _bench_compression(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports.compression import compression as table
    from bluesky_cdi.bench.suites.compression import Options, compression

    prepare(args)
    torch.set_num_threads(1)
    folder = data_folder(args)
    if folder is None:
        tell("recorded scans are left out: their folder is named with --data or BLUESKY_CDI_DATA")
    found = compression(folder, Options(tuple(args.doses), frames=args.frames, epochs=args.epochs), tell)
    return finish(args, found, table(found))


COMPRESSION = Part(
    "compression",
    "bytes a frame: HDF5 filters, rounded counts, a prediction with residual",
    _compression_options,
    _bench_compression,
)
