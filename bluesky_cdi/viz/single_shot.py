"""Figure of a single-shot reconstruction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation import transfer_resolution_px
from bluesky_cdi.evaluation.gauge import phase_rad
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.viz.panels import BoolArray, draw_centred, limits_of, phase_scale, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bluesky_cdi.io import SingleShotImage

# Share of an object's largest modulus below which no phase is drawn.
DIM_SHARE = 0.1


def show_single_shot(
    image: SingleShotImage,
    counts: FloatArray,
    mask: BoolArray,
    *,
    title: str = "",
    fig: Figure | None = None,
) -> Figure:
    """Draw a single-shot reconstruction: frame, object, support, transfer function, and R-factors of all starts.

    Parameters
    ----------
    image : SingleShotImage
        The reconstruction.
    counts : ndarray, shape (N, N)
        The frame.
    mask : ndarray, shape (N, N), bool
        True where a pixel of the frame is valid; the others are grey.
    title : str
        Above all panels.
    fig : Figure, optional
        Drawn anew, whatever it held; a new one of 14 x 8.5 inches otherwise.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If the frame and its mask have not the object's shape.
    """
    if not counts.shape == mask.shape == image.object.shape:
        raise ValueError(
            f"frame and mask must have the object's shape {image.object.shape}; "
            f"they have {counts.shape} and {mask.shape}"
        )
    fig = prepared(fig, (14.0, 8.5))
    axes = fig.subplots(2, 3)
    logarithm = np.ma.array(np.log10(np.where(mask, counts, 0.0) + 1), mask=~mask)
    scale = ("magma", limits_of(logarithm))
    draw_centred(axes[0, 0], logarithm, "Frame", "log10(photons + 1)", scale, 1.0, "px")
    window = _window_around(image.support)
    shown, support = image.object[window], image.support[window]
    amplitude = np.ma.array(np.abs(shown))
    # Where there is nearly no wave, its phase says nothing.
    inside = support & (amplitude.data > DIM_SHARE * amplitude.data.max(initial=0.0))
    phase = np.ma.array(phase_rad(shown, inside), mask=~inside)
    where = (1.0, "px") if image.pixel_m is None else (1e6 * image.pixel_m, "µm")
    scale = ("cividis", limits_of(amplitude))
    draw_centred(axes[0, 1], amplitude, "Amplitude", _amplitude_unit(image), scale, *where)
    draw_centred(axes[0, 2], phase, "Phase, inside the support", "rad", phase_scale(phase), *where)
    draw_centred(axes[1, 0], np.ma.array(support, float), "Support", "", ("Greys_r", (0.0, 1.0)), *where)
    _draw_transfer(axes[1, 1], image)
    _draw_history(axes[1, 2], image)
    fig.suptitle(title, fontsize="x-large")
    return fig


def _window_around(support: BoolArray) -> tuple[slice, slice]:
    """Return the central square that holds a support and half as much around it; the whole image if it is empty."""
    size = len(support)
    places = np.argwhere(support)
    half = size // 2 if not len(places) else min(size // 2, int(1.5 * np.abs(places - size // 2).max()) + 2)
    return slice(size // 2 - half, size // 2 + half), slice(size // 2 - half, size // 2 + half)


def _amplitude_unit(image: SingleShotImage) -> str:
    return "transmission" if image.provenance.get("illumination") else "sqrt(photons)"


def _draw_transfer(ax: Axes, image: SingleShotImage) -> None:
    """Draw the transfer function over the ring of the frame, and where it falls below 1/e."""
    ring = np.arange(len(image.transfer))
    averaged = max(1, image.status.count("converged"))
    ax.plot(ring, image.transfer, color="#1f4e9c", label=f"mean of {averaged} start{'' if averaged == 1 else 's'}")
    ax.axhline(math.exp(-1), color="0.35", linestyle="--", linewidth=0.8, label="1/e")
    period_px = transfer_resolution_px(image.transfer, len(image.object))
    if period_px is not None and np.isfinite(period_px):
        ax.axvline(len(image.object) / period_px, color="0.35", linestyle=":", linewidth=0.8)
    ax.set(xlim=(0, ring[-1]), ylim=(0, max(1.1, float(np.nanmax(image.transfer, initial=0.0)) * 1.05)))
    ax.set(title="Phase retrieval transfer function", xlabel="ring of the frame (pixels)", ylabel="PRTF")
    ax.legend(loc="lower left", fontsize="small")


def _draw_history(ax: Axes, image: SingleShotImage) -> None:
    """Draw the R-factor of every start over the cycles, the best one in colour, and that of photon noise."""
    cycle = np.arange(len(image.history))
    for start, values in enumerate(image.history.T):
        best = start == image.best
        style: dict[str, Any] = (
            {"color": "#d95f02", "linewidth": 1.6, "zorder": 3} if best else {"color": "0.6", "linewidth": 0.7}
        )
        ax.plot(cycle, values, label="best start" if best else None, **style)
    ax.axhline(image.noise_r_factor, color="#1f4e9c", linestyle="--", linewidth=1.0, label="photon noise")
    ax.set(title="R-factor of all starts", xlabel="cycle", ylabel="R-factor", yscale="log")
    ax.legend(loc="upper right", fontsize="small")
