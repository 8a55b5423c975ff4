"""Positions by time stamps against trajectories that are known analytically."""

import numpy as np
import pytest

from bluesky_cdi.callbacks._stamped_positions import StampedPositions

PIXEL_M = 28e-9
EXPOSURE_S = 5e-4


def spiral(times_s):
    """A spiral of 2 um at two turns a second: (y, x), metres."""
    angle, radius = 4 * np.pi * times_s, 2e-6 * times_s
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)


def placed(positions):
    return dict(positions.place())


def filled(encoder_hz, until_s=1.0, **options):
    positions = StampedPositions(**{"lead_s": 30.0} | options)
    times = np.arange(0, until_s + 0.5 / encoder_hz, 1 / encoder_hz)
    positions.sample(times, spiral(times))
    return positions


@pytest.mark.parametrize(("encoder_hz", "within_px"), [(10e3, 1e-4), (1e3, 0.01), (200.0, 0.15)])
def test_positions_are_those_of_the_trajectory(encoder_hz, within_px):
    # Linear interpolation is off by at most h^2 / 8 times the acceleration: slower than frames are, it is told.
    positions, centres = filled(encoder_hz), np.linspace(0.01, 0.99, 1000)
    positions.expect(range(1, 1001), centres, EXPOSURE_S)
    found = placed(positions)
    error = np.linalg.norm([found[k + 1] - spiral(t) for k, t in enumerate(centres)], axis=1)
    assert error.max() < within_px * PIXEL_M
    assert error.max() < 1.05 * max(positions.error_m) + 1e-13
    assert max(positions.error_m) < 3 * error.max() + 1e-13


def test_smear_is_the_way_during_the_exposure():
    positions, centres = filled(10e3), np.linspace(0.1, 0.9, 50)
    positions.expect(range(50), centres, EXPOSURE_S)
    placed(positions)
    way = np.linalg.norm(spiral(centres + EXPOSURE_S / 2) - spiral(centres - EXPOSURE_S / 2), axis=1)
    np.testing.assert_allclose(positions.smear_m, way, rtol=1e-3)


def test_frames_wait_until_their_samples_come():
    positions = filled(1e3, until_s=0.5)
    positions.expect([1, 2, 3], np.array([0.2, 0.5004, 0.7]), EXPOSURE_S)
    assert list(placed(positions)) == [1]
    assert positions.waiting == [2, 3]
    assert positions.behind_s == pytest.approx(0.7 - 0.5004)
    times = np.arange(0.501, 0.8, 1e-3)
    positions.sample(times, spiral(times))
    found = placed(positions)
    np.testing.assert_allclose(found[2], spiral(np.array(0.5004)), atol=0.01 * PIXEL_M)
    assert list(found) == [2, 3] and not positions.waiting


def test_what_waits_longer_than_the_lead_is_named_once_and_used_if_it_comes_after_all():
    positions = filled(1e3, until_s=0.5, lead_s=0.3)
    positions.expect([1, 2, 3], np.array([0.6, 0.65, 0.92]), EXPOSURE_S)
    assert placed(positions) == {}
    assert positions.newly_overdue() == {1: "it was exposed 0.1 s after the last sample of the position"}
    assert positions.newly_overdue() == {}
    times = np.arange(0.5, 1.0, 1e-3)
    positions.sample(times, spiral(times))
    assert list(placed(positions)) == [1, 2, 3]
    assert list(positions.overdue) == [1]


@pytest.mark.parametrize(("gap_s", "number"), [(None, []), (0.1, [2])])
def test_lost_samples_are_not_bridged_beyond_the_gap(gap_s, number):
    positions = StampedPositions(30.0, gap_s)
    times = np.arange(0, 1, 1e-3)
    times = times[(times < 0.5) | (times > 0.55)]
    positions.sample(times, spiral(times))
    positions.expect([1, 2, 3], np.array([0.3, 0.52, 0.7]), EXPOSURE_S)
    assert sorted(placed(positions)) == sorted([1, 3, *number])
    if not number:
        assert positions.why(2) == "samples of the position are missing around it: there is none for 0.052 s"


def test_few_lost_samples_cost_nothing():
    positions = StampedPositions(30.0)
    times = np.delete(np.arange(0, 1, 1e-3), [500, 501, 502])
    positions.sample(times, spiral(times))
    positions.expect([1], np.array([0.5013]), EXPOSURE_S)
    np.testing.assert_allclose(placed(positions)[1], spiral(np.array(0.5013)), atol=0.1 * PIXEL_M)


def test_clocks_that_differ_are_told_by_how_much_frames_lie_outside():
    positions = filled(1e3)
    positions.expect([1, 2], np.array([-0.25, 1.5]), EXPOSURE_S)
    assert placed(positions) == {}
    assert positions.why(1) == "it was exposed 0.25 s before the first sample of the position"
    assert positions.why(2) == "it was exposed 0.5 s after the last sample of the position"


def test_samples_out_of_order_twice_and_not_finite():
    times = np.arange(0, 1, 1e-3)
    order = np.random.default_rng(3).permutation(len(times))
    positions = StampedPositions(30.0)
    broken = spiral(times[order])
    broken[7] = np.nan
    positions.sample(times[order], broken)
    positions.sample(times[order][:100], spiral(times[order][:100]))
    positions.expect([1], np.array([0.4]), EXPOSURE_S)
    np.testing.assert_allclose(placed(positions)[1], spiral(np.array(0.4)), atol=0.01 * PIXEL_M)


def test_samples_older_than_the_lead_are_forgotten():
    positions = StampedPositions(lead_s=1.0)
    for k in range(100):
        times = k + np.arange(0, 1, 1e-2)
        positions.sample(times, spiral(times))
        positions.expect([k], np.array([k + 0.5]), EXPOSURE_S)
        assert list(placed(positions)) == [k]
        assert len(positions._times_s) <= 302


def test_a_frame_taken_again_has_its_new_time():
    positions = filled(1e3)
    positions.expect([1], np.array([5.0]), EXPOSURE_S)
    positions.expect([1], np.array([0.5]), EXPOSURE_S)
    np.testing.assert_allclose(placed(positions)[1], spiral(np.array(0.5)), atol=0.01 * PIXEL_M)
