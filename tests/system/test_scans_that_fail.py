"""Failures of the worker and bad input: one clear error, and the raw run is intact."""

import numpy as np
import pytest
from ophyd import Signal

from bluesky_cdi.errors import DocumentError, GeometryError, WorkerError
from bluesky_cdi.plans import adaptive_ptycho, ptycho_raster

pytestmark = pytest.mark.timeout(60)
RASTER = {"extent_um": (0.4, 0.6), "step_um": 0.2}


def check_that_a_new_scan_works(lab):
    lab.clear()
    assert lab.run(lab.adaptive(budget=6)) == "budget"
    lab.session.wait(60)
    lab.check_raw_run("success", 6)
    assert lab.check_derived_run("success").n_frames == 6


def test_reconstructor_raises(lab, fail_after):
    with fail_after(2, ArithmeticError("numbers went wrong")):
        with pytest.raises(WorkerError, match="ArithmeticError: numbers went wrong"):
            lab.run(lab.adaptive(budget=40))
        lab.settle()
    frames = lab.check_raw_run("fail")
    assert 0 < len(frames) < 40
    assert not lab.check_derived_run("fail").complete
    with pytest.raises(WorkerError, match="numbers went wrong"):
        lab.session.wait(10)
    check_that_a_new_scan_works(lab)


def test_listener_raises(lab):
    lab.listener_error = KeyError("view")
    with pytest.raises(WorkerError, match="KeyError: 'view'"):
        lab.run(lab.adaptive(budget=40))
    lab.settle()
    lab.check_raw_run("fail")
    lab.check_derived_run("fail")
    check_that_a_new_scan_works(lab)


def test_geometry_is_missing(lab):
    geometry = lab.session.RE.md.pop("geometry")
    try:
        with pytest.raises(WorkerError, match=r"GeometryError: .* missing: energy_ev, distance_m, detector_pixel_m"):
            lab.run(lab.adaptive())
    finally:
        lab.session.RE.md["geometry"] = geometry
    lab.settle()
    assert len(lab.check_raw_run("fail")) > 0
    lab.check_derived_run("fail")


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (None, "must hold window_m"),
        ([[1e-6, 0.0], [0.0, 0.0]], "low <= high"),
        ([[-1.0, -1.0], [1.0, 1.0]], "Are the positions in metres"),
        ([[5e-8, 5e-8], [6e-8, 6e-8]], "outside the canvas"),
    ],
)
def test_window_is_wrong(lab, window, message):
    """A fixed scan that does not listen to the worker is complete; its reconstruction tells what it lacked."""
    assert lab.run(ptycho_raster(*lab.devices, **RASTER, md={"window_m": window})) == "complete"
    with pytest.raises(WorkerError, match=f"GeometryError: .*{message}"):
        lab.session.wait(60)
    assert isinstance(lab.session.live.error, GeometryError)
    lab.check_raw_run("success", 12)
    lab.check_derived_run("fail")


def test_frames_are_not_square(lab):
    detector = Signal(name="narrow", value=np.ones((32, 24)))
    stage = lab.beamline.stage
    assert lab.run(ptycho_raster([detector, lab.beamline.monitor], stage.y, stage.x, **RASTER)) == "complete"
    with pytest.raises(WorkerError, match="frames must be square; they are 32 x 24"):
        lab.session.wait(60)
    run = lab.session.catalog.raw[lab.docs.of("start")[0]["uid"]]
    assert run["primary"]["narrow"].read().shape == (12, 32, 24)


def test_monitor_is_missing(lab):
    """Documents without the configured monitor: told before the first frame is used."""
    stage = lab.beamline.stage
    assert lab.run(ptycho_raster([lab.beamline.detector], stage.y, stage.x, **RASTER)) == "complete"
    with pytest.raises(WorkerError, match=r"DocumentError: .*i0"):
        lab.session.wait(60)
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
