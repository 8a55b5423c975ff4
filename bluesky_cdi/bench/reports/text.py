"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Set cells in columns as wide as their longest, to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[f"{text:<{width}}" for text, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Set cells out as a table in Markdown, below the names of the columns."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
