"""Figure of a result, with all that is looked at before it is believed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.evaluation.gauge import measured_area, shown_images
from bluesky_cdi.evaluation.resolution import with_curve
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.viz.objects import Part, draw_part, draw_scaled, heading_of
from bluesky_cdi.viz.panels import PATH_COLOUR, BoolArray, colour_bar, prepared
from bluesky_cdi.viz.resolution import draw_halves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from bluesky_cdi.evaluation.fit import FittedFrame

FOOTER_CHARACTERS = 150
# Share of the probe's largest modulus below which its phase says nothing.
DIM_SHARE = 0.1
# Losses that differ by more are drawn on a logarithmic scale.
WIDE = 5.0


@dataclass(frozen=True)
class Course:
    """How a reconstruction went.

    Attributes
    ----------
    step : str
        What is counted: iterations, or updates of a live run.
    loss : sequence of float
        Poisson deviance a pixel after each.
    frames : sequence of int
        Frames that were in by then; empty: all.
    """

    step: str
    loss: Sequence[float]
    frames: Sequence[int] = ()


def show_result(
    estimate: Estimate, name: str = "", course: Course | None = None, fit: FittedFrame | None = None
) -> Figure:
    """Draw phase, amplitude, predicted error, probe and convergence; images with row 0 above and a scale bar.

    Where two halves of the frames were compared, their ring correlation is drawn too.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.
    name : str
        Above the images.
    course : Course, optional
        How it went; without it there is no curve.
    fit : FittedFrame, optional
        A diffraction pattern, which is drawn beside what the result expects there.

    Returns
    -------
    Figure
    """
    halves = with_curve(estimate.source)
    columns = 3 + (fit is not None) + (halves is not None)
    fig = prepared(None, (2.0 + 4.5 * columns, 9.0))
    axes = fig.subplots(2, columns)
    shown, part = shown_images(estimate), Part.of(measured_area(estimate.coverage), estimate.pixel_m)
    draw_part(axes[0, 0], part, shown["phase"], "Phase", "rad (0: mean of the measured area)")
    draw_part(axes[0, 1], part, shown["amplitude"], "Amplitude", "relative to vacuum")
    draw_part(axes[0, 2], part, estimate.std_phase_rad, "Predicted phase error", "rad, 1 σ", "viridis")
    _draw_probe(axes[1, 0], axes[1, 1], estimate)
    _draw_course(axes[1, 2], course)
    if fit is not None:
        _draw_fit(axes[0, 3], axes[1, 3], fit)
    if halves is not None:
        draw_halves(axes[0, -1], halves)
        axes[1, -1].set_axis_off()
    word, _, why = verdict_said(estimate.source).partition(": ")
    fig.suptitle(heading_of(estimate, name, word), fontsize="x-large")
    if why:
        fig.supxlabel(textwrap.fill(why, FOOTER_CHARACTERS), fontsize="small")
    return fig


def _draw_probe(amplitude_axes: Axes, phase_axes: Axes, estimate: Estimate) -> None:
    """Draw the amplitude of all modes together, and the phase of the strongest."""
    powers = np.square(np.abs(estimate.probe)).sum(axis=(1, 2))
    total, main = np.sqrt(np.square(np.abs(estimate.probe)).sum(axis=0)), int(np.argmax(powers))
    wave = estimate.probe[main]
    dim = np.abs(wave) < DIM_SHARE * np.abs(wave).max()
    phase = np.ma.array(np.angle(wave * np.conj(wave[~dim].sum())), mask=dim)
    several, share = len(powers) > 1, powers[main] / max(powers.sum(), 1e-30)
    title = "Probe, amplitude" + f" of its {len(powers)} modes" * several
    draw_scaled(amplitude_axes, np.ma.array(total), title, "√photons", estimate.pixel_m)
    # It often winds; a cyclic scale has no edge where it does.
    scale = ("twilight", (-np.pi, np.pi))
    title = "Probe, phase" + f" of the strongest mode ({100 * share:.3g} %)" * several
    draw_scaled(phase_axes, phase, title, "rad", estimate.pixel_m, scale)


def _draw_course(ax: Axes, course: Course | None) -> None:
    if course is None or not len(course.loss):
        ax.set_axis_off()
        return
    loss = np.asarray(course.loss, float)
    steps = np.arange(1, len(loss) + 1)
    ax.plot(steps, loss, "o-" if len(loss) < 40 else "-", color=PATH_COLOUR, markersize=3)
    bright = loss[np.isfinite(loss) & (loss > 0)]
    if len(bright) and bright.max() > WIDE * bright.min():
        ax.set_yscale("log")
        for which in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            which("{x:.3g}")
    ax.set(xlabel=course.step, ylabel="deviance per pixel")
    ax.set_title(f"Convergence: {loss[-1]:.3g} after {len(loss)} {course.step}s")
    ax.set_box_aspect(1)
    if len(course.frames):
        beside = ax.twinx()
        beside.step(steps, course.frames, where="mid", color="0.6", linewidth=1)
        beside.set_ylabel("frames (grey)", color="0.4")
        beside.set_ylim(bottom=0)


def _draw_fit(pattern_axes: Axes, fit_axes: Axes, fit: FittedFrame) -> None:
    """Draw counts and what is expected, on one scale; pixels that don't count are left out."""
    norm = norm_of(fit.counts, fit.valid)
    draw_pattern(pattern_axes, fit.counts, fit.valid, norm, f"Pattern of frame {fit.seq_num}")
    draw_pattern(fit_axes, fit.fit, fit.valid, norm, f"Its fit: deviance {fit.deviance:.3g} per pixel")


def norm_of(counts: FloatArray, valid: BoolArray) -> LogNorm:
    """Choose the scale of a frame and its fit: up to the brightest pixel that was measured."""
    from matplotlib.colors import LogNorm

    return LogNorm(0.1, max(2.0, float(counts[valid].max(initial=0))))


def draw_pattern(ax: Axes, image: FloatArray, valid: BoolArray, norm: LogNorm, title: str) -> None:
    """Draw a diffraction pattern on a logarithmic scale.

    Parameters
    ----------
    ax : Axes
        Where.
    image : ndarray, shape (N, N)
        Photons.
    valid : ndarray, shape (N, N), bool
        Pixels that count; the others are left out.
    norm : LogNorm
        Its scale: one for a frame and its fit.
    title : str
        Above it.
    """
    # Nothing counted is below the scale, not beyond it.
    drawn = ax.imshow(np.ma.array(np.maximum(image, 0.1), mask=~valid), norm=norm, cmap="magma", interpolation="none")
    ax.set(title=title, xticks=[], yticks=[])
    colour_bar(ax, drawn, "photons per pixel", linear=False)
