"""Tiles cover a canvas once, and every frame that touches a core lies in its region."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cdi.live.regions import GRID_PX, Box, Tiling

SIDES = st.integers(64, 900)


@given(SIDES, SIDES, st.sampled_from([16, 34, 64]), st.integers(64, 600), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tiling(rows, columns, frame_px, window_px, random):
    tiling = Tiling.covering((rows, columns), frame_px, window_px)
    written = np.zeros((rows, columns), int)
    corner = np.array([[random.randint(0, side - frame_px) for side in (rows, columns)] for _ in range(40)])
    touched = []
    for region in tiling:
        written[region.core.pixels] += 1
        assert max(region.outer.shape) <= max(window_px, 3 * -(-frame_px // GRID_PX) * GRID_PX)
        on_core = ((corner < region.core.high) & (corner + frame_px > region.core.low)).all(axis=1)
        assert region.outer.holds(corner, frame_px)[on_core].all()
        touched.append(on_core)
    np.testing.assert_array_equal(written, 1)
    np.testing.assert_array_equal(tiling.touched(corner), np.flatnonzero(np.any(touched, axis=1)))
    middle = corner + frame_px // 2
    for number, (y, x) in zip(tiling.home(corner), middle, strict=True):
        core = tiling[number].core
        assert core.low[0] <= y < core.high[0] and core.low[1] <= x < core.high[1]


@pytest.mark.parametrize("window_px", [None, 300])
def test_small_canvas_is_one_region(window_px):
    tiling = Tiling.covering((300, 170), 64, window_px)
    assert [(r.core, r.outer) for r in tiling] == [(Box((0, 0), (300, 170)),) * 2]


def test_narrow_canvas_is_tiled_along_its_length():
    tiling = Tiling.covering((200, 1000), 64, 256)
    assert tiling.grid == (1, 8)
    assert all(region.outer.shape[0] == 200 for region in tiling)


def test_boxes_begin_on_the_networks_grid():
    for region in Tiling.covering((900, 700), 64, 256):
        assert not any(edge % GRID_PX for edge in (*region.core.low, *region.outer.low))


def test_box_seen_from_its_surroundings():
    image, outer, core = np.arange(600).reshape(20, 30), Box((4, 6), (18, 25)), Box((7, 9), (10, 20))
    np.testing.assert_array_equal(image[outer.pixels][core.seen_from(outer).pixels], image[core.pixels])


def test_region_beyond_the_last_is_refused():
    tiling = Tiling.covering((200, 1000), 64, 256)
    with pytest.raises(IndexError, match="region 8 of 8"):
        tiling[8]
