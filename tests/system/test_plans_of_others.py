"""Any plan that moves two axes is reconstructed; what is no ptychography is recorded, and troubles nobody."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest

from bluesky_cdi.catalog import load_result
from bluesky_cdi.resume import resume_run

PLACES_UM = np.array([[y, x] for y in (-0.4, 0.0, 0.4) for x in (-0.4, 0.0, 0.4)])


def own_plan(detectors, y, x):
    """Without any metadata."""

    @bpp.stage_decorator(detectors)
    @bpp.run_decorator()
    def inner():
        for place in PLACES_UM:
            yield from bps.mv(y, place[0], x, place[1])
            yield from bps.trigger_and_read([*detectors, y, x])

    return inner()


PLANS = {
    "grid_scan, x first": lambda d, y, x: bp.grid_scan(d, x, -0.4, 0.4, 3, y, -0.4, 0.4, 3),
    "rel_spiral": lambda d, y, x: bp.rel_spiral(d, x, y, 0.8, 0.8, 0.2, 4),
    "own": own_plan,
}


@pytest.mark.parametrize("name", PLANS)
def test_it_is_reconstructed(lab, name):
    detectors, y, x = lab.devices
    if name == "rel_spiral":
        lab.run(bps.mv(y, 0.1, x, -0.1))
    lab.run(PLANS[name](detectors, y, x))
    lab.session.wait()
    n = len(lab.docs.of("event", "primary"))
    lab.check_raw_run("success", n)
    result = lab.check_derived_run("success")
    assert result.n_frames == n >= 9
    estimate = load_result(lab.session.catalog, result.uid)
    # (y, x), whatever the order in which the plan names its motors.
    np.testing.assert_allclose(estimate.positions_m, lab.docs.measured_m, atol=1e-12)
    pixel, side = estimate.pixel_m, estimate.probe.shape[-1]
    low = np.array(estimate.origin_m) + side / 2 * pixel
    high = low + (np.array(estimate.object.shape) - side) * pixel
    assert (low <= lab.docs.measured_m.min(axis=0)).all() and (high >= lab.docs.measured_m.max(axis=0)).all()


def test_it_is_resumed(lab):
    lab.run(own_plan(*lab.devices))
    lab.session.wait()
    session = lab.session
    resumed = resume_run(session.catalog, -1, session.config, session.directory, anew=True)
    assert resumed.estimate.n_frames == len(PLACES_UM)


def test_what_is_no_ptychography(lab, caplog):
    (detector, monitor), y, x = lab.devices
    runs = [
        bp.count([monitor], 2),
        bp.count([detector, y, x], 2),
        bp.scan([monitor], y, -0.2, 0.2, 3),
        bp.scan([detector, monitor], y, -0.2, 0.2, 3),
        bp.grid_scan([monitor], y, -0.2, 0.2, 2, x, -0.2, 0.2, 2),
    ]
    for plan in runs:
        with caplog.at_level("INFO", "bluesky_cdi"):
            caplog.clear()
            lab.run(plan)
            lab.session.wait()
        told = [record for record in caplog.records if record.name.startswith("bluesky_cdi.callbacks")]
        assert len(told) == 1 and "is recorded, and not reconstructed" in told[0].getMessage()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
        assert lab.session.live.error is None and not lab.derived
    assert all(lab.session.catalog.raw[start["uid"]].stop for start in lab.docs.of("start"))
    assert len(lab.docs.of("start")) == len(runs)
    lab.clear()
    lab.run(PLANS["grid_scan, x first"](*lab.devices))
    lab.session.wait()
    assert lab.check_derived_run("success").n_frames == 9
