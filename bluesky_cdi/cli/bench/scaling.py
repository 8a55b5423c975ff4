"""``bench scaling``: error over size and training compute."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.bench.common import add_out, finish, prepare, tell


def add_scaling(parts: Any, common: argparse.ArgumentParser) -> None:
    """Add ``bench scaling`` to `parts`, with the `common` options.

    Parameters
    ----------
    parts : argparse subparsers
        Those of ``bluesky-cdi bench``.
    common : ArgumentParser
        Options that every command has.
    """
    command = parts.add_parser(
        "scaling", parents=[common], help="how the error of networks goes with their size and their training"
    )
    add = command.add_argument
    add("records", nargs="+", type=Path, metavar="FILE", help="records (.json) of trainings from nothing")
    add_out(command)
    add("--figure", type=Path, metavar="FILE", help="draw error over compute there")
    command.set_defaults(run=_bench_scaling)


def _bench_scaling(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.reports.scaling import draw, table
    from bluesky_cdi.bench.suites.scaling import scaling

    prepare(args)
    found = scaling(args.records, tell)
    if args.figure:
        draw(found, args.figure)
    return finish(args, found, table(found))
