"""What two halves of a run's frames agree on, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation.resolution import noted_frc
from bluesky_cdi.viz.comparisons import draw_frc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WANTED = "#b2182b"


def draw_resolution(curve: Axes, course: Axes, notes: Mapping[str, Any]) -> None:
    """Draw the last check's ring correlation, and the resolution of all checks by the number of frames.

    Parameters
    ----------
    curve, course : Axes
        Where.
    notes : Mapping
        As `evaluation.resolution.resolution_notes` makes them, of a scan with a wanted resolution.
    """
    target_m, frames = float(notes["target_m"]), notes["n_frames"]
    draw_halves(curve, notes)
    curve.axvline(1e-6 / target_m, color=WANTED, linewidth=1.2)
    found_nm = [np.nan if value is None else 1e9 * value for value in notes["resolution_m"]]
    course.plot(frames, found_nm, "o-", color="#1f4e9c", label="half-bit resolution")
    course.axhline(1e9 * target_m, color=WANTED, linewidth=1.2, label=f"wanted: {1e9 * target_m:.3g} nm")
    highest = np.nanmax([1e9 * target_m, *found_nm])
    course.set(title="Resolution as the scan went on", xlabel="frames", ylabel="full period (nm)")
    course.set(xlim=(0, 1.05 * frames[-1]), ylim=(0, 1.1 * highest))
    course.set_box_aspect(1)
    course.legend(loc="lower left", fontsize="small")


def draw_halves(ax: Axes, notes: Mapping[str, Any]) -> None:
    """Draw the ring correlation of two halves with its thresholds.

    Parameters
    ----------
    ax : Axes
        Where.
    notes : Mapping
        As `evaluation.resolution.resolution_notes` makes them.
    """
    draw_frc(ax, noted_frc(notes), f"Two halves of {notes['n_frames'][-1]} frames")
