"""Figure of a detector's frame, and of what preprocessing makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.viz.panels import PATH_COLOUR, BoolArray, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Where the direct beam meets a detector: mark and colour of the place that was found, and of the one that is used.
BEAM_MARKS = (("x", "cyan"), ("+", "lime"))


def show_detector(
    mean: FloatArray,
    valid: BoolArray,
    *,
    result: FloatArray | None = None,
    result_mask: BoolArray | None = None,
    square_px: tuple[int, int, int] | None = None,
    beams_px: Mapping[str, tuple[float, float]] | None = None,
    title: str = "",
) -> Figure:
    """Draw the mean frame of a detector, row 0 on top, and what preprocessing makes of it.

    Parameters
    ----------
    mean : ndarray, shape (H, W)
        Mean counts of a frame.
    valid : ndarray, shape (H, W), bool
        True where a pixel is valid; the others are drawn in one colour.
    result : ndarray, shape (N, N), optional
        Mean counts after preprocessing; without it, that panel is left out.
    result_mask : ndarray, shape (N, N), bool, optional
        Its valid pixels; all if absent.
    square_px : tuple of int, optional
        First row, first column and side of the square that is kept.
    beams_px : Mapping of str to tuple of float, optional
        Places (row, column) of the direct beam, by what the legend says of them: at most two.
    title : str
        Above all panels.

    Returns
    -------
    Figure
    """
    fig = prepared(None, (7.0 if result is None else 13.0, 6.0))
    axes = fig.subplots(1, 1 if result is None else 2, squeeze=False)[0]
    _draw_counts(axes[0], mean, valid, "Mean frame of the detector")
    for (name, (row, column)), (mark, colour) in zip((beams_px or {}).items(), BEAM_MARKS, strict=False):
        axes[0].plot(column, row, mark, color=colour, markersize=14, markeredgewidth=2, label=name)
    if square_px is not None:
        from matplotlib.patches import Rectangle

        top, left, side = square_px
        outline = Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor="cyan", linewidth=1.5)
        outline.set_label("what is kept")
        axes[0].add_patch(outline)
        height, width = mean.shape
        axes[0].set(xlim=(min(-0.5, left - 1), max(width - 0.5, left + side)))
        axes[0].set(ylim=(max(height - 0.5, top + side), min(-0.5, top - 1)))
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, facecolor="0.35", labelcolor="white", framealpha=1
        )
    if result is not None:
        kept = np.ones(result.shape, bool) if result_mask is None else result_mask
        _draw_counts(axes[1], result, kept, "After preprocessing")
        middle, (mark, colour) = len(result) // 2, BEAM_MARKS[-1]
        axes[1].plot(middle, middle, mark, color=colour, markersize=14, markeredgewidth=2)
    fig.suptitle(title, fontsize="x-large")
    return fig


def _draw_counts(ax: Axes, counts: FloatArray, valid: BoolArray, title: str) -> None:
    """Draw counts as a logarithm, pixels that are not valid in one colour; a few hot ones don't darken the others."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    positive = counts[valid & (counts > 0)]
    high = float(np.percentile(positive, 99.98)) if positive.size else 1.0
    low = max(float(positive.min(initial=high)), high * 1e-7)
    shown = np.ma.array(np.maximum(counts, low), mask=~valid)
    colours = colormaps["magma"].with_extremes(bad=PATH_COLOUR)
    drawn = ax.imshow(shown, cmap=colours, norm=LogNorm(low, max(high, low * 1.01)), interpolation="nearest")
    ax.set(title=f"{title} (masked: {int((~valid).sum())})", xlabel="column (px)", ylabel="row (px)")
    ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0, 0.05, 1)), label="counts")
