"""Figures of reconstructions side by side, and of two with their difference and ring correlation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.evaluation import FRC
from bluesky_cdi.evaluation.gauge import gauge
from bluesky_cdi.protocols import ComplexArray
from bluesky_cdi.viz.panels import BoolArray, Scale, View, limits_of, phase_scale, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def show_comparison(
    a: ComplexArray,
    b: ComplexArray,
    mask: BoolArray,
    frc: FRC,
    *,
    origin_m: tuple[float, float],
    pixel_m: float,
    square_px: tuple[int, int, int],
    names: tuple[str, str] = ("A", "B"),
    against_truth: bool = False,
    title: str = "",
    fig: Figure | None = None,
) -> Figure:
    """Draw the phases of two aligned reconstructions, their difference, and their ring correlation.

    Parameters
    ----------
    a, b : ndarray, shape (Y, X), complex
        Registered, without ramp and scale between them.
    mask : ndarray, shape (Y, X), bool
        Pixels that count; the others are grey.
    frc : FRC
        Its curve, thresholds and crossings are drawn.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0], metres.
    pixel_m : float
        Sample pixel, metres.
    square_px : tuple of int
        Row, column and side of the square where `frc` was taken; it is drawn on the difference.
    names : tuple of str
        How the panels call `a` and `b`.
    against_truth : bool
        `b` is a known truth, and the correlation with it no measure of resolution: its panel says so.
    title : str
        Above all panels.
    fig : Figure, optional
        Drawn anew, whatever it held; a new one of 11.5 x 9.5 inches otherwise.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If the images and the mask differ in shape.
    """
    if not a.shape == b.shape == mask.shape:
        raise ValueError(f"two images and a mask must be of one shape; they are {a.shape}, {b.shape} and {mask.shape}")
    fig = prepared(fig, (11.5, 9.5))
    axes = fig.subplots(2, 2)
    draw_phases(View(mask, origin_m, pixel_m), b, a, axes[0, 1], axes[0, 0], axes[1, 0])
    axes[0, 0].set_title(f"Phase, {names[0]}")
    axes[0, 1].set_title(f"Phase, {names[1]}")
    axes[1, 0].set_title("Absolute phase difference")
    _draw_square(axes[1, 0], origin_m, pixel_m, square_px)
    draw_frc(axes[1, 1], frc, "FRC with the truth, in the square" if against_truth else "FRC, in the square")
    fig.suptitle(title, fontsize="x-large")
    return fig


def show_images(
    images: Mapping[str, ComplexArray],
    mask: BoolArray,
    *,
    origin_m: tuple[float, float],
    pixel_m: float,
    title: str = "",
    fig: Figure | None = None,
) -> Figure:
    """Draw objects side by side, phases above amplitudes, all on the colour scales of the first.

    Parameters
    ----------
    images : Mapping of str to ndarray, shape (Y, X), complex
        Objects without ramp and scale between them, by their titles; the first is what the others are held against.
    mask : ndarray, shape (Y, X), bool
        Pixels that count; the others are grey, and what lies around them is left out.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0], metres.
    pixel_m : float
        Sample pixel, metres.
    title : str
        Above all panels.
    fig : Figure, optional
        Drawn anew, whatever it held; a new one otherwise.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If an image has not the mask's shape.
    """
    shapes = {image.shape for image in images.values()}
    if shapes != {mask.shape}:
        raise ValueError(f"images must have the mask's shape {mask.shape}; they have {sorted(shapes)}")
    (y, x), window = _bounds(mask)
    view = View(mask[window], (origin_m[0] + y * pixel_m, origin_m[1] + x * pixel_m), pixel_m)
    cut = {name: image[window] for name, image in images.items()}
    first = next(iter(cut.values()))
    turn = gauge(first, view.covered)
    colours, limits = phase_scale(view.masked(np.angle(first * turn)))
    low, high = limits_of(view.masked(np.abs(first)))
    # Room for what overshoots: a first image without noise would leave the others none.
    bright = (low - 0.3 * (high - low), high + 0.3 * (high - low))
    fig = prepared(fig, (3.6 * len(cut), 6.8))
    axes = fig.subplots(2, len(cut), squeeze=False, sharex=True, sharey=True)
    for k, (name, image) in enumerate(cut.items()):
        view.image(axes[0, k], view.masked(np.angle(image * turn)), name, "phase, rad", colours, limits)
        view.image(axes[1, k], view.masked(np.abs(image)), "", "amplitude", "cividis", bright)
    for panel in axes.flat:
        panel.label_outer()
    fig.suptitle(title, fontsize="x-large")
    return fig


def draw_phases(
    view: View, reference: ComplexArray, shown: ComplexArray, reference_axes: Axes, phase_axes: Axes, error_axes: Axes
) -> Scale:
    """Draw two phases on one scale and their difference.

    Parameters
    ----------
    view : View
        Their grid.
    reference, shown : ndarray, shape (Y, X), complex
        The images.
    reference_axes, phase_axes, error_axes : Axes
        Where they and their difference are drawn.

    Returns
    -------
    Scale
        Of the difference.
    """
    turn = gauge(reference, view.covered)
    truth, found = view.masked(np.angle(reference * turn)), view.masked(np.angle(shown * turn))
    scale = phase_scale(truth, found)
    error = view.masked(np.abs(np.angle(shown * np.conj(reference))))
    error_scale = ("viridis", (0.0, limits_of(error)[1]))
    view.image(reference_axes, truth, "Reference phase", "rad", *scale)
    view.image(phase_axes, found, "Reconstructed phase", "rad", *scale)
    view.image(error_axes, error, "Absolute phase error", "rad", *error_scale)
    return error_scale


def _bounds(mask: BoolArray) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Return first row and column of the smallest window that holds a mask, and the window."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    window = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return (window[0].start, window[1].start), window


def _draw_square(ax: Axes, origin_m: tuple[float, float], pixel_m: float, square_px: tuple[int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    row, column, side = square_px
    corner = (1e6 * (origin_m[1] + (column - 0.5) * pixel_m), 1e6 * (origin_m[0] + (row - 0.5) * pixel_m))
    width = 1e6 * side * pixel_m
    ax.add_patch(Rectangle(corner, width, width, fill=False, edgecolor="white", linestyle="--", linewidth=1.0))


def draw_frc(ax: Axes, frc: FRC, title: str) -> None:
    """Draw correlation and thresholds over the frequency in 1/µm; the upper axis is in full periods.

    Parameters
    ----------
    ax : Axes
        Where.
    frc : FRC
        The curve.
    title : str
        Above it.
    """
    frequency = 1e-6 * frc.frequency_per_m
    ax.plot(frequency, frc.correlation, color="#1f4e9c", label="correlation")
    thresholds = (
        ("half-bit", frc.half_bit, frc.resolution_half_bit_m, "--"),
        ("one-bit", frc.one_bit, frc.resolution_one_bit_m, ":"),
    )
    for name, curve, resolution_m, style in thresholds:
        if resolution_m is None:
            crossing = "not crossed"
        elif np.isinf(resolution_m):
            crossing = "never reached"
        else:
            crossing = f"{1e9 * resolution_m:.3g} nm" if resolution_m < 1e-6 else f"{1e6 * resolution_m:.3g} µm"
            ax.axvline(1e-6 / resolution_m, color="0.35", linestyle=style, linewidth=0.8)
        ax.plot(frequency, curve, color="0.35", linestyle=style, label=f"{name}: {crossing}")
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set(xlim=(0, frequency[-1]), ylim=(min(-0.1, float(frc.correlation.min())), 1.05))
    ax.set(title=title, xlabel="spatial frequency (1/µm)", ylabel="Fourier ring correlation")
    ax.set_box_aspect(1)
    ax.legend(loc="lower left", fontsize="small")
    # A step of the frequency axis is no round period, so the upper ticks stand at round periods.
    periods_nm = _round_periods_nm(1e3 / frequency[-1])
    upper = ax.secondary_xaxis("top")
    upper.set_xticks([1e3 / period for period in periods_nm], [f"{period:g}" for period in periods_nm])
    upper.set_xlabel("full period (nm)")


def _round_periods_nm(shortest_nm: float) -> list[float]:
    """Choose periods of 1, 2, 3 or 5 times a power of ten whose frequencies leave room for their labels on the axis."""
    decade = 10.0 ** np.floor(np.log10(shortest_nm))
    candidates = [step * scale for scale in (decade, 10 * decade) for step in (1.0, 2.0, 3.0, 5.0)]
    periods: list[float] = []
    for period in candidates:
        place, taken = shortest_nm / period, shortest_nm / periods[-1] if periods else np.inf
        if 0.07 < place <= 1 and taken - place > 0.09:  # shares of the axis
            periods.append(period)
    return periods
