"""Failures of the worker and bad input: one clear error, and the scan goes on."""

import pytest
from ophyd import Signal

from bluesky_cdi.errors import DocumentError, GeometryError, WorkerError
from bluesky_cdi.plans import adaptive_ptycho, ptycho_raster

RASTER = {"extent_um": (0.4, 0.6), "step_um": 0.2}


def check_that_a_new_scan_works(lab):
    lab.clear()
    assert lab.run(lab.adaptive(budget=6)) == "budget"
    lab.session.wait()
    lab.check_raw_run("success", 6)
    assert lab.check_derived_run("success").n_frames == 6


def test_scan_goes_on_when_the_reconstructor_raises(lab, fail_after):
    with fail_after(1, ArithmeticError("numbers went wrong")):
        assert lab.run(lab.adaptive(budget=40)) == "budget"
        lab.settle()
    lab.check_raw_run("success", 40)
    reasons = [event["data"]["agent_reason"] for event in lab.docs.of("event", "agent")]
    assert reasons[-2:] == ["reconstruction failed", "budget"]
    assert not lab.check_derived_run("fail").complete
    with pytest.raises(WorkerError, match="ArithmeticError: numbers went wrong"):
        lab.session.wait()
    check_that_a_new_scan_works(lab)


def test_reconstructor_that_raises_ends_the_scan_where_that_is_wished(lab, fail_after):
    with fail_after(1, ArithmeticError("numbers went wrong")):
        with pytest.raises(WorkerError, match="ArithmeticError: numbers went wrong"):
            lab.run(lab.adaptive(budget=40, on_reconstruction_failure="abort"))
        lab.settle()
    frames = lab.check_raw_run("fail")
    assert 0 < len(frames) < 40
    lab.check_derived_run("fail")


def test_geometry_is_missing(lab):
    geometry = lab.session.RE.md.pop("geometry")
    try:
        assert lab.run(lab.adaptive()) == "budget"
    finally:
        lab.session.RE.md["geometry"] = geometry
    with pytest.raises(WorkerError, match=r"GeometryError: .* missing: energy_ev, distance_m, detector_pixel_m"):
        lab.session.wait()
    lab.check_raw_run("success", 16)
    lab.check_derived_run("fail")


def test_window_is_wrong(lab):
    """A fixed scan that does not listen to the worker is complete; its reconstruction tells what it lacked."""
    md = {"window_m": [[5e-8, 5e-8], [9e-8, 9e-8]]}
    assert lab.run(ptycho_raster(*lab.devices, **RASTER, md=md)) == "complete"
    with pytest.raises(WorkerError, match=r"GeometryError: .*outside the object"):
        lab.session.wait()
    assert isinstance(lab.session.live.error, GeometryError)
    lab.check_raw_run("success", 12)
    lab.check_derived_run("fail")


def test_monitor_is_missing(lab):
    """Documents without the configured monitor: told before the first frame is used."""
    stage = lab.beamline.stage
    assert lab.run(ptycho_raster([lab.beamline.detector], stage.y, stage.x, **RASTER)) == "complete"
    with pytest.raises(WorkerError, match=r"DocumentError: .*i0"):
        lab.session.wait()
    lab.check_raw_run("success", 12)


def test_axis_without_a_unit(lab):
    axis = Signal(name="pseudo", value=0.0)
    detectors, y, _ = lab.devices
    with pytest.raises(DocumentError, match="pseudo must state a unit of length"):
        lab.run(adaptive_ptycho(detectors, y, axis, lab.session.live, **RASTER, budget=4))
    assert lab.docs == []


def test_impossible_window(lab):
    with pytest.raises(GeometryError, match="a scan needs centre_um and extent_um"):
        lab.run(lab.adaptive(extent_um=(1.0, -1.0)))
    assert lab.docs == []
