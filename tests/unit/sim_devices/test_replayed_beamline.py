import dataclasses

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
import pytest
from bluesky.utils import FailedStatus

from bluesky_cdi.io.scan import Scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.sim_devices import OutOfRangeError, ReplayedSource, replayed_beamline

STEP_M = 0.5e-6
GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 16)


@pytest.fixture
def scan():
    """Five by five positions, about 0.5 um apart, around an origin far from zero, with a hole in the middle."""
    rng = np.random.default_rng(5)
    steps = np.stack(np.meshgrid(np.arange(11), np.arange(11), indexing="ij"), -1).reshape(-1, 2)
    steps = steps[np.abs(steps - 5).max(axis=1) > 4]
    positions = np.array([3e-3, -1e-3]) + steps * STEP_M + rng.uniform(-5e-8, 5e-8, steps.shape)
    return Scan(rng.integers(0, 60_000, (len(positions), 16, 16), dtype=np.uint16), positions, GEOMETRY)


@pytest.mark.parametrize("frames", ["file", "inline"])
def test_gives_exactly_what_was_recorded(scan, tmp_path, RE, docs, frames):
    beamline = replayed_beamline(scan, tmp_path, frames)
    visited = np.random.default_rng(1).permutation(len(scan.counts))[:12]
    aimed = scan.positions_m[visited] * 1e6 + 0.1
    stage = beamline.stage
    stage.y.velocity.put(1e5)
    stage.x.velocity.put(1e5)
    RE(bp.list_scan([beamline.detector, beamline.monitor], stage.y, list(aimed[:, 0]), stage.x, list(aimed[:, 1])))
    readback = np.stack([docs.column("stage_y"), docs.column("stage_x")], axis=1)
    np.testing.assert_allclose(readback * 1e-6, scan.positions_m[visited], rtol=0, atol=1e-15)
    given = docs.frames() if frames == "file" else docs.column("diff_image")
    np.testing.assert_array_equal(given, scan.counts[visited])
    assert given.dtype == scan.counts.dtype
    assert len(set(docs.column("i0"))) == 1
    assert beamline.truth is None


def test_far_from_every_position(scan, tmp_path, RE):
    beamline = replayed_beamline(scan, tmp_path)
    middle = (3e-3 + 5 * STEP_M) * 1e6, (-1e-3 + 5 * STEP_M) * 1e6
    with pytest.raises(OutOfRangeError, match="stage_y moves between"):
        RE(bps.mv(beamline.stage.y, 0.0))
    with pytest.raises(FailedStatus) as raised:
        RE(bp.list_scan([beamline.detector], beamline.stage.y, [middle[0]], beamline.stage.x, [middle[1]]))
    assert isinstance(raised.value.__cause__, OutOfRangeError)
    assert "nothing was recorded within" in str(raised.value.__cause__)
    assert (beamline.stage.y.position, beamline.stage.x.position) == pytest.approx(middle)


def test_tolerance_is_three_median_spacings(scan):
    source = ReplayedSource(scan)
    assert source.tolerance_m == pytest.approx(3 * STEP_M, rel=0.15)
    doubled = scan.subset(np.repeat(np.arange(len(scan)), 2))
    assert ReplayedSource(doubled).tolerance_m == source.tolerance_m
    single = ReplayedSource(scan.subset([0]))
    assert single.tolerance_m == scan.geometry.pixel_m
    np.testing.assert_array_equal(single.expose(tuple(scan.positions_m[0]), 0.0, 1.0), scan.counts[0])


def test_frames_are_copies_and_dark_behind_the_shutter(scan):
    source = ReplayedSource(scan)
    before = scan.counts.copy()
    source.expose(tuple(scan.positions_m[3]), 0.0, 1.0)[:] = 0
    np.testing.assert_array_equal(scan.counts, before)
    dark = source.expose(tuple(scan.positions_m[3]), 0.0, 0.0)
    assert not dark.any() and dark.dtype == scan.counts.dtype


def test_recorded_type_is_kept(scan, tmp_path, RE, docs):
    counts = scan.counts.astype(np.float32)
    counts[:, 2, 2] = np.nan
    mask = np.ones((16, 16), bool)
    mask[2, 2] = False
    beamline = replayed_beamline(dataclasses.replace(scan, counts=counts, mask=mask), tmp_path)
    RE(bp.count([beamline.detector]))
    np.testing.assert_array_equal(docs.frames(), counts[:1])
    assert docs.column("diff_total")[0] == np.nansum(counts[0])
