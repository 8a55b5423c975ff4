"""``bluesky-cdi restore``: what a session that was killed has measured comes to the catalog."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import configured, reached_catalog, restored
from bluesky_cdi.cli.output import say_result


def add_restore(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    restore = commands.add_parser(
        "restore", parents=[common], help="bring to the catalog what a killed session has measured (the next does too)"
    )
    restore.add_argument(
        "directory", type=Path, nargs="?", help="folder of an embedded catalog (default: the configured one)"
    )
    restore.set_defaults(run=_restore)


def _restore(args: argparse.Namespace) -> int:
    with reached_catalog(args.directory, configured(args).catalog, feed=False) as (catalog, directory):
        lines = restored(catalog, directory)
    rows = [line.partition(": ")[::2] for line in lines] or [("nothing", "the journal is empty: the catalog has all")]
    say_result(args, {"runs": lines}, rows)
    return int(any(name == "not restored" for name, _ in rows))
