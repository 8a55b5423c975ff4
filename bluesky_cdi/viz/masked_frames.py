"""Figure of what a frame encoder was shown of a scan, and what it predicted of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation.gauge import gauge
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.viz.panels import UNCOVERED, BoolArray, Scale, View, limits_of, phase_scale, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("Counts", "What the encoder was given", "From the decoder", "From object and physics")


@dataclass(frozen=True, eq=False)
class MaskedFrame:
    """A frame, what of it was shown, and what was predicted.

    Attributes
    ----------
    counts : ndarray, shape (N, N)
    shown : ndarray, shape (N, N), bool
        All False where the whole frame was hidden.
    valid : ndarray, shape (N, N), bool
        The other pixels are grey everywhere.
    decoded : ndarray, shape (N, N), or None
        Rates that the decoder predicts; None where the whole frame was hidden.
    modelled : ndarray, shape (N, N)
        Rates that the forward model predicts from the object.
    """

    counts: FloatArray
    shown: BoolArray
    valid: BoolArray
    decoded: FloatArray | None
    modelled: FloatArray


def show_masked_frames(
    frames: Sequence[MaskedFrame],
    objects: Mapping[str, ComplexArray],
    mask: BoolArray,
    *,
    pixel_m: float,
    title: str = "",
    fig: Figure | None = None,
) -> Figure:
    """Draw frames, what was shown of them, what was predicted, and below phases and an amplitude of objects.

    Parameters
    ----------
    frames : sequence of MaskedFrame
        A row each, on a colour scale of its own.
    objects : Mapping of str to ndarray, shape (Y, X), complex
        By their titles, at most three; the amplitude is that of the last one. All are brought to its gauge.
    mask : ndarray, shape (Y, X), bool
        Pixels of the objects that count, at least one; the others are grey, and what lies around them is left out.
    pixel_m : float
        Sample pixel, metres.
    title : str
        Above all panels.
    fig : Figure, optional
        Drawn anew, whatever it held; a new one otherwise.

    Returns
    -------
    Figure
    """
    rows = len(frames) + 1
    fig = prepared(fig, (11.5, 2.4 * rows))
    axes = fig.subplots(rows, len(COLUMNS), squeeze=False)
    for number, frame in enumerate(frames):
        _draw_frame(axes[number], frame, first=number == 0)
    rows_lit, columns_lit = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    lit = np.s_[rows_lit[0] : rows_lit[-1] + 1, columns_lit[0] : columns_lit[-1] + 1]
    _draw_objects(axes[-1], {name: obj[lit] for name, obj in objects.items()}, View(mask[lit], (0.0, 0.0), pixel_m))
    fig.suptitle(title, fontsize="x-large")
    return fig


def _draw_frame(axes: Sequence[Axes], frame: MaskedFrame, *, first: bool) -> None:
    logarithm = _logarithm(frame.counts, frame.valid)
    scale = ("magma", limits_of(logarithm))
    images = [logarithm, _logarithm(frame.counts, frame.valid & frame.shown), None, _logarithm(frame.modelled)]
    if frame.decoded is not None:
        images[2] = _logarithm(frame.decoded)
    for column, (ax, image) in enumerate(zip(axes, images, strict=True)):
        if image is None:
            ax.set_axis_off()
        else:
            _draw(ax, image, scale, "log10(photons + 1)" if column == len(COLUMNS) - 1 else "")
        if first:
            ax.set_title(COLUMNS[column])
    axes[0].set_ylabel("part hidden" if frame.shown.any() else "hidden as a whole")


def _draw(ax: Axes, image: np.ma.MaskedArray[Any, Any], scale: Scale, label: str) -> None:
    from matplotlib import colormaps

    from bluesky_cdi.viz.panels import colour_bar

    cmap, (low, high) = scale
    drawn = ax.imshow(image, cmap=colormaps[cmap].with_extremes(bad=UNCOVERED), vmin=low, vmax=high, origin="upper")
    ax.set(xticks=[], yticks=[])
    if label:
        colour_bar(ax, drawn, label)


def _draw_objects(axes: Sequence[Axes], objects: Mapping[str, ComplexArray], view: View) -> None:
    last = list(objects.values())[-1]
    turned = {name: obj * gauge(obj, view.covered) for name, obj in objects.items()}
    phases = {name: view.masked(np.angle(obj)) for name, obj in turned.items()}
    colours, limits = phase_scale(next(iter(phases.values())))
    for ax, (name, phase) in zip(axes, phases.items(), strict=False):
        view.image(ax, phase, f"Phase, {name}", "rad", colours, limits)
    for ax in axes[len(phases) : -1]:
        ax.set_axis_off()
    view.image(axes[-1], view.masked(np.abs(last)), f"Amplitude, {list(objects)[-1]}", "", "cividis")


def _logarithm(counts: FloatArray, valid: BoolArray | None = None) -> np.ma.MaskedArray[Any, Any]:
    hidden = np.zeros(counts.shape, bool) if valid is None else ~valid
    return np.ma.array(np.log10(np.where(hidden, 0.0, np.maximum(counts, 0)) + 1), mask=hidden)
