"""Figure of an object to be handed on: phase and amplitude in grey, with a scale bar."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.evaluation.gauge import measured_area, phase_rad
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.viz.panels import bounds_of, colour_bar, limits_of, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Not grey, which would be an amplitude or a phase.
NOT_MEASURED = "#dfe9f5"
# Share of the image's width that a scale bar has at most.
LONGEST_BAR = 0.3
FOOTER_CHARACTERS = 110
UNITS = ((1e-9, "nm"), (1e-6, "µm"), (1e-3, "mm"))


def show_object(estimate: Estimate, name: str = "") -> Figure:
    """Draw phase and amplitude of the measured area, row 0 above, with a scale bar; in words the verdict, if any.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.
    name : str
        Above the images.

    Returns
    -------
    Figure
    """
    fig = prepared(None, (11.0, 5.0))
    covered = measured_area(estimate.coverage)
    rows, columns = bounds_of(covered)
    inside = ~covered[rows, columns]
    phase = np.ma.array(phase_rad(estimate.object, covered)[rows, columns], mask=inside)
    amplitude = np.ma.array(np.abs(estimate.object)[rows, columns], mask=inside)
    left, right = fig.subplots(1, 2)
    _draw(left, phase, "Phase", "rad (0: mean of the measured area)", estimate.pixel_m)
    _draw(right, amplitude, "Amplitude", "relative to vacuum", estimate.pixel_m)
    said = verdict_said(estimate.source)
    word, _, why = said.partition(": ")
    what = f"{estimate.n_frames} frames, pixel {1e9 * estimate.pixel_m:.3g} nm"
    fig.suptitle(", ".join(filter(None, (name, what, word))), fontsize="large")
    if why:
        fig.supxlabel(textwrap.fill(why, FOOTER_CHARACTERS), fontsize="small")
    return fig


def _draw(
    ax: Axes, image: np.ma.MaskedArray[tuple[int, ...], np.dtype[np.floating]], title: str, label: str, pixel_m: float
) -> None:
    from matplotlib import colormaps

    low, high = limits_of(image)
    colours = colormaps["gray"].with_extremes(bad=NOT_MEASURED)
    drawn = ax.imshow(image, cmap=colours, vmin=low, vmax=high, origin="upper", interpolation="none")
    ax.set(title=title, xticks=[], yticks=[])
    colour_bar(ax, drawn, label)
    _draw_bar(ax, image.shape[1], pixel_m)


def _draw_bar(ax: Axes, columns: int, pixel_m: float) -> None:
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length_m = bar_length_m(columns * pixel_m)
    bar = AnchoredSizeBar(
        ax.transData, length_m / pixel_m, said_length(length_m), "lower left", pad=0.4, borderpad=0.5,
        frameon=True, size_vertical=max(1.0, columns / 150), color="black", fill_bar=True,
    )  # fmt: skip
    bar.patch.set(alpha=0.75, linewidth=0)
    ax.add_artist(bar)


def bar_length_m(width_m: float) -> float:
    """Choose the longest of 1, 2, 5, 10, ... of a unit that is at most `LONGEST_BAR` of a width in metres."""
    most = LONGEST_BAR * width_m
    decade = 10.0 ** math.floor(math.log10(most))
    return max(step * decade for step in (1, 2, 5) if step * decade <= most * (1 + 1e-9))


def said_length(length_m: float) -> str:
    """Say a length in metres in the unit that gives the shortest number."""
    unit_m, unit = next(((u, n) for u, n in reversed(UNITS) if length_m >= u * (1 - 1e-9)), UNITS[0])
    return f"{length_m / unit_m:.3g} {unit}"
