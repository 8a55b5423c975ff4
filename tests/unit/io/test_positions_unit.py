"""Positions in another unit than metres are found out."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.io.positions import check_unit
from bluesky_cdi.physics.geometry import Geometry

GEOMETRY = Geometry(8000.0, 2.0, 75e-6, 128)  # a field of view of 4.1 um
NEAR = Geometry(12658.0, 1.12, 55e-6, 100, "near", 3.65e-3)  # 17.9 um


def grid(step_m: float) -> np.ndarray:
    y, x = np.divmod(np.arange(49), 7)
    return np.stack([y, x], axis=1) * step_m


@pytest.mark.parametrize("geometry", [GEOMETRY, NEAR])
@pytest.mark.parametrize("overlap_step", [0.01, 0.1, 0.9])
def test_metres(geometry, overlap_step, caplog):
    check_unit(grid(overlap_step * geometry.frame_px * geometry.pixel_m), geometry)
    assert not caplog.records


@pytest.mark.parametrize("geometry", [GEOMETRY, NEAR])
@pytest.mark.parametrize(("factor", "least_step"), [(1e6, 0.01), (1e9, 0.01), (1e3, 0.11)])
def test_other_units(geometry, factor, least_step):
    field = geometry.frame_px * geometry.pixel_m
    for step in (least_step, 0.3, 0.9):
        with pytest.raises(GeometryError, match=r"look like micrometres or millimetres"):
            check_unit(grid(step * field) * factor, geometry)


def test_no_overlap_is_legal_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        check_unit(grid(20e-6), GEOMETRY)
    assert "the frames don't overlap" in caplog.text


def test_metres_taken_for_pixels():
    with pytest.raises(GeometryError, match="Were metres taken for pixels"):
        check_unit(grid(0.5e-6) * 10e-9, GEOMETRY)


@pytest.mark.parametrize("wrong", [{"distance_m": 2000.0}, {"energy_ev": 8.0}])
def test_a_sample_pixel_a_thousand_times_too_large_is_told(wrong, caplog):
    """Millimetres and keV in the geometry: positions of 7 x 7 steps of 16 pixels lie within one pixel."""
    positions = grid(16 * GEOMETRY.pixel_m)
    check_unit(positions, GEOMETRY)
    assert not caplog.records
    check_unit(positions, replace(GEOMETRY, **wrong))
    (record,) = caplog.records
    assert "0.016 of a sample pixel" in record.getMessage() and "not keV" in record.getMessage()


@pytest.mark.parametrize("positions", [np.zeros((5, 2)), np.ones((1, 2)), np.full((3, 2), 7.0)])
def test_one_place(positions):
    """Frames taken again at one place are no fault."""
    check_unit(positions, GEOMETRY)


def test_repeated_positions_do_not_hide_the_unit():
    with pytest.raises(GeometryError, match="micrometres"):
        check_unit(np.repeat(grid(0.5), 3, axis=0), GEOMETRY)
