"""The figure of a live view: what is in it, in what colours, which way up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from bluesky_cdi.config import LiveViewConfig
from bluesky_cdi.live_view.drawing import Drawing
from bluesky_cdi.live_view.kept import Kept
from bluesky_cdi.live_view.panels import PANELS
from bluesky_cdi.live_view.scattered import Ground
from bluesky_cdi.live_view.scene import Scene
from bluesky_cdi.live_view.words import said
from bluesky_cdi.physics.geometry import Geometry

PIXEL_M = 2e-8


def drawn(scene, **settings):
    """Draw a scene; its panels by title."""
    drawing = Drawing(LiveViewConfig(**settings))
    figure = Figure(figsize=drawing.size_in())
    assert drawing.draw(figure, scene) == []
    figure.canvas.draw()
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


def test_the_image_comes_with_pattern_fit_probe_caustic_and_path(make_scene):
    axes = drawn(make_scene())
    assert list(axes) == [
        "Phase", "Amplitude", "Predicted phase error", "Coverage, path, next", "Residual of each frame",
        "Pattern of frame 12", "Its fit: deviance 1.25 per pixel", "Probe, amplitude of its 2 modes",
        "Probe along the beam",
    ]  # fmt: skip
    way, _, ahead, marks = axes["Coverage, path, next"].lines
    np.testing.assert_allclose(way.get_ydata(), 1e6 * make_scene().sight.positions_m[:, 0])
    # From the last frame to what was proposed and is not measured.
    np.testing.assert_allclose(np.transpose(marks.get_data()), [[0, 0.4], [0.2, 0.4]], atol=1e-12)
    assert len(ahead.get_xdata()) == 3


def test_phase_and_amplitude_are_grey_with_vacuum_at_0_and_1_and_row_0_above(make_scene):
    axes = drawn(make_scene())
    for title, vacuum, inside in (("Phase", 0.0, -0.9), ("Amplitude", 1.0, 0.8)):
        image = axes[title].images[0]
        assert image.get_cmap().name == "gray"
        shown = image.get_array()
        # The first row of the measured area, and its middle.
        assert shown[0, 0] == pytest.approx(vacuum, abs=1e-5)
        assert shown[shown.shape[0] // 2, shown.shape[1] // 2] == pytest.approx(inside, abs=1e-5)
        low, high = image.get_clim()
        assert low <= vacuum <= high
        bottom, top = axes[title].get_ylim()
        assert bottom > top
    assert "0: vacuum" in axes["Phase"].child_axes[0].get_ylabel()


def test_colours_zero_and_row_order_are_a_choice(make_scene):
    axes = drawn(make_scene(), phase_colours="twilight", phase_zero="mean", row_zero="bottom", panels=["phase"])
    assert list(axes) == ["Phase"]
    assert axes["Phase"].images[0].get_cmap().name == "twilight"
    bottom, top = axes["Phase"].get_ylim()
    assert bottom < top
    assert "mean of the measured area" in axes["Phase"].child_axes[0].get_ylabel()


def test_without_vacuum_the_phase_is_that_of_the_mean(make_scene, make_estimate):
    rng = np.random.default_rng(0)
    estimate = make_estimate()
    nowhere_clear = (0.5 * np.exp(1j * rng.uniform(-0.3, 0.3, estimate.object.shape))).astype(np.complex64)
    axes = drawn(replace(make_scene(), estimate=replace(estimate, object=nowhere_clear)))
    assert "mean of the measured area" in axes["Phase"].child_axes[0].get_ylabel()


@pytest.mark.parametrize(("wanted", "before", "after"), [("until_image", 5, 0), ("always", 5, 5), ("never", 0, 0)])
def test_maps_of_the_frames_come_before_the_image(make_scene, wanted, before, after):
    drawing, scene = Drawing(LiveViewConfig(scan_maps=wanted)), make_scene()
    maps = {"transmission", "dark_field", "slope_y", "slope_x", "integrated"}
    assert len(maps.intersection(drawing.panels(replace(scene, estimate=None)))) == before
    assert len(maps.intersection(drawing.panels(scene))) == after


def test_maps_are_drawn_where_frames_were_measured(make_scene):
    scene = replace(make_scene(), estimate=None)
    axes = drawn(scene)
    image = axes["Transmission (STXM)"].images[0]
    left, right, below, above = image.get_extent()
    rows, columns = image.get_array().shape
    for (y, x), photons in zip(1e6 * scene.sight.positions_m, scene.sight.photons, strict=True):
        row, column = int((y - above) / (below - above) * rows), int((x - left) / (right - left) * columns)
        assert image.get_array()[row, column] == pytest.approx(photons)
    # The last line of the raster is not full: what was not measured stays empty.
    assert image.get_array().mask[-1, -1] and not image.get_array().mask[0, 0]


def test_a_shadow_has_a_transmission_only(make_scene):
    scene = make_scene()
    near = {**scene.sight.geometry, "propagation": "near"}
    panels = Drawing(LiveViewConfig()).panels(replace(scene, estimate=None, sight=replace(scene.sight, geometry=near)))
    assert panels == ("transmission", "pattern", "words")


def test_a_result_alone_is_drawn_without_frames(make_scene):
    axes = drawn(replace(make_scene(), sight=None))
    assert "Phase" in axes and not any("Pattern" in title or "beam" in title for title in axes)
    drawn(Scene())


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_few_frames_are_drawn(make_sight, frames):
    assert "Transmission (STXM)" in drawn(Scene(make_sight(n=frames, fit=False)))


def test_a_panel_that_fails_is_told_and_the_others_are_drawn(make_scene, monkeypatch):
    def broken(*_):
        raise RuntimeError("no ink")

    monkeypatch.setitem(PANELS, "amplitude", broken)
    drawing, figure = Drawing(LiveViewConfig(panels=["phase", "amplitude"])), Figure()
    assert drawing.draw(figure, make_scene()) == ["amplitude can't be drawn: RuntimeError: no ink"]
    assert "Phase" in [ax.get_title() for ax in figure.axes]


def test_gaps_between_places_stay_gaps():
    places = 1e-6 * np.array([[0, 0], [0, 1], [1, 0], [1, 1], [5, 5]])
    ground = Ground.of(places, 1e-7)
    image = ground.image(np.arange(5.0))
    rows, columns = image.shape
    assert image[0, 0] == 0 and image[-1, -1] == 4
    assert image.mask[rows // 2, columns // 2] and image.mask[0, -1]
    assert np.ma.count(image) / image.size < 0.25


def test_words_say_frames_rates_and_the_verdict_so_far(make_scene, make_estimate):
    pipeline = {"received": 12, "imaged": 9, "waiting": 2, "thinned": 1, "bad": 0, "dark": 0,
                "latency_p50_s": 0.5, "latency_p95_s": 0.8}  # fmt: skip
    told = " ".join(said(make_scene(pipeline=pipeline)))
    assert "12 frames received, 12.5 a second" in told
    assert "9 of 12 frames in the image, 2 waiting, 1 thinned, latency 0.5 s" in told
    assert "next: 2 positions (adapt)" in told and "4 frames a second into the image" in told
    assert "Verdict so far:" in told
    final = make_scene(verdict={"word": "doubtful", "reasons": ["fog"], "remarks": []})
    assert "Verdict: doubtful: fog" in said(final)
    assert "no image yet" in said(replace(final, estimate=None))


def test_a_caustic_is_computed_seldom():
    """It takes ten times as long as it may, by a clock of its own."""
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    kept, geometry = Kept(LiveViewConfig(), clock), Geometry(8000.0, 2.0, 1e-4, 16)
    probe = np.ones((1, 16, 16), np.complex64)
    first = kept.caustic(probe, geometry)
    assert kept.caustic(probe, geometry) is first
    assert kept.caustic(2 * probe, geometry) is first
    now[0] += 20
    assert kept.caustic(2 * probe, geometry) is not first
    assert math.isclose(kept.caustic(2 * probe, geometry)[0].sum(), 4 * first[0].sum(), rel_tol=1e-5)
