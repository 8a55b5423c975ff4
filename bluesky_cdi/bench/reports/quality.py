"""The result of `suites.quality` as text and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi import viz
from bluesky_cdi.bench.cases import photons
from bluesky_cdi.bench.methods import CONVERGED, Network, rpie_name
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.bench.reports.text import aligned
from bluesky_cdi.evaluation import Comparison
from bluesky_cdi.protocols import ComplexArray

NUMBERS = {
    "complex_nrmse": "complex NRMSE",
    "phase_mae_rad": "phase MAE, rad",
    "ssim_phase": "SSIM of the phase",
    "seconds": "seconds",
    "deviance": "deviance of the frames, a pixel",
    "held_out_deviance": "deviance of held-out frames, a pixel",
}
# The model of simulated frames is exact: their deviance tells nothing that the errors don't.
OF_RECORDED = ("deviance", "held_out_deviance")
TITLES = {
    "dose": "Photons a frame",
    "overlap": "Linear overlap",
    "probe": "Error of the assumed probe, root mean square; engines refine it",
    "rate": "Counts in other units (same noise), and more photons",
    "objects": "Objects and photons a frame",
    "recorded": "Recorded scans, against their references",
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
        blocks += [_suite(suite, rows[i : i + COLUMNS]) for i in range(0, len(rows), COLUMNS)]
    blocks += [f"not measured: {name}: {why}" for name, why in found["skipped"].items()]
    if found["acceptance"]:
        blocks.append(_ratios(found["acceptance"]))
    return "\n\n".join(blocks)


def _suite(suite: str, rows: Sequence[Mapping[str, Any]]) -> str:
    # A scan may have fewer methods than another.
    names = list(dict.fromkeys(name for row in rows for name in row["methods"]))
    lines = [[TITLES[suite], *(f"{row['label']} ({row['frames']})" for row in rows)]]
    for number, title in NUMBERS.items():
        if number in OF_RECORDED and suite != "recorded":
            continue
        lines.append([title, *[""] * len(rows)])
        lines += [[f"  {name}", *(_cell(row["methods"].get(name), number) for row in rows)] for name in names]
    return aligned(lines)


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


class Figures:
    """Draws scans into a folder: truth, network, network refined, and engines, side by side.

    Parameters
    ----------
    folder : Path
        It exists.
    networks : sequence of Network
    """

    def __init__(self, folder: Path, networks: Sequence[Network]) -> None:
        names = [name for n in networks for name in (n.name, n.refined_name) if name]
        self._folder, self._names = folder, [*names, rpie_name(50), CONVERGED]

    def __call__(self, name: str, problem: Problem, judged: Mapping[str, Comparison]) -> None:
        """Draw one scan."""
        first = "Truth" if problem.held_out is None else "Reference"
        images: dict[str, ComplexArray] = {first: problem.truth}
        for method in (n for n in self._names if n in judged):
            images[f"{method}\nNRMSE {judged[method].numbers['complex_nrmse']:.3f}"] = judged[method].object
        figure = viz.show_images(
            images, problem.illuminated, origin_m=problem.origin_m, pixel_m=problem.pixel_m, title=name
        )
        viz.save_figure(figure, self._folder / f"{name.replace(',', '').replace(' ', '-').lower()}.png")
