"""The result of `suites.agent` as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_cdi.bench.reports.text import markdown


def agent(found: Mapping[str, Any]) -> str:
    """Set the ways out, a line a sample and embedding.

    Parameters
    ----------
    found : Mapping
        What `suites.agent.agent` gave.
    """
    first = found["settings"]["embeddings"][0]
    head = ["sample", "embedding", "NRMSE at the end", "over all decisions", f"over {first}", "95 %", "CPU s a scan"]
    return markdown(
        head,
        [
            [
                row["sample"],
                row["embedding"],
                f"{row['error']:.3f}",
                f"{row['course']:.3f}",
                f"{row['ratio']:.3f}",
                "{:.3f} to {:.3f}".format(*row["interval"]),
                f"{row['seconds']:.1f}",
            ]
            for row in found["rows"]
        ],
    )
