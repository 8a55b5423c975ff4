"""Figures of an estimate: at one moment of a run, and of the demo beside its reference."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation.causes import causes_of
from bluesky_cdi.evaluation.gauge import measured_area, phase_rad
from bluesky_cdi.evaluation.pipeline import pipeline_said
from bluesky_cdi.evaluation.resolution import with_curve
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray, Proposal
from bluesky_cdi.viz.comparisons import draw_phases
from bluesky_cdi.viz.panels import PATH_COLOUR, View, colour_bar, phase_scale, prepared
from bluesky_cdi.viz.resolution import draw_resolution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A measured position is a proposed one if it is this near; read-back errors are smaller, scan steps larger.
SAME_POSITION_PX = 2.0
# Of a line below an estimate's figure.
FOOTER_CHARACTERS = 130
MARKERS = ("o", "D", "s", "^", "v", "P")


def show_estimate(estimate: Estimate, fig: Figure | None = None) -> Figure:
    """Draw amplitude, phase, predicted phase error, and coverage with the scan's path; in words what is said of it.

    That is how far frames have come, and the verdict and its reasons, or before there is one the causes of misfit that
    were named.

    Where a resolution is wanted, what two halves of the frames agree on is drawn beside: the ring correlation of the
    last check, and the resolution of all checks.

    Parameters
    ----------
    estimate : Estimate
        What is known at one moment of a run.
    fig : Figure, optional
        Drawn anew, whatever it held, and made wider where a resolution is drawn too; a new one of 11 x 9 inches
        otherwise.

    Returns
    -------
    Figure
    """
    fig = prepared(fig, (11.0, 9.0))
    resolution = with_curve(estimate.source)
    is_wanted = resolution is not None and bool(resolution["target_m"])
    axes = fig.subplots(2, 3 if is_wanted else 2)
    if resolution is not None and is_wanted:
        fig.set_size_inches(max(fig.get_figwidth(), 16.5), fig.get_figheight())
        draw_resolution(axes[0, 2], axes[1, 2], resolution)
    view = _view_of(estimate)
    phase = view.masked(phase_rad(estimate.object, view.covered))
    view.image(axes[0, 0], view.masked(np.abs(estimate.object)), "Amplitude", "relative to vacuum", "cividis")
    view.image(axes[0, 1], phase, "Phase", "rad", *phase_scale(phase))
    view.image(axes[1, 0], view.masked(estimate.std_phase_rad), "Predicted phase error", "rad, 1 σ", "viridis")
    view.image(axes[1, 1], view.masked(estimate.coverage), "Coverage and path", "photons per pixel", "Greys")
    _draw_path(axes[1, 1], estimate.positions_m, ["measured"] * len(estimate.positions_m))
    said = verdict_said(estimate.source)
    word, _, why = said.partition(": ")
    title = f"{_title_of(estimate.n_frames)}, {word}" if word else _title_of(estimate.n_frames)
    fig.suptitle(title, fontsize="x-large")
    why = why or "; ".join(causes_of(estimate.source))
    if told := [textwrap.fill(each, FOOTER_CHARACTERS) for each in (pipeline_said(estimate.source), why) if each]:
        fig.supxlabel("\n".join(told), fontsize="small")
    return fig


def figure_demo(
    estimate: Estimate,
    reference: ComplexArray | None,
    *,
    aligned: ComplexArray | None,
    path_m: FloatArray,
    table: Mapping[str, str],
    title: str,
    proposals: Sequence[Proposal] | None = None,
) -> Figure:
    """Draw the result of a run next to its reference, where there is one.

    Parameters
    ----------
    estimate : Estimate
        The last one of the run.
    reference : ndarray, shape (Y, X), complex, or None
        Truth or better reconstruction on the estimate's object grid (`evaluation.Aligned.truth`). Without
        it, the reference's phase and the phase error are left out.
    aligned : ndarray, shape (Y, X), complex, or None
        The estimate's object without ramp and scale (`evaluation.Aligned.object`); None: as it is.
    path_m : ndarray, shape (n, 2)
        Measured positions (y, x) in the order of the scan, metres.
    table : Mapping of str to str
        Names and values, with their units, to print under the panels.
    title : str
        Above all panels.
    proposals : sequence of Proposal, optional
        What the agent chose; positions get the mark of their proposal's reason.

    Returns
    -------
    Figure
        1600 x 1000 pixels at its own 100 dots per inch; 1200 x 1000 without a reference.

    Raises
    ------
    ValueError
        If `reference` or `aligned` is not on the estimate's object grid.
    """
    view = _view_of(estimate)
    shown = estimate.object if aligned is None else aligned
    for name, image in (("reference", reference), ("aligned", shown)):
        if image is not None and image.shape != estimate.object.shape:
            raise ValueError(f"{name} must have the estimate's shape {estimate.object.shape}; it has {image.shape}")
    columns = 2 if reference is None else 3
    fig = prepared(None, (16.0 if columns == 3 else 12.0, 10.0))
    grid = fig.add_gridspec(3, columns, height_ratios=[1, 1, 0.13])
    axes = [fig.add_subplot(grid[k // columns, k % columns]) for k in range(2 * columns)]
    if reference is None:
        phase_axes, (std_axes, amplitude_axes, path_axes) = axes[0], axes[1:]
        std_scale: tuple[Any, ...] = ("viridis",)
        phase = view.masked(phase_rad(shown, view.covered))
        view.image(phase_axes, phase, "Reconstructed phase", "rad", *phase_scale(phase))
    else:
        reference_axes, phase_axes, error_axes, amplitude_axes, std_axes, path_axes = axes
        std_scale = draw_phases(view, reference, shown, reference_axes, phase_axes, error_axes)
    std = view.masked(estimate.std_phase_rad)
    view.image(std_axes, std, "Predicted phase error", "rad, 1 σ", *std_scale)
    view.image(amplitude_axes, view.masked(np.abs(shown)), "Reconstructed amplitude", "relative to vacuum", "cividis")
    view.image(path_axes, view.masked(estimate.coverage), "Coverage and path", "photons per pixel", "Greys")
    path = np.asarray(path_m, np.float64).reshape(-1, 2)
    _draw_path(path_axes, path, _reasons(path, proposals, SAME_POSITION_PX * estimate.pixel_m))
    _draw_table(fig.add_subplot(grid[2, :]), table)
    fig.suptitle(title, fontsize="x-large")
    return fig


def _view_of(estimate: Estimate) -> View:
    return View(measured_area(estimate.coverage), estimate.origin_m, estimate.pixel_m)


def _reasons(path_m: FloatArray, proposals: Sequence[Proposal] | None, tolerance_m: float) -> list[str]:
    """Return the reason of the proposal that brought each measured position."""
    from scipy.spatial import KDTree

    chosen = [p for p in proposals or () if len(p.positions_m)]
    if not chosen:
        return ["measured"] * len(path_m)
    names = [p.reason for p in chosen for _ in p.positions_m]
    distance, index = KDTree(np.concatenate([p.positions_m for p in chosen])).query(path_m)
    return [names[i] if d <= tolerance_m else "not proposed" for d, i in zip(distance, index, strict=True)]


def _draw_path(ax: Axes, path_m: FloatArray, reasons: Sequence[str]) -> None:
    """Draw the path as a line, and its points coloured by order and marked by reason."""
    if not len(path_m):
        return
    x, y = 1e6 * path_m[:, 1], 1e6 * path_m[:, 0]
    order = np.arange(1, len(path_m) + 1)
    ax.plot(x, y, color=PATH_COLOUR, linewidth=0.7, zorder=2)
    kinds = list(dict.fromkeys(reasons))
    for k, kind in enumerate(kinds):
        of_kind = np.array([reason == kind for reason in reasons])
        points = ax.scatter(
            x[of_kind],
            y[of_kind],
            c=order[of_kind],
            cmap="plasma",
            vmin=1,
            vmax=max(2, len(path_m)),
            s=18,
            marker=MARKERS[k % len(MARKERS)],
            edgecolors="white",
            linewidths=0.4,
            label=f"{kind} ({of_kind.sum()})",
            zorder=3,
        )
    colour_bar(ax, points, "order of measurement", 1.33)
    if len(kinds) > 1:
        # The pad, in font sizes, clears the ticks and the label of the axis.
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5, ncols=3, fontsize="small", frameon=False
        )


def _draw_table(ax: Axes, table: Mapping[str, str]) -> None:
    ax.set_axis_off()
    # Each entry gets room by its length, so that long ones don't run into their neighbours.
    room = np.array([max(len(name), 1.3 * len(value)) + 4 for name, value in table.items()])
    places = (np.cumsum(room) - room / 2) / room.sum()
    style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "top"}
    for place, (name, value) in zip(places, table.items(), strict=True):
        ax.annotate(value, (place, 1), xytext=(0, 0), fontsize="large", fontweight="bold", **style)
        ax.annotate(name, (place, 1), xytext=(0, -20), color="0.35", **style)


def _title_of(n: int) -> str:
    return f"Reconstruction from {n} frame{'' if n == 1 else 's'}"
