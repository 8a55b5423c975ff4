"""The result of `suites.beyond_aperture` as a table in Markdown, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi import viz
from bluesky_cdi.bench.reports.text import markdown

if TYPE_CHECKING:
    from bluesky_cdi.bench.suites.beyond_aperture import Answer, Hidden

COLUMNS = ("deviance", "noise", "within", "beyond", "nrmse", "unsupported", "seconds")


def table(found: Mapping[str, Any]) -> str:
    """Set the methods out, a line each for every kind of scan: medians over seeds.

    Parameters
    ----------
    found : Mapping
        What `suites.beyond_aperture.beyond_aperture` gave.
    """
    groups: dict[tuple[str, float | None, str], list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["scan"], row["photons"], row["method"]), []).append(row)
    lines = [
        [scan, "" if photons is None else f"{photons:.0e}", method, *(_cell(rows, name) for name in COLUMNS)]
        for (scan, photons, method), rows in groups.items()
    ]
    head = ["scan", "photons", "method", "hidden deviance", "noise", "within", "beyond", "NRMSE", "unsupported", "s"]
    if not lines:
        return "no scan was measured"
    above = (
        f"given: the inner {found['settings']['share']:.3g} of each side; of the light of frequencies beyond it "
        f"{np.median([row['measured'] for row in found['rows']]):.2f} falls there"
    )
    return f"{above}\n\n{markdown(head, lines)}"


def draw(hidden: Hidden, answers: Mapping[str, Answer], title: str, path: Path) -> None:
    """Draw phases of answers, below them how much of their contrast the given pixels don't support.

    Parameters
    ----------
    hidden : Hidden
        The scan.
    answers : Mapping of str to Answer
        By the names above their images.
    title : str
        Above all.
    path : Path
        File to write.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from bluesky_cdi.bench.suites.beyond_aperture import unsupported_map

    illuminated = hidden.whole.illuminated
    rows, columns = (np.flatnonzero(illuminated.any(axis=axis)) for axis in (1, 0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    phases = {name: np.angle(answer.object[0].cpu().numpy()) for name, answer in answers.items()}
    # One range for all: that of the last, which knows most.
    low, high = np.quantile(list(phases.values())[-1][illuminated], [0.01, 0.99])
    maps = {name: unsupported_map(each, hidden.whole) for name, each in answers.items() if each.unsupported is not None}
    most = max([float(np.nanquantile(each, 0.995)) for each in maps.values()], default=0.0) or 1.0
    figure = Figure(figsize=(2.6 * len(answers), 5.4), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(answers), squeeze=False)
    for (top, below), name in zip(axes.T, answers, strict=True):
        top.imshow(phases[name][part], cmap="gray", vmin=low, vmax=high)
        top.set_title(name, fontsize=7)
        top.axis("off")
        below.axis("off")
        if name in maps:
            below.imshow(maps[name][part], cmap="magma", vmin=0, vmax=most)
    scale = ScalarMappable(Normalize(0, most), "magma")
    figure.colorbar(scale, ax=axes[1].tolist(), shrink=0.7, label="share of the contrast\nthat no data support")
    figure.suptitle(title, fontsize=9)
    viz.save_figure(figure, path)


def _cell(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return ""
    value = float(np.median(values))
    return f"{value:.1f}" if name == "seconds" else f"{value:.3f}"
