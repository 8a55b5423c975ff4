"""The result of `suites.quality` as text and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi import viz
from bluesky_cdi.bench.cases import photons
from bluesky_cdi.bench.checked import CHECKED
from bluesky_cdi.bench.methods import CONVERGED, Network, rpie_name
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.bench.reports.text import aligned
from bluesky_cdi.bench.suites.design_figures import DesignFigure
from bluesky_cdi.evaluation import Comparison
from bluesky_cdi.protocols import ComplexArray

NUMBERS = {
    "complex_nrmse": "complex NRMSE",
    "phase_mae_rad": "phase MAE, rad",
    "ssim_phase": "SSIM of the phase",
}
# Of a recorded scan, where the deviance tells more than the error to a reference: title, and digits after the point.
OF_RECORDED = {
    "complex_nrmse": ("NRMSE", 3),
    "deviance": ("given", 3),
    "held_out_deviance": ("unseen", 3),
    "over_lsqml": ("over LSQ-ML's", 3),
    "seconds": ("s", 2),
    "cpu_seconds": ("CPU s", 2),
    "seconds_to_image": ("s to LSQ-ML's image", 2),
    "cpu_seconds_to_image": ("CPU s", 2),
}
TITLES = {
    "dose": "Photons a frame",
    "overlap": "Linear overlap",
    "probe": "What is wrong with the assumed probe; engines refine it",
    "rate": "Counts in other units (same noise), and more photons",
    "objects": "Objects and photons a frame",
    "thick": "Thick objects and photons a frame",
    "passes": "Passes in a row, whatever they bring",
}
# Cases side by side.
COLUMNS = 7


def tables(found: Mapping[str, Any]) -> str:
    """Set all suites and the ratios out as plain text."""
    seeds, default = found["settings"]["seeds"], found["settings"]["default"]
    blocks = [
        f"{', '.join(found['machine']['devices'])}; {seeds} seed(s), median (range); where nothing else is said: "
        f"{photons(default['dose'])} photons a frame, overlap {default['overlap']:.0%}, {default['sample']}, "
        f"{default['frame_px']}x{default['frame_px']} pixels"
    ]
    for suite, rows in found["suites"].items():
        if suite == "recorded":
            blocks += map(_recorded, rows)
            continue
        blocks += [_suite(suite, rows[i : i + COLUMNS]) for i in range(0, len(rows), COLUMNS)]
        blocks += [_check_ins(rows)] if any("check_ins" in row for row in rows) else []
    blocks += [f"not measured: {name}: {why}" for name, why in found["skipped"].items()]
    if found["acceptance"]:
        blocks.append(_ratios(found["acceptance"]))
    if found["design_figures"]:
        blocks.append(_design_figures(found["design_figures"]))
    return "\n\n".join(blocks)


def _suite(suite: str, rows: Sequence[Mapping[str, Any]]) -> str:
    # A scan may have fewer methods than another.
    names = list(dict.fromkeys(name for row in rows for name in row["methods"]))
    lines = [[TITLES[suite], *(f"{row['label']} ({row['frames']})" for row in rows)]]
    for number, title in NUMBERS.items():
        timed = number == "complex_nrmse"
        lines.append([f"{title}, seconds" if timed else title, *[""] * len(rows)])
        lines += [[f"  {name}", *(_cells(row["methods"].get(name), number, timed) for row in rows)] for name in names]
    return aligned(lines)


def _check_ins(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tell what the check-ins found: overlap with the true main mode before and after, seconds, and in words."""
    lines = [["Check-in", "overlap", "after", "s", "CPU s", ""]]
    for row in rows:
        for each in row["check_ins"]:
            overlaps = (f"{each['overlap'][key]:.3f}" for key in ("assumed", "found"))
            lines.append(
                [row["label"], *overlaps, *(f"{each[key]:.1f}" for key in ("seconds", "cpu_seconds")), each["says"]]
            )
    return aligned(lines)


def _recorded(row: Mapping[str, Any]) -> str:
    """Set a recorded scan out, a method a line; errors are to a reference that is no truth."""
    title = f"{row['label']}: {row['frames']} frames given, {row['held_out_frames']} unseen; {row['modes']} mode(s)"
    lines = [["", *(name for name, _ in OF_RECORDED.values())]]
    for method, numbers in row["methods"].items():
        medians = [(numbers[key]["median"], digits) for key, (_, digits) in OF_RECORDED.items()]
        lines.append([method, *("-" if value is None else f"{value:.{digits}f}" for value, digits in medians)])
    return f"{title}\n{aligned(lines)}\nCheck-in: {row['check_in']}"


def _cells(method: Mapping[str, Any] | None, number: str, timed: bool) -> str:
    error = _cell(method, number)
    return f"{error}, {method['seconds']['median']:.2f}" if timed and method is not None else error


def _cell(method: Mapping[str, Any] | None, number: str) -> str:
    spread = {} if method is None else method[number]
    if spread.get("median") is None:
        return "-"
    middle = _number(spread["median"])
    return middle if len(spread["each"]) == 1 else f"{middle} ({_number(spread['low'])}-{_number(spread['high'])})"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.0f}"


def _ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["Ratios", "", "", "NRMSE", "worst", "seconds"]]
    for row in rows:
        if "change" in row:
            values = ["-" if row["change"] is None else f"{row['change']:+.2%}", "", ""]
        else:
            keys = ("error", "worst_error", "seconds")
            values = [f"{row[key]:.3f}" if row.get(key) is not None else "" for key in keys]
        lines.append([row["method"], row["goal"], row["at"], *values])
    return aligned(lines)


def _design_figures(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["Figures of the design", "", "wanted", "measured", "reached"]]
    for row in rows:
        reached = "yes" if DesignFigure(**row).reached else "no"
        lines.append([row["figure"], row["method"], f"{row['wanted']:g}", f"{row['measured']:.3f}", reached])
    return aligned(lines)


class Figures:
    """Draws scans into a folder: truth, network, network refined, and engines, side by side.

    Of a recorded scan there is a figure for each network: what it makes of the scan's own guess, and how the check-in
    and refinement lead to the reference.

    Parameters
    ----------
    folder : Path
        It exists.
    networks : sequence of Network
    """

    def __init__(self, folder: Path, networks: Sequence[Network]) -> None:
        self._folder, self._networks = folder, networks

    def __call__(self, name: str, problem: Problem, judged: Mapping[str, Comparison]) -> None:
        """Draw one scan."""
        if problem.held_out is None:
            methods = [*(each for network in self._networks for each in network.names), rpie_name(50), CONVERGED]
            self._save(name, problem, judged, {"Truth": problem.truth}, methods)
            return
        for network in self._networks:
            way = [network.one_pass_name, *(CHECKED + each for each in network.names), CONVERGED]
            self._save(f"{name}, {network.name}", problem, judged, {"Reference": problem.truth}, way)

    def _save(
        self,
        name: str,
        problem: Problem,
        judged: Mapping[str, Comparison],
        images: dict[str, ComplexArray],
        methods: Sequence[str],
    ) -> None:
        """Draw what some methods came to beside what is given."""
        for method in (each for each in methods if each in judged):
            images[f"{method}\nNRMSE {judged[method].numbers['complex_nrmse']:.3f}"] = judged[method].object
        figure = viz.show_images(
            images, problem.illuminated, origin_m=problem.origin_m, pixel_m=problem.pixel_m, title=name
        )
        viz.save_figure(figure, self._folder / f"{name.replace(',', '').replace(' ', '-').lower()}.png")
