"""``bluesky-cdi shell``: IPython with a profile."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any


def add_shell(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    shell = commands.add_parser(
        "shell", parents=[common], help="IPython with RE, devices, plans and catalog of a profile"
    )
    shell.add_argument("--profile", default="sim", metavar="NAME", help="its name, or a folder (default: %(default)s)")
    shell.add_argument("--script", type=Path, metavar="FILE", help="run this file in the session, then end")
    shell.set_defaults(run=_shell)


def _shell(args: argparse.Namespace) -> int:
    from IPython import start_ipython
    from traitlets.config import Config as IPythonConfig

    from bluesky_cdi.config import FILES_VARIABLE
    from bluesky_cdi.profiles import profile_directory

    if not args.quiet:
        # Said if a host is configured: else nobody would see whether it is used.
        logging.getLogger("bluesky_cdi.remote.whereabouts").setLevel(logging.INFO)
    folder = profile_directory(args.profile)
    if args.config:
        os.environ[FILES_VARIABLE] = os.pathsep.join(str(path.resolve()) for path in args.config)
    settings = IPythonConfig()
    settings.InteractiveShellApp.exec_files = [str(path) for path in sorted((folder / "startup").glob("*.py"))]
    if args.script:
        settings.InteractiveShellApp.file_to_run = str(args.script)
    start_ipython(argv=[], config=settings)
    return 0
