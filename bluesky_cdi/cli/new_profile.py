"""``bluesky-cdi new-profile``: a folder to begin with at a beamline of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.output import command_line, say_result


def add_new_profile(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "new-profile",
        parents=[common],
        help="write a profile for your beamline, simulated until you put your devices in",
    )
    command.add_argument("folder", type=Path, help="folder to make")
    command.set_defaults(run=_new_profile)


def _new_profile(args: argparse.Namespace) -> int:
    from bluesky_cdi.profiles import write_profile

    written = write_profile(args.folder, args.folder.resolve().name)
    edit = ", ".join(str(path) for path in written if path.name in ("config.yaml", "10-devices.py"))
    next_steps = {
        "edit": f"{edit} (the lines marked EDIT)",
        "check": command_line("doctor", args.folder),
        "run": command_line("shell", "--profile", args.folder),
    }
    say_result(
        args, {"written": list(map(str, written)), **next_steps}, [("written", str(args.folder)), *next_steps.items()]
    )
    return 0
