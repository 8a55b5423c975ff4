"""Regions cover the tiles that need work once, and every frame that touches a core lies in its region."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cdi.reconstruction.tiles import GRID_PX, Box, Region, Tiling

SIDES = st.integers(64, 900)


@given(SIDES, SIDES, st.sampled_from([16, 34, 64]), st.integers(64, 600), st.randoms(use_true_random=False))
@settings(max_examples=settings().max_examples // 4)
def test_tiling(rows, columns, frame_px, window_px, random):
    tiling = Tiling.covering((rows, columns), frame_px, window_px)
    tiles = random.sample(range(len(tiling)), random.randint(1, len(tiling)))
    corner = np.array([[random.randint(0, side - frame_px) for side in (rows, columns)] for _ in range(40)])
    middle = corner + frame_px // 2
    written, seen = np.zeros((rows, columns), int), []
    for region in tiling.regions(tiles):
        seen += region.tiles
        written[region.core.pixels] += 1
        assert max(region.outer.shape) <= max(window_px, 3 * -(-frame_px // GRID_PX) * GRID_PX)
        on_core = ((corner < region.core.high) & (corner + frame_px > region.core.low)).all(axis=1)
        assert region.outer.holds(corner, frame_px)[on_core].all()
        own = ((middle >= region.core.low) & (middle < region.core.high)).all(axis=1)
        np.testing.assert_array_equal(np.isin(tiling.home(corner), region.tiles), own)
    assert sorted(seen) == sorted(tiles)
    assert written.max() == 1
    everything = list(tiling.regions(range(len(tiling))))
    assert sum(np.prod(region.core.shape) for region in everything) == rows * columns
    touching = [
        tile
        for region in (one for tile in range(len(tiling)) for one in tiling.regions([tile]))
        for tile in region.tiles
        if ((corner < region.core.high) & (corner + frame_px > region.core.low)).all(axis=1).any()
    ]
    np.testing.assert_array_equal(tiling.touched(corner), touching)


@pytest.mark.parametrize("window_px", [None, 300])
def test_small_grid_is_one_region(window_px):
    tiling = Tiling.covering((300, 170), 64, window_px)
    assert [(r.core, r.outer) for r in tiling.regions([0])] == [(Box((0, 0), (300, 170)),) * 2]


def test_regions_follow_the_scan():
    """A line of frames makes a narrow region, a whole map few large ones."""
    tiling = Tiling.covering((1000, 1000), 64, 512)
    line = tiling.touched(np.array([[320, x] for x in range(330, 560, 12)]))
    (region,) = tiling.regions(line)
    assert region.core.shape == (64, 320)
    assert region.outer.shape == (192, 448)
    assert len(list(tiling.regions(range(len(tiling))))) <= 9


def test_boxes_begin_on_the_networks_grid():
    tiling = Tiling.covering((900, 700), 64, 256)
    for region in tiling.regions(range(len(tiling))):
        assert not any(edge % GRID_PX for edge in (*region.core.low, *region.outer.low))


def test_core_in_an_array_that_is_only_the_outer_box():
    image, region = np.arange(600).reshape(20, 30), Region(Box((7, 9), (10, 20)), Box((4, 6), (18, 25)), (0,))
    np.testing.assert_array_equal(image[region.outer.pixels][region.core_pixels], image[region.core.pixels])


def test_a_region_within_a_box_and_what_lies_around_it():
    core, outer = Box((16, 16), (80, 96)), Box((0, 0), (144, 160))
    region = Region(core, outer, (3,))
    inner = region.within(Box((48, 0), (112, 64)))
    assert inner == Region(Box((48, 16), (80, 64)), Box((48, 0), (112, 64)), (3,))
    # Its core and what lies around that are the region's core, each pixel once.
    count = np.zeros((144, 160), int)
    for box in (inner.core, *core.around(inner.core)):
        count[box.pixels] += 1
    assert (count[core.pixels] == 1).all() and count.sum() == np.prod(core.shape)
    # A box beside the core leaves nothing to write: the region stays.
    assert region.within(Box((96, 0), (144, 160))) is region
