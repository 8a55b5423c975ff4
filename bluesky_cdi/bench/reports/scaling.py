"""The result of `suites.scaling` as a table in Markdown, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluesky_cdi import viz
from bluesky_cdi.bench.reports.text import markdown


def table(found: Mapping[str, Any]) -> str:
    """Set the networks out, a line each, the cheapest training first.

    Parameters
    ----------
    found : Mapping
        What `suites.scaling.scaling` gave.
    """
    rows = sorted(found["rows"], key=lambda row: (row["parameters"], row["flop"]))
    doses = list(rows[0]["nrmse"])
    head = [
        "model",
        "parameters",
        "s",
        "frames",
        "FLOP of training",
        *(f"NRMSE at {float(d):.0e}" for d in doses),
        "mean",
    ]
    return markdown(
        head,
        [
            [
                row["model"],
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['seconds']:.0f}",
                f"{row['frames'] / 1e6:.2f} M",
                f"{row['flop']:.1e}",
                *(f"{row['nrmse'][dose]:.3f}" for dose in doses),
                f"{row['error']:.3f}",
            ]
            for row in rows
        ],
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw error over training compute, a line for each size.

    Parameters
    ----------
    found : Mapping
        What `suites.scaling.scaling` gave.
    path : Path
        File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained", dpi=110)
    ax = figure.subplots()
    sizes: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in found["rows"]:
        sizes.setdefault((row["parameters"], row["model"]), []).append((row["flop"], row["error"]))
    for (parameters, model), points in sorted(sizes.items()):
        flop, error = zip(*sorted(points), strict=True)
        ax.loglog(flop, error, marker="o", label=f"{parameters / 1e6:.2g} M parameters ({model})")
    ax.set(xlabel="floating point operations of training", ylabel="NRMSE on held-out scans, geometric mean of doses")
    ax.legend(fontsize=8)
    viz.save_figure(figure, path)
