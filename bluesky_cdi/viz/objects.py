"""Figure of an object to be handed on: phase and amplitude in grey, with a scale bar."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation.gauge import measured_area, shown_images
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.viz.panels import BoolArray, Scale, bounds_of, colour_bar, limits_of, prepared

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
    shown, part = shown_images(estimate), Part.of(measured_area(estimate.coverage), estimate.pixel_m)
    left, right = fig.subplots(1, 2)
    draw_part(left, part, shown["phase"], "Phase", "rad (0: mean of the measured area)")
    draw_part(right, part, shown["amplitude"], "Amplitude", "relative to vacuum")
    said = verdict_said(estimate.source)
    word, _, why = said.partition(": ")
    fig.suptitle(heading_of(estimate, name, word), fontsize="large")
    if why:
        fig.supxlabel(textwrap.fill(why, FOOTER_CHARACTERS), fontsize="small")
    return fig


def heading_of(estimate: Estimate, name: str, word: str) -> str:
    """Say what a figure shows: name, frames, the pixel as energy and distances give it, and the verdict's word."""
    what = f"{estimate.n_frames} frames, nominal pixel {1e9 * estimate.pixel_m:.3g} nm"
    return ", ".join(filter(None, (name, what, word)))


@dataclass(frozen=True)
class Part:
    """The rectangle of an object in which something was measured.

    Attributes
    ----------
    rows, columns : slice
    inside : ndarray, bool
        Where in it something was measured.
    pixel_m : float
        Sample pixel, metres.
    """

    rows: slice
    columns: slice
    inside: BoolArray
    pixel_m: float

    @classmethod
    def of(cls, covered: BoolArray, pixel_m: float) -> Part:
        """Find it from the measured area, shape (Y, X), bool."""
        rows, columns = bounds_of(covered)
        return cls(rows, columns, covered[rows, columns], pixel_m)


def draw_part(ax: Axes, part: Part, image: FloatArray, title: str, label: str, cmap: str = "gray") -> None:
    """Draw the measured part of an image of the object; see `draw_scaled`."""
    seen = np.ma.array(image[part.rows, part.columns], mask=~part.inside)
    draw_scaled(ax, seen, title, label, part.pixel_m, (cmap, limits_of(seen)))


def draw_scaled(
    ax: Axes, image: np.ma.MaskedArray[Any, Any], title: str, label: str, pixel_m: float, scale: Scale | None = None
) -> None:
    """Draw an image, row 0 above, with a colour bar and a scale bar.

    Parameters
    ----------
    ax : Axes
        Where.
    image : MaskedArray, shape (Y, X)
        What is masked was not measured.
    title, label : str
        Above it, and beside its colour bar.
    pixel_m : float
        Sample pixel, metres.
    scale : Scale, optional
        Its colours; by default grey, so that single bright pixels don't darken the rest.
    """
    from matplotlib import colormaps

    cmap, (low, high) = scale or ("gray", limits_of(image))
    colours = colormaps[cmap].with_extremes(bad=NOT_MEASURED)
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
