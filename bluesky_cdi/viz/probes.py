"""Figure of probes: at the sample, at the pupil, along the beam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation.gauge import phase_rad
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.viz.beam import Beam, pupil_step
from bluesky_cdi.viz.panels import PATH_COLOUR, BoolArray, colour_bar, draw_centred, phase_scale, prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bluesky_cdi.physics.geometry import Geometry

# Share of a probe's largest modulus below which no phase is drawn.
DIM_PROBE_SHARE = 0.15


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
    fig = prepared(None, (20.0, 3.05 * len(probes)))
    rows = fig.subplots(len(probes), 6, squeeze=False)
    beams = [Beam.of(modes, geometry) for modes in probes.values()]
    planes = [
        ("sample", "µm", 1e6 * geometry.pixel_m, [beam.at_sample for beam in beams]),
        ("pupil", "mrad", 1e3 * pupil_step(geometry), [beam.flat_at_pupil for beam in beams]),
    ]
    far_field = geometry.propagation == "far"
    if not far_field:
        at_detector = [beam.downstream(geometry.effective_distance_m) for beam in beams]
        planes[1] = ("detector", "µm", 1e6 * geometry.pixel_m, at_detector)
    for k, (where, unit, step, stacks) in enumerate(planes):
        side = max(map(_side_px, stacks))
        phases = [_main_phase(waves) for waves in stacks]
        scale = phase_scale(*phases)
        for axes, waves, phase in zip(rows, stacks, phases, strict=True):
            bright = np.sqrt(np.square(np.abs(waves)).sum(axis=0))
            bright = np.ma.array(bright / max(bright.max(), 1e-30))
            for ax, what, label, image, colours in (
                (axes[2 * k], "amplitude", "relative", bright, ("cividis", (0, 1))),
                (axes[2 * k + 1], "phase", "rad", phase, scale),
            ):
                draw_centred(ax, _middle(image, side), f"{what} at the {where}", label, colours, step, unit, "nearest")
    near_m, far_m = min(ends_of(beam)[0] for beam in beams), max(ends_of(beam)[1] for beam in beams)
    for axes, name, beam in zip(rows, probes, beams, strict=True):
        axes[0].annotate(
            name, (-0.55, 0.5), xycoords="axes fraction", rotation=90, ha="center", va="center", fontsize="x-large"
        )
        draw_caustic(axes[4], beam.caustic(near_m, far_m), beam.geometry, near_m, far_m)
        _draw_powers(axes[5], beam.powers)
        if far_field:
            axes[4].set_title(f"along the beam,\nfocus at {_length(beam.focus_m)}")
            axes[3].set_title(f"phase at the pupil,\nless its defocus of {_length(-beam.focus_m)}")
    return fig


def _main_phase(waves: ComplexArray) -> np.ma.MaskedArray[Any, Any]:
    """Take the phase of the first of some modes, without its ramp, where there is light."""
    dim = _dim(waves[0])
    return np.ma.array(phase_rad(_without_ramp(waves[0], dim), ~dim), mask=dim)


def _middle(image: np.ma.MaskedArray[Any, Any], side: int) -> np.ma.MaskedArray[Any, Any]:
    """Cut the middle, whose pixel side // 2 is the image's pixel N // 2."""
    first = len(image) // 2 - side // 2
    return image[first : first + side, first : first + side]


def ends_of(beam: Beam) -> tuple[float, float]:
    """Choose how far a beam is drawn, metres downstream of the sample: around sample and focus, or to the detector."""
    geometry = beam.geometry
    if geometry.propagation == "far":
        return min(0.0, beam.focus_m - beam.depth_m), max(0.0, beam.focus_m + beam.depth_m)
    near_m, far_m = sorted((-0.25 * geometry.effective_distance_m, geometry.effective_distance_m))
    return near_m, far_m


def draw_caustic(ax: Axes, intensity: FloatArray, geometry: Geometry, near_m: float, far_m: float) -> None:
    """Draw a beam from above; the sample stands at the line.

    Parameters
    ----------
    ax : Axes
        Where.
    intensity : ndarray, shape (N, planes)
        As `Beam.caustic` gives it.
    geometry : Geometry
        Gives lengths.
    near_m, far_m : float
        Its first and last plane, metres downstream of the sample.
    """
    depth, unit = (1e-3, "mm") if max(far_m, -near_m) > 1e-3 else (1e-6, "µm")
    size, pixel_um = geometry.frame_px, 1e6 * geometry.pixel_m
    ends = [(k - 0.5) * pixel_um for k in (-(size // 2), (size + 1) // 2)]
    bright = np.sqrt(intensity)
    drawn = ax.imshow(
        bright / max(bright.max(), 1e-30),
        cmap="magma",
        vmin=0,
        vmax=1,
        extent=(near_m / depth, far_m / depth, ends[0], ends[1]),
        aspect="auto",
        origin="lower",
    )
    colour_bar(ax, drawn, "root of intensity")
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


def _without_ramp(wave: ComplexArray, dim: BoolArray) -> ComplexArray:
    """Take out the mean slope of a wave's phase: it says where the middle is, and hides all else."""
    y, x = np.meshgrid(*(np.arange(n) for n in wave.shape), indexing="ij")
    bright = np.where(dim, 0, wave)
    slopes = [np.angle(np.sum(np.roll(bright, -1, axis) * bright.conj())) for axis in (0, 1)]
    return np.asarray(wave * np.exp(-1j * (slopes[0] * y + slopes[1] * x)))
