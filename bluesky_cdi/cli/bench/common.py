"""What the parts of ``bluesky-cdi bench`` share."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import make_folder
from bluesky_cdi.cli.output import say
from bluesky_cdi.errors import BlueskyCDIError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Describe a part of ``bluesky-cdi bench``: its name, what `--help` says of it, its options, and what runs it.

    Attributes
    ----------
    name, help : str
        On the command line.
    add_options : callable
        Adds its options to its parser, which has the options of every command.
    run : callable
        Given the parsed arguments, measures and reports; returns the exit code.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--out``."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there as well")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--data``."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the recorded scans (default: $BLUESKY_CDI_DATA)"
    )


def add_device(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    """Add the option ``--device``.

    Parameters
    ----------
    parser : ArgumentParser
        Where it is added.
    default : str
        Its value where it is left out.
    """
    parser.add_argument("--device", default=default, help="auto, cpu, cuda or cuda:0 (default: %(default)s)")


def data_folder(args: argparse.Namespace) -> Path | None:
    """Return the folder of recorded scans, if there is one."""
    stated = args.data or os.environ.get("BLUESKY_CDI_DATA")
    return Path(stated) if stated else None


def needed_data_folder(args: argparse.Namespace) -> Path:
    """Return the folder of recorded scans.

    Raises
    ------
    BlueskyCDIError
        If none is named, or it does not exist.
    """
    folder = data_folder(args)
    if folder is None or not folder.is_dir():
        raise BlueskyCDIError(
            f"recorded scans are needed: name their folder with --data or BLUESKY_CDI_DATA; got {folder}"
        )
    return folder


def prepare(args: argparse.Namespace) -> None:
    """Make the folders of ``--out`` and ``--figure``, if any: before the work, not after it."""
    for path in (args.out, getattr(args, "figure", None)):
        if path is not None:
            make_folder(path.parent)


def tell(line: str) -> None:
    """Log how far a measurement is."""
    logger.info("%s", line)


def finish(args: argparse.Namespace, found: dict[str, Any], text: str) -> int:
    """Write and print a result.

    Parameters
    ----------
    args : Namespace
        With ``out`` and ``json``.
    found : dict
        Plain JSON values.
    text : str
        The same for people.

    Returns
    -------
    int
        The exit code, 0.
    """
    written = json.dumps(found, indent=1)
    if args.out:
        args.out.write_text(written, encoding="utf-8")
    say(written if args.json else text)
    return 0
