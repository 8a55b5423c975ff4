"""What the figures are made of: empty figures, images on axes in lengths, colour scales; and a figure's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

BoolArray = npt.NDArray[np.bool_]
# A colour map, and its ends.
Scale = tuple[str, tuple[float, float]]

UNCOVERED = "0.87"
# Seen on white and on black.
PATH_COLOUR = "#1b9e77"
# Ends of the colour scales, so that single bright pixels don't darken the rest.
PERCENTILES = (0.5, 99.5)


def prepared(fig: Figure | None, size: tuple[float, float]) -> Figure:
    """Return a figure with nothing on it: the one that is given, or a new one of that size in inches."""
    if fig is None:
        from bluesky_cdi.viz.figure import Drawn

        fig = Drawn(figsize=size, dpi=100)
    fig.clear()
    fig.set_layout_engine("compressed", w_pad=0.1, h_pad=0.06)
    return fig


def save_figure(fig: Figure, path: Path | str, *, form: str = "", notes: Mapping[str, str] | None = None) -> None:
    """Write a figure so that `path` holds either all of it or what it held before.

    Parameters
    ----------
    fig : Figure
        The figure.
    path : path
        Where to.
    form : str
        The format; by default what the path's suffix says, or PNG.
    notes : Mapping, optional
        Texts that go along in the file; of a PNG, under keys such as ``Title`` and ``Description``.

    Raises
    ------
    ValueError
        If matplotlib doesn't write the format.
    OSError
        If the folder is absent or can't be written.
    """
    path = Path(path)
    options: dict[str, Any] = {} if notes is None else {"metadata": dict(notes)}
    with whole_file(path) as partial:
        fig.savefig(partial, format=form or path.suffix.lstrip(".") or "png", **options)


class View:
    """Object grid as images are drawn on it: axes in micrometres, gaps in grey.

    Parameters
    ----------
    covered : ndarray, shape (Y, X), bool
        Where there is something to see.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0], metres.
    pixel_m : float
        Sample pixel, metres.
    """

    def __init__(self, covered: BoolArray, origin_m: tuple[float, float], pixel_m: float) -> None:
        self.covered = covered
        rows, columns = covered.shape
        (y, x), pixel = origin_m, pixel_m
        # Left, right, below, above: row 0 is above, as in files and other programs, so that y grows downwards.
        edges = (x - pixel / 2, x + (columns - 0.5) * pixel, y + (rows - 0.5) * pixel, y - pixel / 2)
        self.extent_um = (1e6 * edges[0], 1e6 * edges[1], 1e6 * edges[2], 1e6 * edges[3])

    def masked(self, image: FloatArray) -> np.ma.MaskedArray[Any, Any]:
        """Mask an image where there is nothing to see."""
        return np.ma.masked_invalid(np.ma.array(image, mask=~self.covered))

    def image(
        self,
        ax: Axes,
        image: np.ma.MaskedArray[Any, Any],
        title: str,
        unit: str,
        cmap: str,
        limits: tuple[float, float] | None = None,
    ) -> None:
        """Draw an image on the grid, on its own colour scale if no limits are given.

        Parameters
        ----------
        ax : Axes
            Where.
        image : MaskedArray, shape (Y, X)
            Masked pixels are grey.
        title, unit : str
            Above it, and beside its colour bar.
        cmap : str
            Colour map.
        limits : tuple of float, optional
            Its ends.
        """
        _draw(ax, image, title, unit, (cmap, limits or limits_of(image)), self.extent_um)


def draw_centred(
    ax: Axes,
    image: np.ma.MaskedArray[Any, Any],
    title: str,
    label: str,
    scale: Scale,
    step: float,
    unit: str,
    interpolation: str | None = None,
) -> None:
    """Draw a square image with pixel N // 2 at the origin.

    Parameters
    ----------
    ax : Axes
        Where.
    image : MaskedArray, shape (N, N)
        Masked pixels are grey.
    title, label : str
        Above it, and beside its colour bar; there is none without a label.
    scale : Scale
        Its colours.
    step, unit : float and str
        Length of a pixel, and its unit.
    interpolation : str, optional
        Matplotlib's; its default if absent.
    """
    size = len(image)
    ends = ((-(size // 2) - 0.5) * step, (size - size // 2 - 0.5) * step)
    _draw(ax, image, title, label, scale, (*ends, ends[1], ends[0]), unit, interpolation)


def _draw(
    ax: Axes,
    image: np.ma.MaskedArray[Any, Any],
    title: str,
    label: str,
    scale: Scale,
    extent: tuple[float, float, float, float],
    unit: str = "µm",
    interpolation: str | None = None,
) -> None:
    """Draw an image, row 0 above and gaps in grey; with a label, a colour bar."""
    from matplotlib import colormaps

    cmap, (low, high) = scale
    colours = colormaps[cmap].with_extremes(bad=UNCOVERED)
    drawn = ax.imshow(
        image, cmap=colours, vmin=low, vmax=high, extent=extent, origin="upper", interpolation=interpolation
    )
    ax.set(title=title, xlabel=f"x ({unit})", ylabel=f"y ({unit})")
    if label:
        colour_bar(ax, drawn, label)


def colour_bar(ax: Axes, drawn: ScalarMappable, label: str, place: float = 1.03, *, linear: bool = True) -> None:
    """Draw a colour bar beside an image.

    Parameters
    ----------
    ax : Axes
        With the image.
    drawn : ScalarMappable
        What the colours are of.
    label : str
        Beside the bar.
    place : float
        Where, in widths of the image.
    linear : bool
        Whether the scale is; a logarithmic one has powers of ten as it is.
    """
    # An inset is as high as the image, which a bar beside axes of fixed aspect is not.
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((place, 0, 0.05, 1)), label=label)
    if not linear:
        return
    # Many photons as 1.5 with a power of ten above the bar: long numbers would run into what is beside it.
    bar.ax.ticklabel_format(axis="y", scilimits=(-3, 4))


def limits_of(image: np.ma.MaskedArray[Any, Any]) -> tuple[float, float]:
    """Choose the ends of a colour scale, so that single bright pixels don't darken the rest."""
    values = image.compressed()
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    # An even image would otherwise show its rounding errors in full colour.
    room = max(0.0, 1e-3 * max(abs(low), abs(high), 1e-9) - (high - low)) / 2
    return float(low - room), float(high + room)


def bounds_of(covered: BoolArray) -> tuple[slice, slice]:
    """Give the smallest rectangle that holds the covered area; all of it where nothing is covered."""
    if not covered.any():
        return slice(None), slice(None)
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def phase_scale(*phases_rad: np.ma.MaskedArray[Any, Any]) -> Scale:
    """Choose a diverging scale around 0, or the whole circle in a cyclic one if a phase wraps."""
    reach = max(0.01, *(abs(limit) for phase in phases_rad for limit in limits_of(phase)))
    return ("twilight", (-np.pi, np.pi)) if reach > 0.9 * np.pi else ("RdBu_r", (-reach, reach))
