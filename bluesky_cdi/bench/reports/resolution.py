"""The result of `suites.resolution` as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_cdi.bench.reports.text import aligned


def resolution(found: Mapping[str, Any]) -> str:
    """Set the result out, a line a scan; lengths are full periods."""
    lines = [["sample", "photons", "wanted", "frames", "halves", "truth", "checks", "cost", "stopped by"]]
    for row in found["rows"]:
        lines.append(
            [
                row["sample"],
                f"{row['photons']:.0e}",
                _nm(row["target_m"]),
                str(row["frames"]),
                _nm(row["halves_m"]),
                _nm(row["true_m"]),
                str(row["checks"]),
                f"{row['cost']:.2f}",
                row["reason"].split(" of ")[0],
            ]
        )
    return aligned(lines)


def _nm(length_m: float | None) -> str:
    return "none" if length_m is None else f"{1e9 * length_m:.0f} nm"
