"""The result of `suites.trust` as tables in Markdown, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi import viz
from bluesky_cdi.bench.reports.text import markdown
from bluesky_cdi.bench.suites.trust import Judged, cells
from bluesky_cdi.evaluation import interval_coverage
from bluesky_cdi.protocols import FloatArray

LEVELS = (50, 90, 95)
PARTS = ("phase", "amplitude")
# Shares that a figure's lines are drawn at, bins of predicted deviations, and the most pixels of a scan in it.
SHARES, BINS, MOST_PIXELS = tuple(k / 20 for k in range(1, 20)), 12, 4000


def tables(found: Mapping[str, Any]) -> str:
    """Set all cells out, what they come to, and the recorded scans.

    Parameters
    ----------
    found : Mapping
        What `suites.trust.trust` gave.
    """
    by_cell = cells(found["rows"])
    plain = {key: cell for key, cell in by_cell.items() if not key[-1]}
    faulty = {key: cell for key, cell in by_cell.items() if key[-1]}
    blocks = [
        f"{', '.join(found['machine']['devices'])}, {found['machine']['threads']} CPU thread(s); shares in % inside "
        "the intervals of 50 / 90 / 95 %; ranks: Spearman, by pixel (if the prediction were exact), by frame",
        markdown(HEAD, [_row(key, cell) for key, cell in plain.items()]),
        markdown(SUMMARY, [_summary(name, group) for name, group in _by_way(plain).items()]),
    ]
    if faulty:
        lines = [[key[-1], f"{100 * cell['flagged']:.0f} %", *_row(key, cell)] for key, cell in faulty.items()]
        blocks.append(markdown(["what is wrong", "scans that say so", *HEAD], lines))
    if found["recorded"]:
        blocks.append(markdown(RECORDED, [_recorded(row) for row in found["recorded"]]))
    return "\n\n".join(blocks)


def stopped(found: Mapping[str, Any]) -> str:
    """Set the result of `suites.trust_target` out: each scan, and what they come to.

    Parameters
    ----------
    found : Mapping
        What `stopped_at_target` gave.
    """
    rows, target = found["rows"], found["settings"]["target_rad"]
    lines = [
        [
            row["scene"],
            str(row["frames"]),
            "yes" if row["reached"] else "no",
            *("-" if row[key] is None else f"{row[key]:.4f}" for key in ("predicted_rad", "actual_rad")),
        ]
        for row in rows
    ]
    table = markdown(["scan", "frames", "reached", "predicted, rad", "actual, rad"], lines)
    actual = np.array([row["actual_rad"] for row in rows if row["reached"]], np.float64)
    if not actual.size:
        return f"{table}\n\nno scan reached {target:g} rad"
    over = actual / target
    return (
        f"{table}\n\nstopped at {target:g} rad: actual {actual.mean():.4f} rad on average, {over.mean():.2f} of the "
        f"target ({over.min():.2f} to {over.max():.2f}); {np.sum(np.abs(over - 1) <= 0.2)} of {over.size} within 20 %"
    )


HEAD = [
    "weights, estimator, object", "photons", "overlap", "scans", "phase inside", "amplitude inside",
    "predicted / actual, phase", "amplitude", "phase rms, rad", "by pixel", "by frame", "s",
]  # fmt: skip
SUMMARY = [
    "weights, estimator, object", "cells", "phase, mean of the cells", "furthest from nominal", "amplitude",
    "furthest", "by pixel", "by frame",
]  # fmt: skip
RECORDED = ["weights, estimator", "scan", "frames", "halves inside, phase", "amplitude", "check"]


def _row(key: tuple[str, ...], cell: Mapping[str, float]) -> list[str]:
    weights, estimator, way, photons, overlap, _ = key
    return [
        f"{weights}, {estimator}, {way}",
        photons,
        overlap,
        f"{cell['scans']:.0f}",
        *(_shares(cell, part) for part in PARTS),
        *(f"{cell[f'{part}_ratio']:.2f}" for part in PARTS),
        f"{cell['phase_rms']:.3f}",
        f"{cell['phase_rank']:.2f} ({cell['phase_rank_if_exact']:.2f})",
        f"{cell['frames_rank']:.2f}",
        f"{cell['seconds']:.1f}",
    ]


def _shares(cell: Mapping[str, float], part: str) -> str:
    return " / ".join(f"{100 * cell[f'{part}_inside_{level}']:.0f}" for level in LEVELS)


def _by_way(plain: Mapping[tuple[str, ...], Mapping[str, float]]) -> dict[str, list[Mapping[str, float]]]:
    found: dict[str, list[Mapping[str, float]]] = {}
    for key, cell in plain.items():
        found.setdefault(", ".join(key[:3]), []).append(cell)
    return found


def _summary(name: str, group: Sequence[Mapping[str, float]]) -> list[str]:
    """Average the cells of one way, and find those furthest from nominal, at each level."""
    line = [name, str(len(group))]
    for part in PARTS:
        shares = np.array([[cell[f"{part}_inside_{level}"] for level in LEVELS] for cell in group]) * 100
        away = shares - np.array(LEVELS)
        furthest = away[np.abs(away).argmax(axis=0), range(len(LEVELS))]
        line.append(" / ".join(f"{value:.0f}" for value in shares.mean(axis=0)))
        line.append(" / ".join(f"{value:+.0f}" for value in furthest))
    return [*line, *(f"{np.nanmean([cell[rank] for cell in group]):.2f}" for rank in ("phase_rank", "frames_rank"))]


def _recorded(row: Mapping[str, Any]) -> list[str]:
    check, name = row.get("check", {}), f"{row['weights']}, {row['estimator']}"
    if "inside" not in check:
        return [name, row["scan"], str(row["frames"]), "-", "-", check.get("says") or row["why"]]
    shares = (" / ".join(f"{100 * share:.0f}" for share in check["inside"][part].values()) for part in PARTS)
    return [name, row["scan"], str(row["frames"]), *shares, check["says"] or "agrees"]


class Reliability:
    """Gathers pixels of scans, and draws how predicted errors go with real ones."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[FloatArray, FloatArray]]] = {}

    def __call__(self, name: str, judged: Judged) -> None:
        """Keep the phases of a scan under the name of a line."""
        error, std = judged.errors["phase"], judged.std["phase"]
        some = slice(None, None, max(1, len(error) // MOST_PIXELS))
        self._kept.setdefault(name, []).append((error[some], std[some]))

    def draw(self, path: Path) -> None:
        """Draw a reliability diagram: actual rms by predicted deviation, and shares by nominal ones.

        Parameters
        ----------
        path : Path
            File to write.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 5), layout="constrained", dpi=110)
        size, shares = figure.subplots(1, 2)
        for name, scans in self._kept.items():
            error, std = (np.concatenate(each) for each in zip(*scans, strict=True))
            edges = np.quantile(std, np.linspace(0, 1, BINS + 1))
            which = np.clip(np.searchsorted(edges, std, side="right") - 1, 0, BINS - 1)
            bins = [k for k in range(BINS) if (which == k).any()]
            rms = [[np.sqrt(np.mean(values[which == k] ** 2)) for k in bins] for values in (std, error)]
            size.loglog(*rms, marker="o", markersize=3, label=name)
            inside = interval_coverage(error, std, SHARES)
            shares.plot(list(inside), list(inside.values()), marker="o", markersize=3, label=name)
        for ax, low, high in ((size, *size.get_xlim()), (shares, 0.0, 1.0)):
            ax.plot([low, high], [low, high], color="grey", linewidth=1, linestyle="--")
        size.set(xlabel="predicted deviation of the phase, rad", ylabel="actual rms error, rad")
        shares.set(xlabel="probability of the interval (normal)", ylabel="share of phase errors inside")
        size.legend(fontsize=7)
        viz.save_figure(figure, path)
