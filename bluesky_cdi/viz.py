"""Figures: an estimate at one moment, the demo's comparison with its reference, and reconstructions side by side.

Nothing here touches pyplot's global state, so a figure may be drawn in any thread; matplotlib is
loaded by the first figure, not by the import. Images are (Y, X), positions (y, x) in metres.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.evaluation import FRC, transfer_resolution_px
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray, Proposal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from bluesky_cdi.io import SingleShotImage
    from bluesky_cdi.physics.geometry import Geometry

BoolArray = npt.NDArray[np.bool_]

UNCOVERED = "0.87"
# Seen on white and on black.
PATH_COLOUR = "#1b9e77"
# Ends of the colour scales, so that single bright pixels don't darken the rest.
PERCENTILES = (0.5, 99.5)
# A measured position is a proposed one if it is this near; read-back errors are smaller, scan steps larger.
SAME_POSITION_PX = 2.0
# Share of an object's largest modulus below which no phase is drawn.
DIM_SHARE = 0.1
# The same share of a probe's.
DIM_PROBE_SHARE = 0.15
# Planes along a beam.
PLANES = 161
# Where the direct beam meets a detector: mark and colour of the place that was found, and of the one that is used.
BEAM_MARKS = (("x", "cyan"), ("+", "lime"))
# Of a line below an estimate's figure.
FOOTER_CHARACTERS = 130
MARKERS = ("o", "D", "s", "^", "v", "P")


def show_estimate(estimate: Estimate, fig: Figure | None = None) -> Figure:
    """Draw amplitude, phase, predicted phase error, and coverage with the scan's path; in words the verdict, if any.

    Parameters
    ----------
    estimate : Estimate
        What is known at one moment of a run.
    fig : Figure, optional
        Drawn anew, whatever it held; a new one of 11 x 9 inches otherwise.

    Returns
    -------
    Figure
    """
    fig = _prepared(fig, (11.0, 9.0))
    axes = fig.subplots(2, 2)
    view = _view_of(estimate)
    phase = view.masked(_phase_rad(estimate.object, view.covered))
    view.image(axes[0, 0], view.masked(np.abs(estimate.object)), "Amplitude", "relative to vacuum", "cividis")
    view.image(axes[0, 1], phase, "Phase", "rad", *_phase_scale(phase))
    view.image(axes[1, 0], view.masked(estimate.std_phase_rad), "Predicted phase error", "rad, 1 σ", "viridis")
    view.image(axes[1, 1], view.masked(estimate.coverage), "Coverage and path", "photons per pixel", "Greys")
    _draw_path(axes[1, 1], estimate.positions_m, ["measured"] * len(estimate.positions_m))
    said = verdict_said(estimate.source)
    word, _, why = said.partition(": ")
    title = f"{_frames(estimate.n_frames)}, {word}" if word else _frames(estimate.n_frames)
    fig.suptitle(title, fontsize="x-large")
    if why:
        fig.supxlabel(textwrap.fill(why, FOOTER_CHARACTERS), fontsize="small")
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
    fig = _prepared(None, (16.0 if columns == 3 else 12.0, 10.0))
    grid = fig.add_gridspec(3, columns, height_ratios=[1, 1, 0.13])
    axes = [fig.add_subplot(grid[k // columns, k % columns]) for k in range(2 * columns)]
    if reference is None:
        phase_axes, (std_axes, amplitude_axes, path_axes) = axes[0], axes[1:]
        std_scale: tuple[Any, ...] = ("viridis",)
        phase = view.masked(_phase_rad(shown, view.covered))
        view.image(phase_axes, phase, "Reconstructed phase", "rad", *_phase_scale(phase))
    else:
        reference_axes, phase_axes, error_axes, amplitude_axes, std_axes, path_axes = axes
        std_scale = _draw_comparison(view, reference, shown, reference_axes, phase_axes, error_axes)
    std = view.masked(estimate.std_phase_rad)
    view.image(std_axes, std, "Predicted phase error", "rad, 1 σ", *std_scale)
    view.image(amplitude_axes, view.masked(np.abs(shown)), "Reconstructed amplitude", "relative to vacuum", "cividis")
    view.image(path_axes, view.masked(estimate.coverage), "Coverage and path", "photons per pixel", "Greys")
    path = np.asarray(path_m, np.float64).reshape(-1, 2)
    _draw_path(path_axes, path, _reasons(path, proposals, SAME_POSITION_PX * estimate.pixel_m))
    _draw_table(fig.add_subplot(grid[2, :]), table)
    fig.suptitle(title, fontsize="x-large")
    return fig


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
    fig = _prepared(fig, (11.5, 9.5))
    axes = fig.subplots(2, 2)
    _draw_comparison(_View(mask, origin_m, pixel_m), b, a, axes[0, 1], axes[0, 0], axes[1, 0])
    axes[0, 0].set_title(f"Phase, {names[0]}")
    axes[0, 1].set_title(f"Phase, {names[1]}")
    axes[1, 0].set_title("Absolute phase difference")
    _draw_square(axes[1, 0], origin_m, pixel_m, square_px)
    _draw_frc(axes[1, 1], frc, "FRC with the truth, in the square" if against_truth else "FRC, in the square")
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
    view = _View(mask[window], (origin_m[0] + y * pixel_m, origin_m[1] + x * pixel_m), pixel_m)
    cut = {name: image[window] for name, image in images.items()}
    first = next(iter(cut.values()))
    mean = np.sum(first[view.covered], dtype=np.complex128)
    gauge = np.conj(mean) if mean else 1.0
    colours, limits = _phase_scale(view.masked(np.angle(first * gauge)))
    low, high = _limits(view.masked(np.abs(first)))
    # Room for what overshoots: a first image without noise would leave the others none.
    bright = (low - 0.3 * (high - low), high + 0.3 * (high - low))
    fig = _prepared(fig, (3.6 * len(cut), 6.8))
    axes = fig.subplots(2, len(cut), squeeze=False, sharex=True, sharey=True)
    for k, (name, image) in enumerate(cut.items()):
        view.image(axes[0, k], view.masked(np.angle(image * gauge)), name, "phase, rad", colours, limits)
        view.image(axes[1, k], view.masked(np.abs(image)), "", "amplitude", "cividis", bright)
    for panel in axes.flat:
        panel.label_outer()
    fig.suptitle(title, fontsize="x-large")
    return fig


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
    fig = _prepared(fig, (14.0, 8.5))
    axes = fig.subplots(2, 3)
    size, pixel_um = len(counts), None if image.pixel_m is None else 1e6 * image.pixel_m
    logarithm = np.ma.array(np.log10(np.where(mask, counts, 0.0) + 1), mask=~mask)
    _draw_centred(axes[0, 0], logarithm, "Frame", "log10(photons + 1)", "magma", None, size, None)
    window = _window_around(image.support)
    shown, support = image.object[window], image.support[window]
    # Where there is nearly no wave, its phase says nothing.
    inside = support & (np.abs(shown) > DIM_SHARE * np.abs(shown).max(initial=0.0))
    phase = np.ma.array(_phase_rad(shown, inside), mask=~inside)
    where = (len(shown), pixel_um)
    _draw_centred(axes[0, 1], np.ma.array(np.abs(shown)), "Amplitude", _amplitude_unit(image), "cividis", None, *where)
    scale, limits = _phase_scale(phase)
    _draw_centred(axes[0, 2], phase, "Phase, inside the support", "rad", scale, limits, *where)
    _draw_centred(axes[1, 0], np.ma.array(support, float), "Support", "", "Greys_r", (0.0, 1.0), *where)
    _draw_transfer(axes[1, 1], image)
    _draw_history(axes[1, 2], image)
    fig.suptitle(title, fontsize="x-large")
    return fig


def show_probes(probes: Mapping[str, ComplexArray], geometry: Geometry) -> Figure:
    """Draw probes one below the other: at the sample, at the pupil, along the beam, and the powers of their modes.

    Phases are of the strongest mode, without their ramps; amplitudes and caustic are of all modes together. The pupil's
    phase is drawn without the defocus that its title states, which would wrap it many times. In the near field, where
    the wave's angles are no pupil, the detector takes its place, and the beam is drawn as far as there.

    Parameters
    ----------
    probes : Mapping of str to ndarray, shape (modes, N, N), complex
        By what is written beside them.
    geometry : Geometry
        Gives lengths and angles.

    Returns
    -------
    Figure
    """
    fig = _prepared(None, (20.0, 3.05 * len(probes)))
    rows = fig.subplots(len(probes), 6, squeeze=False)
    beams = [_Beam.of(modes, geometry) for modes in probes.values()]
    planes = [
        ("sample", "µm", 1e6 * geometry.pixel_m, [beam.at_sample for beam in beams]),
        ("pupil", "mrad", 1e3 * _pupil_step(geometry), [beam.flat_at_pupil for beam in beams]),
    ]
    far_field = geometry.propagation == "far"
    if not far_field:
        at_detector = [_downstream(beam.at_pupil, geometry, geometry.effective_distance_m) for beam in beams]
        planes[1] = ("detector", "µm", 1e6 * geometry.pixel_m, at_detector)
    for k, (where, unit, step, stacks) in enumerate(planes):
        side = max(map(_side_px, stacks))
        phases = [_main_phase(waves) for waves in stacks]
        scale = _phase_scale(*phases)
        for axes, waves, phase in zip(rows, stacks, phases, strict=True):
            bright = np.sqrt(np.square(np.abs(waves)).sum(axis=0))
            bright = np.ma.array(bright / max(bright.max(), 1e-30))
            _draw_middle(
                axes[2 * k], bright, f"amplitude at the {where}", "relative", ("cividis", (0, 1)), side, step, unit
            )
            _draw_middle(axes[2 * k + 1], phase, f"phase at the {where}", "rad", scale, side, step, unit)
    if far_field:
        near_m = min(0.0, *(beam.focus_m - beam.depth_m for beam in beams))
        far_m = max(0.0, *(beam.focus_m + beam.depth_m for beam in beams))
    else:
        near_m, far_m = sorted((-0.25 * geometry.effective_distance_m, geometry.effective_distance_m))
    for axes, name, beam in zip(rows, probes, beams, strict=True):
        axes[0].annotate(
            name, (-0.55, 0.5), xycoords="axes fraction", rotation=90, ha="center", va="center", fontsize="x-large"
        )
        _draw_caustic(axes[4], beam, geometry, near_m, far_m)
        _draw_powers(axes[5], beam.powers)
        if far_field:
            axes[4].set_title(f"along the beam,\nfocus at {_length(beam.focus_m)}")
            axes[3].set_title(f"phase at the pupil,\nless its defocus of {_length(-beam.focus_m)}")
    return fig


@dataclass(frozen=True, eq=False)
class _Beam:
    """A probe, modes in the order of their powers: at the sample, at the pupil, and there less its defocus.

    The focus lies `focus_m` downstream of the sample; `depth_m` around it the beam stays within the window.
    """

    at_sample: ComplexArray
    at_pupil: ComplexArray
    flat_at_pupil: ComplexArray
    powers: FloatArray
    depth_m: float
    focus_m: float

    @classmethod
    def of(cls, modes: ComplexArray, geometry: Geometry) -> _Beam:
        powers = np.square(np.abs(modes)).sum(axis=(1, 2))
        order = np.argsort(-powers, kind="stable")
        at_pupil = _to_pupil(modes[order])
        depth = _depth_m(at_pupil, geometry)
        focus = _focus_m(at_pupil[:1], geometry, depth)
        return cls(
            modes[order],
            at_pupil,
            at_pupil * _propagated(geometry, focus),
            powers[order] / powers.sum(),
            depth,
            focus,
        )


def _main_phase(waves: ComplexArray) -> np.ma.MaskedArray[Any, Any]:
    """Take the phase of the first of some modes, without its ramp, where there is light."""
    dim = _dim(waves[0])
    return np.ma.array(_phase_rad(_without_ramp(waves[0], dim), ~dim), mask=dim)


def _draw_middle(
    ax: Axes,
    image: np.ma.MaskedArray[Any, Any],
    title: str,
    label: str,
    scale: tuple[str, tuple[float, float]],
    side: int,
    step: float,
    unit: str,
) -> None:
    """Draw the middle of an image, whose pixel N // 2 is the origin."""
    from matplotlib import colormaps

    half, first = side // 2, len(image) // 2 - side // 2
    ends = ((-half - 0.5) * step, (side - half - 0.5) * step)
    drawn = ax.imshow(
        image[first : first + side, first : first + side],
        cmap=colormaps[scale[0]].with_extremes(bad=UNCOVERED),
        vmin=scale[1][0],
        vmax=scale[1][1],
        extent=(*ends, *ends),
        origin="lower",
        interpolation="nearest",
    )
    ax.set(title=title, xlabel=f"x ({unit})", ylabel=f"y ({unit})")
    _colour_bar(ax, drawn, label, 1.03)


def _draw_caustic(ax: Axes, beam: _Beam, geometry: Geometry, near_m: float, far_m: float) -> None:
    """Draw a beam from above; the sample stands at the line."""
    depth, unit = (1e-3, "mm") if max(far_m, -near_m) > 1e-3 else (1e-6, "µm")
    ends = [1e6 * (k - 0.5) * geometry.pixel_m for k in (-(geometry.frame_px // 2), (geometry.frame_px + 1) // 2)]
    caustic = np.sqrt(_caustic(beam.at_pupil, geometry, near_m, far_m))
    drawn = ax.imshow(
        caustic / max(caustic.max(), 1e-30),
        cmap="magma",
        vmin=0,
        vmax=1,
        extent=(near_m / depth, far_m / depth, ends[0], ends[1]),
        aspect="auto",
        origin="lower",
    )
    _colour_bar(ax, drawn, "root of intensity", 1.03)
    ax.axvline(0.0, color="w", linewidth=0.8)
    ax.set(title="along the beam", box_aspect=1)
    ax.set(xlabel=f"downstream of the sample ({unit})", ylabel="x (µm)")


def _draw_powers(ax: Axes, powers: FloatArray) -> None:
    number = np.arange(1, len(powers) + 1)
    for bar, power in zip(ax.bar(number, powers, color=PATH_COLOUR), powers, strict=True):
        middle = bar.get_x() + bar.get_width() / 2
        ax.annotate(
            f"{100 * power:.0f} %", (middle, power), (0, 2), textcoords="offset points", ha="center", va="bottom"
        )
    ax.set(title="powers of the modes", xlabel="mode", ylabel="share of the photons", box_aspect=1)
    ax.set(ylim=(0, 1.1), xlim=(0.2, max(3, len(powers)) + 0.8), xticks=number)


def _length(metres: float) -> str:
    """Write a length along the beam with its sign."""
    unit, name = (1e-3, "mm") if abs(metres) >= 0.9995e-3 else (1e-6, "µm")
    return f"{metres / unit:+.3g} {name}".replace("-", "\N{MINUS SIGN}")


def _dim(wave: ComplexArray) -> BoolArray:
    """Find where a pixel, or the mean of the 3 x 3 around it, has too little light for a phase to say anything."""
    from scipy.ndimage import uniform_filter

    power = np.square(np.abs(wave)).astype(np.float64)
    around = uniform_filter(power, 3, mode="nearest")
    return np.asarray(~(np.minimum(power, around) > DIM_PROBE_SHARE**2 * around.max()))


def _side_px(waves: ComplexArray) -> int:
    """Return the side of the central square that holds nearly all light, and a tenth around it; even."""
    size = waves.shape[-1]
    away = np.abs(np.arange(size) - size // 2)
    power = np.square(np.abs(waves)).sum(axis=0)
    seen = power > DIM_PROBE_SHARE**2 * power.max() / 4
    reach = int(max(away[seen.any(axis=1)].max(initial=1), away[seen.any(axis=0)].max(initial=1)))
    return int(min(size - size % 2, 2 * np.ceil(1.1 * reach + 1)))


def _to_pupil(modes: ComplexArray) -> ComplexArray:
    shifted = np.fft.ifftshift(modes, axes=(-2, -1))
    return np.asarray(np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1)))


def _without_ramp(wave: ComplexArray, dim: BoolArray) -> ComplexArray:
    """Take out the mean slope of a wave's phase: it says where the middle is, and hides all else."""
    y, x = np.meshgrid(*(np.arange(n) for n in wave.shape), indexing="ij")
    bright = np.where(dim, 0, wave)
    slopes = [np.angle(np.sum(np.roll(bright, -1, axis) * bright.conj())) for axis in (0, 1)]
    return np.asarray(wave * np.exp(-1j * (slopes[0] * y + slopes[1] * x)))


def _pupil_step(geometry: Geometry) -> float:
    """Return the angle between neighbours at the pupil, radians."""
    return float(geometry.wavelength_m / (geometry.frame_px * geometry.pixel_m))


def _squared_angle(geometry: Geometry) -> FloatArray:
    """Return the square of the angle to the axis at each pixel of the pupil, (N, N), rad^2."""
    index = (np.arange(geometry.frame_px) - geometry.frame_px // 2) * _pupil_step(geometry)
    return np.asarray(index[:, None] ** 2 + index[None, :] ** 2)


def _propagated(geometry: Geometry, distance_m: float) -> ComplexArray:
    """Return the factor on the pupil's wave, (N, N), that carries the probe downstream."""
    return np.asarray(np.exp(-1j * np.pi * distance_m * _squared_angle(geometry) / geometry.wavelength_m))


def _depth_m(at_pupil: ComplexArray, geometry: Geometry) -> float:
    """How far from its focus a probe stays within half of the frame's window, about, metres."""
    power = np.square(np.abs(at_pupil)).sum(axis=0)
    angle = float(np.sqrt((_squared_angle(geometry) * power).sum() / power.sum()))
    return 0.3 * geometry.frame_px * geometry.pixel_m / max(angle, 1e-12)


def _downstream(at_pupil: ComplexArray, geometry: Geometry, distance_m: float) -> ComplexArray:
    """Carry modes from their pupil to a plane downstream of the sample."""
    waves = np.fft.ifftshift(at_pupil * _propagated(geometry, distance_m), axes=(-2, -1))
    return np.asarray(np.fft.fftshift(np.fft.ifft2(waves, norm="ortho"), axes=(-2, -1)))


def _along_the_beam(at_pupil: ComplexArray, geometry: Geometry, planes_m: FloatArray) -> Iterator[FloatArray]:
    """Yield the intensity in planes downstream of the sample, (N, N) each."""
    for z in planes_m:
        yield np.square(np.abs(_downstream(at_pupil, geometry, z))).sum(axis=0)


def _focus_m(at_pupil: ComplexArray, geometry: Geometry, depth_m: float) -> float:
    """Find the plane in which the light is on the fewest pixels, metres downstream of the sample."""
    planes = np.linspace(-1.2 * depth_m, 1.2 * depth_m, PLANES)
    sharp = np.array([np.square(each).sum() for each in _along_the_beam(at_pupil, geometry, planes)])
    best = int(np.clip(sharp.argmax(), 1, PLANES - 2))
    below, here, above = sharp[best - 1 : best + 2]
    bend = below + above - 2 * here
    # At the end of the range there is no maximum to go to.
    move = float(np.clip((below - above) / (2 * bend), -1, 1)) if bend < 0 else 0.0
    return float(planes[best] + move * (planes[1] - planes[0]))


def _caustic(at_pupil: ComplexArray, geometry: Geometry, first_m: float, last_m: float) -> FloatArray:
    """Compute the intensity along the beam, summed over rows: (N columns, planes)."""
    planes = _along_the_beam(at_pupil, geometry, np.linspace(first_m, last_m, PLANES))
    return np.stack([each.sum(axis=0) for each in planes], axis=1)


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
    fig = _prepared(None, (7.0 if result is None else 13.0, 6.0))
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


def save_figure(fig: Figure, path: Path | str) -> None:
    """Write a figure so that `path` holds either all of it or what it held before.

    Parameters
    ----------
    fig : Figure
        The figure.
    path : path
        Its suffix is the format.

    Raises
    ------
    ValueError
        If matplotlib doesn't write the format.
    OSError
        If the folder is absent or can't be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        fig.savefig(partial, format=path.suffix.lstrip(".") or "png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _View:
    """Object grid as images are drawn on it: axes in micrometres, gaps in grey."""

    def __init__(self, covered: BoolArray, origin_m: tuple[float, float], pixel_m: float) -> None:
        self.covered = covered
        rows, columns = covered.shape
        (y, x), pixel = origin_m, pixel_m
        edges = (x - pixel / 2, x + (columns - 0.5) * pixel, y - pixel / 2, y + (rows - 0.5) * pixel)
        self.extent_um = (1e6 * edges[0], 1e6 * edges[1], 1e6 * edges[2], 1e6 * edges[3])

    def masked(self, image: FloatArray) -> np.ma.MaskedArray[Any, Any]:
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
        from matplotlib import colormaps

        low, high = limits or _limits(image)
        colours = colormaps[cmap].with_extremes(bad=UNCOVERED)
        drawn = ax.imshow(image, cmap=colours, vmin=low, vmax=high, extent=self.extent_um, origin="lower")
        ax.set(title=title, xlabel="x (µm)", ylabel="y (µm)")
        _colour_bar(ax, drawn, unit, 1.03)


def _view_of(estimate: Estimate) -> _View:
    coverage = estimate.coverage
    enough = MEASURED_SHARE * np.max(coverage, initial=0.0)
    return _View(np.asarray((coverage >= enough) & (coverage > 0)), estimate.origin_m, estimate.pixel_m)


def _prepared(fig: Figure | None, size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    if fig is None:
        fig = Figure(figsize=size, dpi=100)
    fig.clear()
    fig.set_layout_engine("compressed", w_pad=0.1, h_pad=0.06)
    return fig


def _bounds(mask: BoolArray) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Return first row and column of the smallest window that holds a mask, and the window."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    window = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return (window[0].start, window[1].start), window


def _colour_bar(ax: Axes, drawn: ScalarMappable, label: str, place: float) -> None:
    # An inset is as high as the image, which a bar beside axes of fixed aspect is not.
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((place, 0, 0.05, 1)), label=label)
    # Many photons as 1.5 with a power of ten above the bar: long numbers would run into what is beside it.
    bar.ax.ticklabel_format(axis="y", scilimits=(-3, 4))


def _limits(image: np.ma.MaskedArray[Any, Any]) -> tuple[float, float]:
    values = image.compressed()
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, PERCENTILES)
    # An even image would otherwise show its rounding errors in full colour.
    room = max(0.0, 1e-3 * max(abs(low), abs(high), 1e-9) - (high - low)) / 2
    return float(low - room), float(high + room)


def _phase_rad(image: ComplexArray, covered: BoolArray) -> FloatArray:
    """Return the phase without the mean of the covered area, which no measurement fixes."""
    mean = np.sum(image[covered], dtype=np.complex128)
    return np.asarray(np.angle(image * (np.conj(mean) if mean else 1.0)))


def _phase_scale(*phases_rad: np.ma.MaskedArray[Any, Any]) -> tuple[str, tuple[float, float]]:
    """Choose a diverging scale around 0, or the whole circle in a cyclic one if a phase wraps."""
    reach = max(0.01, *(abs(limit) for phase in phases_rad for limit in _limits(phase)))
    return ("twilight", (-np.pi, np.pi)) if reach > 0.9 * np.pi else ("RdBu_r", (-reach, reach))


def _draw_comparison(
    view: _View, reference: ComplexArray, shown: ComplexArray, reference_axes: Axes, phase_axes: Axes, error_axes: Axes
) -> tuple[str, tuple[float, float]]:
    """Draw both phases on one scale and their difference; return the difference's scale."""
    mean = np.sum(reference[view.covered], dtype=np.complex128)
    gauge = np.conj(mean) if mean else 1.0
    truth, found = view.masked(np.angle(reference * gauge)), view.masked(np.angle(shown * gauge))
    scale = _phase_scale(truth, found)
    error = view.masked(np.abs(np.angle(shown * np.conj(reference))))
    error_scale = ("viridis", (0.0, _limits(error)[1]))
    view.image(reference_axes, truth, "Reference phase", "rad", *scale)
    view.image(phase_axes, found, "Reconstructed phase", "rad", *scale)
    view.image(error_axes, error, "Absolute phase error", "rad", *error_scale)
    return error_scale


def _draw_square(ax: Axes, origin_m: tuple[float, float], pixel_m: float, square_px: tuple[int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    row, column, side = square_px
    corner = (1e6 * (origin_m[1] + (column - 0.5) * pixel_m), 1e6 * (origin_m[0] + (row - 0.5) * pixel_m))
    width = 1e6 * side * pixel_m
    ax.add_patch(Rectangle(corner, width, width, fill=False, edgecolor="white", linestyle="--", linewidth=1.0))


def _draw_frc(ax: Axes, frc: FRC, title: str) -> None:
    """Draw correlation and thresholds over the frequency in 1/µm; the upper axis is in full periods."""
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


def _draw_centred(
    ax: Axes,
    image: np.ma.MaskedArray[Any, Any],
    title: str,
    unit: str,
    cmap: str,
    limits: tuple[float, float] | None,
    size: int,
    pixel_um: float | None,
) -> None:
    """Draw a square image with pixel N // 2 at the origin, in micrometres or, without a pixel size, in pixels."""
    from matplotlib import colormaps

    step, name = (1.0, "px") if pixel_um is None else (pixel_um, "µm")
    low, high = (-(size // 2) - 0.5) * step, (size - size // 2 - 0.5) * step
    bottom, top = limits or _limits(image)
    colours = colormaps[cmap].with_extremes(bad=UNCOVERED)
    drawn = ax.imshow(image, cmap=colours, vmin=bottom, vmax=top, extent=(low, high, low, high), origin="lower")
    ax.set(title=title, xlabel=f"x ({name})", ylabel=f"y ({name})")
    if unit:
        _colour_bar(ax, drawn, unit, 1.03)


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
    ax.axhline(1 / np.e, color="0.35", linestyle="--", linewidth=0.8, label="1/e")
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
    _colour_bar(ax, points, "order of measurement", 1.33)
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


def _frames(n: int) -> str:
    return f"Reconstruction from {n} frame{'' if n == 1 else 's'}"
