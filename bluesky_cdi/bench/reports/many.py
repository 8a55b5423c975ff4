"""The result of `suites.many` as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_cdi.bench.reports.text import aligned


def many(found: Mapping[str, Any]) -> str:
    """Set the result out, a line a turn, and the efficiency below.

    Parameters
    ----------
    found : Mapping
        What the suite returned.
    """
    lines = [["workers", "series, s", "CPU s a scan", "on a processor", "begun in, s"]]
    for turn in found["turns"]:
        lines.append(
            [
                str(turn["workers"]),
                f"{turn['seconds']:.1f}",
                f"{turn['cpu_s_a_scan']:.2f}",
                f"{turn['share_of_processors']:.0%}",
                f"{turn['begin_s']:.1f}",
            ]
        )
    by, number = found["efficiency"], found["settings"]["workers"]
    said = f"efficiency of {number} workers: {by['clock']:.2f} by the clock, {by['processors']:.2f} by the processors"
    load = f"load before: {found['load_before']:.1f} on {found['machine']['cores']} cores"
    if found["is_busy"]:
        load += "; other programs compute, and the clock says little"
    return "\n".join([aligned(lines), said, load])
