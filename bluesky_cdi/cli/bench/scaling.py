"""``bench scaling``: error over size and training compute."""

from __future__ import annotations

import argparse
from pathlib import Path

from bluesky_cdi.cli.bench.common import Part, add_out, finish, prepare, tell


def _scaling_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("records", nargs="+", type=Path, metavar="FILE", help="records (.json) of trainings from nothing")
    add_out(command)
    add("--figure", type=Path, metavar="FILE", help="draw error over compute there")


def _bench_scaling(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.reports.scaling import draw, table
    from bluesky_cdi.bench.suites.scaling import scaling

    prepare(args)
    found = scaling(args.records, tell)
    if args.figure:
        draw(found, args.figure)
    return finish(args, found, table(found))


SCALING = Part(
    "scaling", "how the error of networks goes with their size and their training", _scaling_options, _bench_scaling
)
