"""Figure of the latents of a run's frames: painted on the object, as groups, against each other, with some frames."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.evaluation.gauge import measured_area, phase_rad
from bluesky_cdi.latents import Latents, paint_frames, representatives
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.viz.panels import UNCOVERED, BoolArray, View, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# A frame of a known kind is as unlike the known ones as these with this probability.
UNUSUAL = 0.01


def show_latents(
    estimate: Estimate, latents: Latents, patterns: Mapping[int, npt.NDArray[Any]] | None = None, name: str = ""
) -> Figure:
    """Draw the latents of a run's frames.

    Above, the first three latents as red, green and blue where the frames' light fell, and the frames by group on the
    phase; then the latents against each other, each frame in its colour of the map; below, a frame of each group.

    Parameters
    ----------
    estimate : Estimate
        Says where the frames lie.
    latents : Latents
        Of its frames.
    patterns : Mapping of int to ndarray, shape (H, W), optional
        Counts of frames by their number; those that stand for a group are drawn.
    name : str
        Above all.

    Returns
    -------
    Figure
    """
    chosen = representatives(latents.values, latents.clusters)
    shown = [int(row) for row in chosen if patterns and int(estimate.frame_seq_nums[row]) in patterns]
    fig = prepared(None, (12.0, 14.2 if shown else 11.0))
    # Axes of fixed aspect beside free ones: matplotlib's own layouts shrink them all.
    fig.set_layout_engine("none")
    grid = fig.add_gridspec(
        2, 2, left=0.07, right=0.91, top=0.94, bottom=0.29 if shown else 0.06, wspace=0.28, hspace=0.3
    )
    map_axes, group_axes, first_axes, second_axes = (fig.add_subplot(grid[k // 2, k % 2]) for k in range(4))
    _draw_map(map_axes, estimate, latents)
    _draw_groups(group_axes, estimate, latents, chosen)
    for ax, pair in ((first_axes, (0, 1)), (second_axes, (2, 1))):
        _draw_scatter(ax, estimate, latents, chosen, pair)
    if shown and patterns:
        row = fig.add_gridspec(1, max(4, len(shown)), left=0.04, right=0.91, top=0.2, bottom=0.02, wspace=0.12)
        axes = [fig.add_subplot(row[0, k]) for k in range(len(shown))]
        _draw_patterns(axes, estimate, latents, shown, patterns)
    whose = "projection of the weights" if latents.projection.is_fixed else "projection of this run alone"
    fig.suptitle(", ".join(filter(None, (name, f"{len(latents.values)} frames", whose))), fontsize="large")
    return fig


def _letter(cluster: int) -> str:
    return string.ascii_uppercase[cluster]


def _draw_map(ax: Axes, estimate: Estimate, latents: Latents) -> None:
    covered = measured_area(estimate.coverage)
    painted = paint_frames(estimate, latents.colours)
    covered &= np.isfinite(painted).all(axis=-1)
    image = np.where(covered[..., None], painted, float(UNCOVERED))
    view = View(covered, estimate.origin_m, estimate.pixel_m)
    ax.imshow(np.clip(image, 0, 1), extent=view.extent_um, origin="upper")
    ax.set(title="Latents 1, 2, 3 as red, green, blue", xlabel="x (µm)", ylabel="y (µm)")
    _zoom(ax, covered, view)


def _draw_groups(ax: Axes, estimate: Estimate, latents: Latents, chosen: npt.NDArray[np.int64]) -> None:
    covered = measured_area(estimate.coverage)
    view = View(covered, estimate.origin_m, estimate.pixel_m)
    phase = view.masked(phase_rad(estimate.object, covered))
    view.image(ax, phase, "Groups of frames, on the phase", "rad", "gray")
    x, y = 1e6 * estimate.positions_m[:, 1], 1e6 * estimate.positions_m[:, 0]
    _draw_frames(ax, x, y, latents, chosen)
    _zoom(ax, covered, view)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=6, fontsize="small", frameon=False)


def _zoom(ax: Axes, covered: BoolArray, view: View) -> None:
    """Show the covered part of the grid alone."""
    left, right, low, high = view.extent_um
    for limits, edges, axis in ((ax.set_xlim, (left, right), 0), (ax.set_ylim, (low, high), 1)):
        there = np.flatnonzero(covered.any(axis=axis))
        if len(there):
            step = (edges[1] - edges[0]) / covered.shape[1 - axis]
            limits(edges[0] + there[0] * step, edges[0] + (there[-1] + 1) * step)


def _draw_scatter(
    ax: Axes, estimate: Estimate, latents: Latents, chosen: npt.NDArray[np.int64], pair: tuple[int, int]
) -> None:
    columns = latents.values.shape[1]
    x, y = (latents.values[:, i] if i < columns else np.zeros(len(latents.values)) for i in pair)
    _draw_frames(ax, x, y, latents, chosen)
    for cluster, row in enumerate(chosen):
        text = f"{_letter(cluster)}: {estimate.frame_seq_nums[row]}"
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
        ax.annotate(text, (x[row], y[row]), xytext=(6, 6), textcoords="offset points", fontsize="small", bbox=box)
    unit = "1: a frame's move when read again" if latents.projection.is_fixed else "units of the embedding"
    red_green_blue = ("red", "green", "blue")
    xlabel, ylabel = (f"latent {i + 1} ({red_green_blue[i]})" for i in pair)
    ax.set(title=f"Frames by latents {pair[0] + 1} and {pair[1] + 1} ({unit})", xlabel=xlabel, ylabel=ylabel)
    ax.title.set_fontsize("medium")


def _draw_frames(ax: Axes, x: FloatArray, y: FloatArray, latents: Latents, chosen: npt.NDArray[np.int64]) -> None:
    """Draw frames in their colours, marked by group; those that stand for one larger, unusual ones ringed in red."""
    size = float(np.clip(6000 / max(len(x), 1), 6, 40))
    for cluster in range(len(chosen)):
        members = latents.clusters == cluster
        drawn: dict[str, Any] = {"marker": MARKERS[cluster % len(MARKERS)], "edgecolors": "white", "linewidths": 0.5}
        ax.scatter(x[members], y[members], c=latents.colours[members], s=size, zorder=2, **drawn)
        row = chosen[cluster]
        drawn |= {"linewidths": 1.5, "edgecolors": "black", "label": f"{_letter(cluster)} ({members.sum()})"}
        ax.scatter(x[row], y[row], c=[latents.colours[row]], s=3 * size, zorder=4, **drawn)
    unusual = latents.p_values < UNUSUAL
    if unusual.any():
        label = f"unusual, p < {UNUSUAL:g} ({unusual.sum()})"
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "red", "linewidths": 1.2, "label": label}
        ax.scatter(x[unusual], y[unusual], s=4 * size, zorder=3, **ring)


def _draw_patterns(
    axes: list[Axes], estimate: Estimate, latents: Latents, shown: list[Any], patterns: Mapping[int, Any]
) -> None:
    from matplotlib.colors import LogNorm

    images = [np.asarray(patterns[int(estimate.frame_seq_nums[row])], np.float64) for row in shown]
    scale = LogNorm(0.8, max(2.0, float(np.quantile(np.stack(images), 0.9999))))
    for ax, row, image in zip(axes, shown, images, strict=True):
        drawn = ax.imshow(np.maximum(image, 0.5), norm=scale, cmap="magma", interpolation="none")
        colour = latents.colours[row]
        for spine in ax.spines.values():
            spine.set(color=colour, linewidth=4)
        title = f"{_letter(int(latents.clusters[row]))}: frame {estimate.frame_seq_nums[row]}\n{image.sum():.2e} counts"
        ax.set_title(title, fontsize="small")
        ax.set(xticks=[], yticks=[])
    axes[-1].figure.colorbar(drawn, cax=axes[-1].inset_axes((1.04, 0, 0.05, 1)), label="counts")
