"""What a demonstration tells: numbers for machines, a table for people, a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi.catalog.history import proposals_of
from bluesky_cdi.demo.settings import Setting, Target
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.evaluation import Comparison, compare_estimate, dose
from bluesky_cdi.protocols import Estimate, FloatArray

# The complex NRMSE of any constant, by its definition.
VACUUM_NRMSE = 1.0
# Numbers of the comparison that are reported.
LEVELS = (50, 90, 95)
COMPARED = (
    "complex_nrmse",
    "phase_mae_rad",
    *(f"inside_{level}_percent_interval" for level in LEVELS),
    "predicted_over_actual_rms",
    "uncertainty_rank_correlation",
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a demonstration gave.

    Attributes
    ----------
    table : Mapping of str to str
        For people.
    numbers : Mapping
        The same as plain values, for machines.
    figure : Path
    """

    table: Mapping[str, str]
    numbers: Mapping[str, Any]
    figure: Path


@dataclass(frozen=True, eq=False)
class Finished:
    """A scan that has run and is in the catalog.

    Attributes
    ----------
    estimate : Estimate
        The last, as the catalog gives it back.
    decisions : Mapping
        Columns of the agent's stream.
    stopped_by : str
        Why the scan ended.
    raw_uid : str
        Of the raw run.
    scan_s, finish_s : float
        Seconds of the scan, and of what came after it.
    first_image_frames : int
        Frames of the first image.
    """

    estimate: Estimate
    decisions: Mapping[str, Any]
    stopped_by: str
    raw_uid: str
    scan_s: float
    finish_s: float
    first_image_frames: int


def report(done: Finished, setting: Setting, target: Target | None, out: Path) -> Outcome:
    """Compare the result with the target, draw both, and say how it went.

    Parameters
    ----------
    done : Finished
        What ran.
    setting : Setting
        On what.
    target : Target, optional
        What it is compared with.
    out : Path
        Folder for the figure.

    Returns
    -------
    Outcome

    Raises
    ------
    BlueskyCDIError
        If the result is no better than vacuum; the figure is there.
    """
    compared = None if target is None else compare_estimate(done.estimate, target.object, target.origin_m)
    numbers = {**_scan_numbers(done, setting), **_compared_numbers(compared), "catalog": str(out)}
    figure = _draw(done, setting, compared, numbers, out)
    if compared is not None and compared.numbers["complex_nrmse"] >= VACUUM_NRMSE:
        raise BlueskyCDIError(f"the reconstruction is no better than vacuum; see {figure}")
    return Outcome(_table(numbers, target), numbers, figure)


def _compared_numbers(compared: Comparison | None) -> dict[str, float]:
    if compared is None:
        return {}
    return {"complex_nrmse_of_vacuum": VACUUM_NRMSE, **{name: compared.numbers[name] for name in COMPARED}}


def _scan_numbers(done: Finished, setting: Setting) -> dict[str, Any]:
    estimate, decisions = done.estimate, done.decisions
    delivered = dose(estimate.coverage, estimate.pixel_m)
    seconds = np.asarray(decisions["agent_decision_s"], dtype=np.float64)
    seconds = seconds[np.isfinite(seconds)]
    return {
        "frames": estimate.n_frames,
        "full_scan_frames": setting.full_scan_frames,
        "full_scan_share": estimate.n_frames / setting.full_scan_frames,
        "photons": delivered.photons,
        "photons_per_m2": delivered.photons_per_m2,
        "decisions": int(np.count_nonzero(decisions["agent_n_proposed"])),
        "late_decisions": int(sum(r == "decision late" for r in decisions["agent_reason"])),
        "decision_s_median": float(np.median(seconds)),
        "decision_s_max": float(seconds.max()),
        "uncertainty_rad": float(np.median(estimate.frame_uncertainty)),
        "stopped_by": done.stopped_by,
        "scan_s": done.scan_s,
        "finish_s": done.finish_s,
        "first_image_frames": done.first_image_frames,
        "raw_uid": done.raw_uid,
    }


def _table(numbers: Mapping[str, Any], target: Target | None) -> dict[str, str]:
    n = numbers
    decision_ms, longest_s = 1e3 * n["decision_s_median"], n["decision_s_max"]
    table = {
        "frames": f"{n['frames']}, {100 * n['full_scan_share']:.0f} % of the full scan's {n['full_scan_frames']}",
        "dose": f"{n['photons']:.2e} photons, {n['photons_per_m2']:.2e} per m²",
    }
    if target is not None:
        nrmse, vacuum = n["complex_nrmse"], n["complex_nrmse_of_vacuum"]
        table |= {
            f"complex NRMSE to {target.name}": f"{nrmse:.3f} (vacuum: {vacuum:.2f})",
            f"phase MAE to {target.name}": f"{n['phase_mae_rad']:.4f} rad",
            f"errors inside the intervals of {_list(LEVELS)} %": _list(
                f"{100 * n[f'inside_{level}_percent_interval']:.0f}" for level in LEVELS
            )
            + " %",
        }
    return table | {
        "first image after": f"{n['first_image_frames']} frames",
        "decisions": f"{n['decisions']}, {n['late_decisions']} late; "
        f"median {decision_ms:.0f} ms, longest {longest_s:.2f} s",
        "scan ended by": str(n["stopped_by"]),
        "time": f"scan {n['scan_s']:.0f} s, final refinement and catalog {n['finish_s']:.0f} s",
    }


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _draw(done: Finished, setting: Setting, compared: Comparison | None, numbers: Mapping[str, Any], out: Path) -> Path:
    from bluesky_cdi import viz

    shown = {
        "frames": f"{numbers['frames']} of {numbers['full_scan_frames']}",
        "photons per m²": f"{numbers['photons_per_m2']:.1e}",
        "median decision": f"{1e3 * numbers['decision_s_median']:.0f} ms",
    }
    if compared is not None:
        shown["complex NRMSE"] = f"{numbers['complex_nrmse']:.3f}"
        shown["phase MAE"] = f"{numbers['phase_mae_rad']:.3f} rad"
    figure = viz.figure_demo(
        done.estimate,
        None if compared is None else compared.truth,
        aligned=None if compared is None else compared.object,
        path_m=_in_scan_order(done.estimate),
        table=shown,
        title=setting.title,
        proposals=proposals_of(done.decisions),
    )
    path = out / "demo.png"
    viz.save_figure(figure, path)
    return path


def _in_scan_order(estimate: Estimate) -> FloatArray:
    return estimate.positions_m[np.argsort(estimate.frame_seq_nums)]
