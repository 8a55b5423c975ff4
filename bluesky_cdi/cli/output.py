"""What the commands print: results on standard output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any


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
        say(json.dumps(numbers, indent=1, default=str))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def say(text: str) -> None:
    """Print to standard output."""
    print(text)  # noqa: T201 (a command line's own output)
