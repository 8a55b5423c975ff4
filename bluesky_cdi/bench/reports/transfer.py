"""The result of `suites.transfer` as a table in Markdown, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi import viz
from bluesky_cdi.bench.reports.text import markdown
from bluesky_cdi.bench.suites.transfer import MARKS


def table(found: Mapping[str, Any]) -> str:
    """Set the tunings out, a line each: the sum of both errors over time.

    Parameters
    ----------
    found : Mapping
        What `suites.transfer.transfer` gave.
    """
    marks = [f"{share * found['settings']['seconds']:.3g} s" for share in MARKS]
    head = ["instrument", "frames", "from", "steps", "0 s", *marks]
    return markdown(
        head,
        [
            [row["instrument"], str(row["frames"]), row["start"], str(row["curve"][-1]["steps"]), *errors(row)]
            for row in found["rows"]
        ],
    )


def errors(row: Mapping[str, Any]) -> list[str]:
    """Write the errors of a tuning out."""
    return [f"{value:.3f}" for value in _sums(row["curve"])]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw error over the time of tuning: a panel an instrument, a colour a number of frames.

    Parameters
    ----------
    found : Mapping
        What `suites.transfer.transfer` gave.
    path : Path
        File to write.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["instrument"] for row in found["rows"]))
    numbers = list(dict.fromkeys(row["frames"] for row in found["rows"]))
    figure = Figure(figsize=(max(5.0, 3.6 * len(names)), 4.2), layout="constrained", dpi=110)
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for row in (each for each in found["rows"] if each["instrument"] == name):
            seconds = [point["seconds"] for point in row["curve"]]
            style = "-" if row["start"] == "pretrained" else "--"
            colour, label = f"C{numbers.index(row['frames'])}", f"{row['frames']} frames, from {row['start']}"
            ax.plot(seconds, _sums(row["curve"]), style, marker=".", color=colour, label=label)
        ax.set(title=name, xlabel="time of tuning (s)")
    figure.axes[0].set_ylabel("error of hidden patches and frames")
    # Scans of few frames have numbers of their own.
    lines = {label: line for ax in figure.axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2, fontsize=8)
    viz.save_figure(figure, path)


def _sums(curve: Sequence[Mapping[str, float]]) -> list[float]:
    return [point["patches"] + point["frames"] for point in curve]
