"""Positions of fly scans that lag behind the frames: found where the probe goes to and fro, and nowhere else."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import Config
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.reconstruction.lag import LagCheck, check_lag, is_steady, velocity_m
from bluesky_cdi.reconstruction.recorded import Recorded, prepared

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 32)
LINES, FRAMES, STEP_PX, WAY_PX = 7, 7, 3.0, 2.5


def path_px(lag, to_and_fro):
    """Places of frames taken so much later than at their own time, lines one after the other."""
    rows = []
    for line in range(LINES):
        x = (np.arange(FRAMES) + lag) * WAY_PX
        if to_and_fro and line % 2:
            x = (FRAMES - 1) * WAY_PX - x
        rows.append(np.stack([np.full(FRAMES, line * STEP_PX), x], axis=-1))
    return np.concatenate(rows)


def measured(lag, to_and_fro=True):
    """A scan whose stated positions are those of `lag` periods before its frames."""
    true = path_px(lag, to_and_fro) * GEOMETRY.pixel_m
    grid = ObjectGrid.covering(true.min(axis=0), true.max(axis=0), GEOMETRY.pixel_m, 32, margin_px=8)
    corner, shift = (torch.from_numpy(each) for each in grid.place(true))
    probe = focused_probe(GEOMETRY, numerical_aperture=0.6e-3, defocus_m=0.45e-3, photons=1e6)
    propagator = propagator_of(GEOMETRY)
    data = Diffraction(torch.zeros(len(true), 32, 32), corner, shift.float(), (1, *grid.shape), propagator=propagator)
    truth = torch.from_numpy(make_sample("cells", grid.shape, seed=3))[None]
    rate = data.rate(data.probes(probe[None]), data.patches(truth))
    counts = torch.poisson(propagator.to_detector(rate), generator=torch.Generator().manual_seed(4)).numpy()
    stated = path_px(0.0, to_and_fro) * GEOMETRY.pixel_m
    return Scan(counts.astype(np.uint32), stated, GEOMETRY, probe.numpy(), name="flown")


@pytest.mark.parametrize("lag", [0.6, -0.8])
def test_a_lag_is_found_with_its_sign(lag):
    scan = measured(lag)
    check = check_lag(scan, scan.probe, frames=36, epochs=8)
    assert check.better == pytest.approx(lag, abs=0.1)


def test_right_positions_and_lines_that_all_go_one_way_are_left_alone():
    for scan in (measured(0.0), measured(0.6, to_and_fro=False)):
        assert check_lag(scan, scan.probe, frames=36, epochs=8).better is None


def test_the_motion_at_a_line_s_end_is_that_of_the_line():
    velocity = velocity_m(path_px(0.0, to_and_fro=True))
    signs = np.repeat([(-1) ** line for line in range(LINES)], FRAMES)
    np.testing.assert_allclose(velocity, np.stack([np.zeros(len(signs)), signs * WAY_PX], axis=-1))


def test_places_in_no_order_tell_nothing_of_the_way_between_them():
    """Shifted along their jumps frames would lie apart, where each can be explained by itself: nothing is tried."""
    scan = measured(0.0)
    jumping = np.random.default_rng(1).permutation(len(scan))
    assert check_lag(scan.subset(jumping), scan.probe, frames=36, epochs=8) is None


def test_lines_and_circles_are_steady_and_jumps_are_not():
    inside = np.tile(np.arange(FRAMES) % (FRAMES - 1) > 0, LINES)
    np.testing.assert_array_equal(is_steady(path_px(0.0, to_and_fro=True)), inside)
    turn = 2 * np.pi * np.arange(40) / 8
    assert is_steady(np.stack([np.sin(turn), np.cos(turn)], axis=-1))[1:-1].all()
    assert is_steady(np.random.default_rng(0).random((200, 2))).mean() < 0.25
    assert is_steady(np.zeros((1, 2))).tolist() == [False]


def test_a_lowest_value_at_the_end_is_not_extrapolated():
    assert LagCheck({0.0: 3.0, 1.0: 2.0, 2.0: 1.0}).better == 2.0


def test_a_fly_scan_is_warned_of_with_the_offset_that_helps(caplog):
    scan = measured(0.6)
    scan = replace(scan, source={"motion": {"median_m": 1e-9, "period_s": 0.01}})
    config = Config.model_validate({"documents": {"time_stamps": {"offset_s": 0.002}}, "reconstructor": {"threads": 1}})
    with caplog.at_level(logging.WARNING):
        prepared(Recorded(scan, tuple(range(1, len(scan) + 1))), config, check_in=False)
    (warned,) = (record.message for record in caplog.records if "later" in record.message)
    assert float(warned.split("offset_s of ")[1].split()[0]) == pytest.approx(0.008, abs=0.001)
