import math

import numpy as np
import pytest

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry, ObjectGrid

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 64)
PIXEL = GEOMETRY.pixel_m


def grid(low=(-1e-6, -2e-6), high=(1e-6, 2e-6), size=64, margin=2):
    return ObjectGrid.covering(np.array(low), np.array(high), PIXEL, size, margin)


def test_wavelength():
    from scipy import constants

    assert pytest.approx(constants.h * constants.c / constants.e, rel=1e-10) == HC_EV_M
    assert GEOMETRY.wavelength_m == pytest.approx(1.5498e-10, rel=1e-4)


def test_pixel_is_the_wavelength_over_the_detectors_angle():
    assert pytest.approx(GEOMETRY.wavelength_m / (64 * 172e-6 / 2.0)) == PIXEL
    assert Geometry(8000.0, 2.0, 172e-6, 128).pixel_m == pytest.approx(PIXEL / 2)
    assert Geometry(16000.0, 2.0, 172e-6, 64).pixel_m == pytest.approx(PIXEL / 2)


@pytest.mark.parametrize("name", ["energy_ev", "distance_m", "detector_pixel_m", "frame_px"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None, "8000"])
def test_impossible_geometry_is_refused(name, value):
    values = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6, "frame_px": 64}
    with pytest.raises(GeometryError, match=rf"geometry\.{name} must be a finite positive number"):
        Geometry(**{**values, name: value})


def test_metadata_round_trip():
    assert Geometry.from_metadata({"geometry": GEOMETRY.as_metadata()}, (64, 64)) == GEOMETRY


@pytest.mark.parametrize("found", [None, {}, "8 keV", {"energy_ev": 8000.0}])
def test_absent_geometry_is_named(found):
    with pytest.raises(GeometryError, match=r"missing: .*distance_m.*RE.md"):
        Geometry.from_metadata({"geometry": found}, (64, 64))
    with pytest.raises(GeometryError, match="missing: energy_ev, distance_m, detector_pixel_m"):
        Geometry.from_metadata({}, (64, 64))


def test_frames_that_are_not_square_are_refused():
    with pytest.raises(GeometryError, match="must be square; they are 64 x 60"):
        Geometry.from_metadata({"geometry": GEOMETRY.as_metadata()}, (64, 60))


@pytest.mark.parametrize("value", ["eight", None, [8000.0]])
def test_geometry_of_words_is_refused(value):
    with pytest.raises(GeometryError, match="must hold numbers"):
        Geometry.from_metadata({"geometry": {**GEOMETRY.as_metadata(), "energy_ev": value}}, (64, 64))


def test_nan_in_the_metadata_is_refused():
    with pytest.raises(GeometryError, match="finite positive"):
        Geometry.from_metadata({"geometry": {**GEOMETRY.as_metadata(), "energy_ev": math.nan}}, (64, 64))


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("margin", [0, 2])
def test_the_grid_holds_every_patch_of_its_window_and_little_more(size, margin):
    rng = np.random.default_rng(6)
    for _ in range(30):
        low = rng.uniform(-5e-6, 5e-6, 2)
        high = low + rng.uniform(0, 3e-6, 2)
        made = grid(low, high, size, margin)
        edge = [low, high, (low[0], high[1]), (high[0], low[1])]
        positions = np.concatenate([edge, rng.uniform(low, high, (20, 2))])
        corner, shift = made.place(positions)
        assert corner.dtype == np.int64 and (corner >= 0).all()
        assert (corner + size <= np.array(made.shape)).all()
        assert (np.abs(shift) <= 0.5).all()
        assert (np.array(made.shape) <= (high - low) / PIXEL + size + 2 * margin + 2).all()
        assert made.contains(positions).all()


def test_place_round_trip():
    made = grid()
    positions = np.random.default_rng(7).uniform((-1e-6, -2e-6), (1e-6, 2e-6), (50, 2))
    corner, shift = made.place(positions)
    back = np.array(made.origin_m) + (corner + 32 + shift) * PIXEL
    np.testing.assert_allclose(back, positions, atol=1e-15)


def test_a_pixel_of_travel_is_a_pixel_of_the_grid():
    made = grid()
    corner, shift = made.place(np.array([[0.0, 0.0], [PIXEL, -3 * PIXEL], [0.25 * PIXEL, 0]]))
    assert (corner[1] - corner[0]).tolist() == [1, -3]
    np.testing.assert_allclose(shift[1], shift[0], atol=1e-6)
    np.testing.assert_allclose(((corner + shift)[2] - (corner + shift)[0]), [0.25, 0], atol=1e-6)


def test_no_positions_are_placed_nowhere():
    corner, shift = grid().place(np.zeros((0, 2)))
    assert corner.shape == shift.shape == (0, 2)


@pytest.mark.parametrize("outside", [(3e-6, 0.0), (0.0, -5e-6), (0.0, 1.0), (-1e9, 0.0)])
def test_positions_outside_are_refused(outside):
    made = grid()
    with pytest.raises(GeometryError, match=r"1 position\(s\) lie outside the object grid, the first at"):
        made.place(np.array([[0.0, 0.0], outside]))
    assert made.contains(np.array([[0.0, 0.0], outside])).tolist() == [True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_positions_that_are_no_number_are_refused(bad):
    made = grid()
    with pytest.raises(GeometryError, match="outside the object grid"):
        made.place(np.array([[0.0, bad]]))
    assert not made.contains(np.array([[0.0, bad]])).any()


@pytest.mark.parametrize("scale", [1e3, 1e6, 2e8, 1e9, 3.7e9, 1e12, 5e15])
def test_a_window_in_the_wrong_unit_is_refused(scale):
    with pytest.raises(GeometryError, match=r"smaller than 1000 frames.* Are the positions and the detector's"):
        grid((0.0, 0.0), (3e-6 * scale, 2e-6 * scale))


@pytest.mark.parametrize(
    ("low", "high"), [((0.0, 0.0), (math.nan, 1e-6)), ((0.0, -math.inf), (1e-6, 1e-6)), ((1e-6, 0.0), (0.0, 1e-6))]
)
def test_a_window_without_corners_is_refused(low, high):
    with pytest.raises(GeometryError, match="finite corners low <= high"):
        grid(low, high)


def test_a_window_of_one_point_is_a_grid_of_one_patch():
    made = grid((1e-6, 1e-6), (1e-6, 1e-6), 64, 0)
    assert made.shape == (65, 65)
    assert made.place(np.array([[1e-6, 1e-6]]))[0].tolist() == [[0, 0]]


def test_a_parallel_beam_does_not_magnify():
    near = Geometry(8000.0, 0.3, 1e-6, 64, "near")
    assert (near.magnification, near.pixel_m, near.effective_distance_m) == (1.0, 1e-6, 0.3)


@pytest.mark.parametrize(("focus", "distance"), [(0.01, 0.99), (0.5, 0.5), (2.0, 1.0)])
def test_a_focus_magnifies_by_similar_triangles(focus, distance):
    near = Geometry(8000.0, distance, 1e-6, 64, "near", focus)
    assert near.magnification == pytest.approx((focus + distance) / focus)
    assert near.pixel_m == pytest.approx(1e-6 * focus / (focus + distance))
    # The curvatures of both waves add: 1 / z1 + 1 / z2 is one over the effective distance.
    assert 1 / near.effective_distance_m == pytest.approx(1 / focus + 1 / distance)


def test_a_far_focus_is_a_parallel_beam():
    far_away = Geometry(8000.0, 0.3, 1e-6, 64, "near", 1e9)
    assert far_away.pixel_m == pytest.approx(1e-6, rel=1e-9)
    assert far_away.effective_distance_m == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize("focus", [None, 0.02])
def test_metadata_round_trip_in_the_near_field(focus):
    near = Geometry(8000.0, 1.0, 1e-6, 64, "near", focus)
    assert Geometry.from_metadata({"geometry": near.as_metadata()}, (64, 64)) == near


def test_the_far_field_states_nothing_new_in_its_metadata():
    assert set(GEOMETRY.as_metadata()) == {"energy_ev", "distance_m", "detector_pixel_m"}


@pytest.mark.parametrize("focus", [0, -0.01, math.nan, math.inf, "0.01"])
def test_an_impossible_focus_is_refused(focus):
    with pytest.raises(GeometryError, match=r"geometry\.focus_to_sample_m must be a finite positive number"):
        Geometry(8000.0, 1.0, 1e-6, 64, "near", focus)


def test_a_focus_in_the_far_field_is_refused():
    with pytest.raises(GeometryError, match=r"focus_to_sample_m belongs to the near field"):
        Geometry(8000.0, 1.0, 1e-6, 64, "far", 0.01)


def test_an_unknown_propagation_is_refused():
    with pytest.raises(GeometryError, match="must be 'far' or 'near'; it is 'middle'"):
        Geometry(8000.0, 1.0, 1e-6, 64, "middle")
    with pytest.raises(GeometryError, match="must be 'far' or 'near'"):
        Geometry.from_metadata({"geometry": {**GEOMETRY.as_metadata(), "propagation": "middle"}}, (64, 64))


def test_a_focus_of_words_in_the_metadata_is_refused():
    stated = Geometry(8000.0, 1.0, 1e-6, 64, "near", 0.02).as_metadata()
    with pytest.raises(GeometryError, match="must hold numbers"):
        Geometry.from_metadata({"geometry": {**stated, "focus_to_sample_m": "close"}}, (64, 64))


class TestGrown:
    grid = ObjectGrid((0.0, 0.0), (80, 90), 1e-8, 64)

    def test_not_for_what_is_inside(self):
        # Patches of 64 pixels around pixels 32 to 48 (of 80 rows) and 32 to 58 (of 90 columns).
        assert self.grid.grown_to(np.array([[32e-8, 32e-8], [48e-8, 58e-8]]), 10) is self.grid

    @pytest.mark.parametrize(
        ("position_px", "origin_px", "shape"),
        [
            ((31, 40), (-11, 0), (91, 90)),
            ((40, 60), (0, 0), (80, 102)),
            ((49, 21), (0, -21), (91, 111)),
        ],
    )
    def test_by_what_is_missing_and_the_slack(self, position_px, origin_px, shape):
        position = np.array([position_px]) * 1e-8
        grown = self.grid.grown_to(position, 10)
        np.testing.assert_allclose(grown.origin_m, np.array(origin_px) * 1e-8, atol=1e-14)
        assert (grown.shape, grown.pixel_m, grown.frame_px) == (shape, 1e-8, 64)
        assert grown.contains(position).all()

    def test_by_multiples(self):
        grown = self.grid.grown_to(np.array([[31e-8, 60e-8]]), 10, multiple_px=16)
        assert grown.shape == (80 + 16, 90 + 16)
        np.testing.assert_allclose(grown.origin_m, (-16e-8, 0.0), atol=1e-14)

    def test_not_without_end(self):
        with pytest.raises(GeometryError, match=r"grow from 80 x 90 to .* pixels, more than 10000"):
            self.grid.grown_to(np.array([[1.0, 0.0]]), 10, most_px=10_000)
