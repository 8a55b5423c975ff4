"""The result of `suites.single_shot_network` as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_cdi.bench.reports.text import markdown


def table(found: Mapping[str, Any]) -> str:
    """Set the methods out, a line each for every dose: share of frames that succeed, then medians over all samples.

    Parameters
    ----------
    found : Mapping
        What `suites.single_shot_network.beside_network` gave.
    """
    rows, limit = found["rows"], found["settings"]["success_nrmse"]
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["photons"], row["method"]), []).append(row)
    kinds = list(dict.fromkeys(row["object"] for row in rows))
    lines = []
    for (photons, method), those in sorted(groups.items(), key=lambda item: item[0][0]):
        shares = [f"{np.mean([row['error'] < limit for row in those if row['object'] == kind]):.2f}" for kind in kinds]
        middle = [
            float(np.median([np.inf if row[name] is None else row[name] for row in those]))
            for name in ("error", "r_factor", "seconds")
        ]
        lines.append([f"{photons:.0e}", method, *shares, f"{middle[0]:.3f}", f"{middle[1]:.2f}", f"{middle[2]:.2f}"])
    head = ["photons", "method", *(f"ok, {kind}" for kind in kinds), "NRMSE", "R / noise", "s"]
    settings = found["settings"]
    above = f"{settings['seeds']} objects of each kind, {settings['size']} px; ok: NRMSE below {limit}"
    return f"{above}\n\n{markdown(head, lines)}"
