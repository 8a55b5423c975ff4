"""Any plan that moves two axes is reconstructed; what is no ptychography is recorded, and troubles nobody."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np

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


def check_that_it_is_reconstructed(lab, plan):
    lab.run(plan)
    lab.session.wait()
    assert "reconstruction_uid" not in lab.docs.of("start")[0]
    lab.check_raw_run("success", len(PLACES_UM))
    result = lab.check_derived_run("success")
    assert result.n_frames == len(PLACES_UM)
    estimate = load_result(lab.session.catalog, result.uid)
    # (y, x), whatever the order in which the plan names its motors.
    np.testing.assert_allclose(estimate.positions_m, lab.docs.measured_m, atol=1e-12)
    pixel, side = estimate.pixel_m, estimate.probe.shape[-1]
    low = np.array(estimate.origin_m) + side / 2 * pixel
    high = low + (np.array(estimate.object.shape) - side) * pixel
    assert (low <= lab.docs.measured_m.min(axis=0)).all() and (high >= lab.docs.measured_m.max(axis=0)).all()


def test_it_is_reconstructed_and_resumed(lab):
    check_that_it_is_reconstructed(lab, own_plan(*lab.devices))
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
    check_that_it_is_reconstructed(lab, bp.grid_scan([detector, monitor], x, -0.4, 0.4, 3, y, -0.4, 0.4, 3))
