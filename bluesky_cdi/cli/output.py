"""What the commands print: results on standard output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any


def _say_result(args: argparse.Namespace, numbers: dict[str, Any], rows: Sequence[tuple[str, str]]) -> None:
    if args.json:
        _say(json.dumps(numbers, indent=1, default=str))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _say(f"{name:<{width}}  {value}")


def _say(text: str) -> None:
    print(text)  # noqa: T201 (a command line's own output)
