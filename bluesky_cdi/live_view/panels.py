"""The panels of a live view: of the image, and of the frames by themselves. Each draws one thing on one axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.evaluation.gauge import measured_area, phase_rad, vacuum_gauge
from bluesky_cdi.evaluation.scan_maps import integrated_phase
from bluesky_cdi.live_view.kept import Kept
from bluesky_cdi.live_view.scene import Scene
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.live_view.words import said
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.viz.estimates import SAME_POSITION_PX
from bluesky_cdi.viz.objects import NOT_MEASURED, Part, draw_scaled
from bluesky_cdi.viz.panels import PATH_COLOUR, View, colour_bar, limits_of
from bluesky_cdi.viz.probes import draw_caustic
from bluesky_cdi.viz.results import draw_pattern, norm_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes", Scene, Kept], None]

NEXT_COLOUR = "#d95f02"
# Usual distance to a neighbour where there is but one frame, in pixels of the sample.
LONE_PX = 8


def _phase(ax: Axes, scene: Scene, kept: Kept) -> None:
    estimate = _image(scene)
    covered = measured_area(estimate.coverage)
    turn = vacuum_gauge(estimate.object, covered) if kept.settings.phase_zero == "vacuum" else None
    phase = phase_rad(estimate.object, covered) if turn is None else np.angle(estimate.object * turn)
    label = f"rad (0: {'mean of the measured area' if turn is None else 'vacuum'})"
    _draw_object(ax, estimate, phase, kept, "Phase", label, kept.settings.phase_colours, 0.0)


def _amplitude(ax: Axes, scene: Scene, kept: Kept) -> None:
    estimate, colours = _image(scene), kept.settings.amplitude_colours
    _draw_object(ax, estimate, np.abs(estimate.object), kept, "Amplitude", "relative to vacuum", colours, 1.0)


def _error(ax: Axes, scene: Scene, kept: Kept) -> None:
    estimate = _image(scene)
    _draw_object(ax, estimate, estimate.std_phase_rad, kept, "Predicted phase error", "rad, 1 σ", "viridis")


def _draw_object(
    ax: Axes,
    estimate: Estimate,
    image: FloatArray,
    kept: Kept,
    title: str,
    label: str,
    colours: str,
    vacuum: float | None = None,
) -> None:
    """Draw the measured part of an image of the object; what vacuum has is on the scale."""
    part = Part.of(measured_area(estimate.coverage), estimate.pixel_m)
    seen = np.ma.array(image[part.rows, part.columns], mask=~part.inside)
    low, high = limits_of(seen)
    if vacuum is not None:
        low, high = min(low, vacuum), max(high, vacuum)
    draw_scaled(ax, seen, title, label, estimate.pixel_m, (colours, (low, high)))
    kept.turn(ax)


def _coverage(ax: Axes, scene: Scene, kept: Kept) -> None:
    """Draw the light on the object, the way of the scan, and where it goes next."""
    estimate, sight = _image(scene), scene.sight
    part = Part.of(measured_area(estimate.coverage), estimate.pixel_m)
    first = part.rows.start or 0, part.columns.start or 0
    y_m, x_m = (origin + k * estimate.pixel_m for origin, k in zip(estimate.origin_m, first, strict=True))
    view = View(part.inside, (y_m, x_m), estimate.pixel_m)
    light = view.masked(estimate.coverage[part.rows, part.columns])
    view.image(ax, light, "Coverage, path, next", "photons per pixel", "Greys")
    path_m = estimate.positions_m
    if sight is not None and len(sight.positions_m) > len(path_m):
        path_m = sight.positions_m
    ax.plot(*_um(path_m), color=PATH_COLOUR, linewidth=0.6)
    ax.scatter(*_um(path_m), c=np.arange(len(path_m)), cmap="plasma", s=6, zorder=3)
    ax.plot(*_um(path_m[-1:]), "o", color="k", markersize=5, fillstyle="none", zorder=4)
    _draw_next(ax, scene.proposed_m, path_m, estimate.pixel_m)
    kept.turn(ax)


def _draw_next(ax: Axes, proposed_m: FloatArray, path_m: FloatArray, pixel_m: float) -> None:
    """Draw the positions that were proposed and are not measured yet, in their order."""
    from scipy.spatial import KDTree

    left_m = proposed_m
    if len(path_m) and len(proposed_m):
        left_m = proposed_m[KDTree(path_m).query(proposed_m)[0] > SAME_POSITION_PX * pixel_m]
    if len(left_m):
        ax.plot(*_um(np.concatenate([path_m[-1:], left_m])), "--", color=NEXT_COLOUR, linewidth=0.8, zorder=4)
        ax.plot(*_um(left_m), "x", color=NEXT_COLOUR, markersize=5, zorder=5)


def _residual(ax: Axes, scene: Scene, kept: Kept) -> None:
    estimate = _image(scene)
    values, lone_m = estimate.residual, LONE_PX * estimate.pixel_m
    _draw_scattered(ax, kept, "Residual of each frame", "deviance per pixel", estimate.positions_m, values, lone_m)


def _probe(ax: Axes, scene: Scene, kept: Kept) -> None:
    estimate = _image(scene)
    modes = len(estimate.probe)
    light = np.ma.array(np.sqrt(np.square(np.abs(estimate.probe)).sum(axis=0)))
    title = "Probe, amplitude" + f" of its {modes} modes" * (modes > 1)
    scale = (kept.settings.amplitude_colours, (0.0, max(float(light.max()), 1e-30)))
    draw_scaled(ax, light, title, "√photons", estimate.pixel_m, scale)
    kept.turn(ax)


def _caustic(ax: Axes, scene: Scene, kept: Kept) -> None:
    geometry = _frames(scene).beam_geometry
    intensity, ends = kept.caustic(_image(scene).probe, geometry)
    draw_caustic(ax, intensity, geometry, *ends)
    ax.set_title("Probe along the beam")


def _pattern(ax: Axes, scene: Scene, _: Kept) -> None:
    sight = _frames(scene)
    if not sight.frame_seq_num:
        _draw_nothing(ax, "the last frames were\nnot looked at" if sight.received else "no frame yet")
        return
    norm = norm_of(sight.counts, sight.valid)
    draw_pattern(ax, sight.counts, sight.valid, norm, f"Pattern of frame {sight.frame_seq_num}")


def _fit(ax: Axes, scene: Scene, _: Kept) -> None:
    sight = _frames(scene)
    if sight.fit is None:
        _draw_nothing(ax, "no frame that is kept\nis in the image yet" if sight.frame_seq_num else "")
        return
    norm = norm_of(sight.counts, sight.valid)
    draw_pattern(ax, sight.fit, sight.valid, norm, f"Its fit: deviance {sight.deviance:.3g} per pixel")


def _words(ax: Axes, scene: Scene, _: Kept) -> None:
    ax.set_axis_off()
    ax.text(-0.1, 1.0, "\n".join(said(scene)), va="top", transform=ax.transAxes, linespacing=1.35)


def _transmission(ax: Axes, scene: Scene, kept: Kept) -> None:
    _draw_map(ax, scene, kept, "Transmission (STXM)", "photons of a frame", _frames(scene).photons)


def _dark_field(ax: Axes, scene: Scene, kept: Kept) -> None:
    _draw_map(ax, scene, kept, "Dark field", "photons beside the direct beam", _frames(scene).dark_photons)


def _slope(ax: Axes, scene: Scene, kept: Kept, axis: int) -> None:
    slope = 1e-6 * _frames(scene).gradient_rad_per_m[:, axis]
    _draw_map(ax, scene, kept, f"Differential phase along {'yx'[axis]}", "rad/µm", slope)


def _integrated(ax: Axes, scene: Scene, kept: Kept) -> None:
    sight = _frames(scene)
    slopes = sight.gradient_rad_per_m
    # What is the same in all is the place of the beam on the detector, not the sample.
    level = np.nanmean(slopes, axis=0) if np.isfinite(slopes).any() else 0.0
    _draw_map(ax, scene, kept, "Phase, integrated, no ramp", "rad", integrated_phase(sight.positions_m, slopes - level))


def _draw_map(ax: Axes, scene: Scene, kept: Kept, title: str, label: str, values: FloatArray) -> None:
    sight = _frames(scene)
    lone_m = LONE_PX * sight.beam_geometry.pixel_m
    _draw_scattered(ax, kept, title, label, sight.positions_m, values, lone_m, "gray")


def _draw_scattered(
    ax: Axes,
    kept: Kept,
    title: str,
    label: str,
    positions_m: FloatArray,
    values: FloatArray,
    lone_m: float,
    colours: str = "magma",
) -> None:
    """Draw numbers at the places where they were measured."""
    from matplotlib import colormaps

    if not np.isfinite(values).any():
        _draw_nothing(ax, f"{title}:\nnothing yet")
        return
    ground = kept.ground(positions_m, lone_m)
    image = ground.image(np.asarray(values, float))
    low, high = limits_of(np.ma.masked_invalid(np.ma.array(values, float)))
    drawn = ax.imshow(
        image, cmap=colormaps[colours].with_extremes(bad=NOT_MEASURED), vmin=low, vmax=high, extent=ground.extent_um,
        origin="upper", interpolation="none",
    )  # fmt: skip
    ax.set(title=title, xlabel="x (µm)", ylabel="y (µm)")
    colour_bar(ax, drawn, label)
    kept.turn(ax)


def _draw_nothing(ax: Axes, why: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, why, ha="center", va="center", color="0.4", transform=ax.transAxes)


def _um(positions_m: FloatArray) -> tuple[Any, Any]:
    return 1e6 * positions_m[:, 1], 1e6 * positions_m[:, 0]


def _image(scene: Scene) -> Estimate:
    if scene.estimate is None:
        raise ValueError("a scene without an estimate has no image to draw: draw what `Drawing.panels` names")
    return scene.estimate


def _frames(scene: Scene) -> Sight:
    if scene.sight is None:
        raise ValueError("a scene without a sight has no frames to draw: draw what `Drawing.panels` names")
    return scene.sight


# By name, as `live_view.panels` of the configuration has them; then those of the maps.
PANELS: Mapping[str, Panel] = {
    "phase": _phase,
    "amplitude": _amplitude,
    "error": _error,
    "coverage": _coverage,
    "residual": _residual,
    "pattern": _pattern,
    "fit": _fit,
    "probe": _probe,
    "caustic": _caustic,
    "words": _words,
    "transmission": _transmission,
    "dark_field": _dark_field,
    "slope_y": partial(_slope, axis=0),
    "slope_x": partial(_slope, axis=1),
    "integrated": _integrated,
}
MAPS = ("transmission", "dark_field", "slope_y", "slope_x", "integrated")
# What needs frames beside an image.
OF_FRAMES = ("pattern", "fit", "caustic")
