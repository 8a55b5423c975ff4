"""``bluesky-cdi restore``: what a session that was killed has measured comes to the catalog."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import OWN, configured, meant_elsewhere, reached_catalog, restored
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError


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
    restore.add_argument(
        "--to",
        metavar="ADDRESS",
        help="of the Tiled server whose catalog gets the runs (its key: ?api_key=..., or catalog.api_key in -c FILE); "
        f"{OWN}: the folder's own catalog. Default: that of the session",
    )
    restore.set_defaults(run=_restore)


def _restore(args: argparse.Namespace) -> int:
    settings = configured(args).catalog
    folder = (args.directory or settings.directory).expanduser()
    to = args.to or (settings.uri if args.directory is None else None)
    if args.to and not (folder / "journal").is_dir():
        raise BlueskyCDIError(f"{folder} holds no journal: give the folder of a session, whose runs wait there")
    if args.to is None and (elsewhere := meant_elsewhere(folder, to)):
        raise BlueskyCDIError(elsewhere)
    if to in (None, OWN):
        reached = reached_catalog(folder, settings, feed=False, make=to == OWN)
    else:
        reached = reached_catalog(None, settings.model_copy(update={"uri": to, "directory": folder}), feed=False)
    with reached as (catalog, directory):
        lines = restored(catalog, directory)
    rows = [line.partition(": ")[::2] for line in lines] or [("nothing", "the journal is empty: the catalog has all")]
    say_result(args, {"runs": lines}, rows)
    return int(any(name == "not restored" for name, _ in rows))
