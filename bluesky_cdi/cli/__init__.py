"""The command ``bluesky-cdi``.

Results go to standard output, everything else to standard error. Exit codes: 0, 1 (failed), 2
(usage), 130 (Ctrl-C).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from bluesky_cdi import __version__
from bluesky_cdi.cli.bench import _add_bench
from bluesky_cdi.cli.browse import _add_browse
from bluesky_cdi.cli.compare import _add_compare
from bluesky_cdi.cli.convert import _add_convert
from bluesky_cdi.cli.demo import _add_demo
from bluesky_cdi.cli.reconstruct import _add_reconstruct
from bluesky_cdi.cli.shell import _add_shell
from bluesky_cdi.cli.train import MODELS, _add_train
from bluesky_cdi.errors import BlueskyCDIError

__all__ = ["MODELS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from bluesky_cdi.log import configure_logging

    args = _parser().parse_args(argv)
    configure_logging(logging.WARNING - 10 * args.verbose + 10 * args.quiet)
    try:
        return int(args.run(args))
    except BlueskyCDIError as err:
        print(f"bluesky-cdi: {err}", file=sys.stderr)  # noqa: T201 (a command line's own output)
        return 1
    except KeyboardInterrupt:
        print("bluesky-cdi: interrupted", file=sys.stderr)  # noqa: T201 (a command line's own output)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bluesky-cdi", description="Live, adaptive coherent diffraction imaging with Bluesky."
    )
    parser.add_argument("--version", action="version", version=f"bluesky-cdi {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("-c", "--config", type=Path, action="append", default=[], metavar="FILE", help="YAML file; later ones win")
    add("-v", "--verbose", action="count", default=0, help="say more (twice: even more)")
    add("-q", "--quiet", action="count", default=0, help="say less, no progress bar")
    add("--json", action="store_true", help="print the result as JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (
        _add_demo, _add_reconstruct, _add_convert, _add_compare, _add_browse, _add_shell, _add_train, _add_bench,
    ):  # fmt: skip
        add_command(commands, common)
    return parser
