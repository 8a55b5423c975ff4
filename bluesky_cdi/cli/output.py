"""What the commands print: results on standard output."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.plain import to_json


def say_result(args: argparse.Namespace, numbers: dict[str, Any], rows: Sequence[tuple[str, str]]) -> None:
    """Print a result: as JSON if that is asked for, else as a table of names and values.

    Parameters
    ----------
    args : Namespace
        With ``json``.
    numbers : dict
        What JSON says.
    rows : sequence of tuple of str
        What the table says.
    """
    if args.json:
        say(to_json(numbers, indent=1))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def refuse_to_replace(targets: Sequence[Path], sources: Sequence[Path], *, force: bool) -> None:
    """Refuse to write over files: over what is read in any case, over others unless that is wanted.

    Parameters
    ----------
    targets, sources : sequence of Path
        What is written; what is read.
    force : bool
        Whether files that exist may be replaced.

    Raises
    ------
    BlueskyCDIError
        If a target is a source, or exists.
    """
    own = {path.resolve() for path in sources}
    for path in targets:
        if path.resolve() in own:
            raise BlueskyCDIError(f"{path} is what is read; measured data are not replaced. Name another OUT.")
        if path.exists() and not force:
            raise BlueskyCDIError(f"{path} exists. Name another OUT, or give --force to replace it.")


def command_line(*words: object) -> str:
    """Give a command that can be typed as it stands, where this one was called.

    ``bluesky-cdi`` alone is found only where its folder is on the path.

    Parameters
    ----------
    *words : object
        What follows the name of the program.
    """
    called = Path(sys.argv[0])
    on_path = shutil.which("bluesky-cdi")
    if on_path is not None and Path(on_path).parent.resolve() == Path(sys.executable).parent.resolve():
        program = ["bluesky-cdi"]
    elif called.name == "bluesky-cdi":
        program = [str(called)]
    else:
        program = [sys.executable, "-m", "bluesky_cdi"]
    return shlex.join([*program, *map(str, words)])


def say(text: str) -> None:
    """Print to standard output."""
    print(text)  # noqa: T201 (a command line's own output)


def say_error(text: str) -> None:
    """Print what went wrong to standard error."""
    print(f"bluesky-cdi: {text}", file=sys.stderr)  # noqa: T201 (a command line's own output)
