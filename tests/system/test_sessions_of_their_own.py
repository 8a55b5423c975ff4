"""What ends a session's worker, or needs one that is set up differently."""

import logging
import threading

import pytest

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.reconstruction.online import PtychoReconstructor

WINDOW = {"extent_um": (0.4, 0.6), "step_um": 0.2}
SOON_S = 240.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_ends(open_lab, fast_config, fail_after):
    with open_lab(fast_config) as lab, fail_after(1, SystemExit()):
        assert lab.run(lab.adaptive(budget=40)) == "budget"
        lab.settle()
        lab.check_raw_run("success", 40)
        assert not lab.check_derived_run("fail").complete
        with pytest.raises(WorkerError, match="not running; start a new session"):
            lab.run(lab.adaptive())
        assert len(lab.docs.of("start")) == 1
        # Without the worker a fixed scan is recorded all the same.
        lab.clear()
        assert lab.run(ptycho_raster(*lab.devices, lab.session.live, **WINDOW)) == "complete"
        lab.settle()
        lab.check_raw_run("success", 12)


def test_closing_a_paused_session(open_lab, fast_config, slow_agent):
    """The run is aborted, and all of it is in the catalog before the server stops."""
    before = set(threading.enumerate())
    with open_lab(fast_config) as lab:
        lab.pause_when_waiting(slow_agent)
        slow_agent.go.set()
        engine = lab.session.RE
    assert engine.state == "idle"
    names = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in names if name.startswith(("bluesky-run-engine", "bluesky_cdi"))]
    assert lab.docs.of("stop")[0]["exit_status"] == "abort"
    (stop,) = lab.derived.of("stop")
    assert (stop["exit_status"], stop["complete"], stop["n_frames"]) == ("abort", True, 8)


def test_overflow_leaves_frames_out_of_the_image_only(open_lab, make_config, monkeypatch, caplog):
    config = make_config(reconstructor={"name": "rpie", "refine_iterations": 0, "final_steps": 0, "queue_frames": 3})
    real, go, is_full = PtychoReconstructor.step, threading.Event(), threading.Event()

    def step(self, budget_s, interrupted=None):
        assert go.wait(SOON_S)
        return real(self, budget_s, interrupted)

    monkeypatch.setattr(PtychoReconstructor, "step", step)
    with open_lab(config) as lab, caplog.at_level(logging.WARNING, "bluesky_cdi"):
        put = lab.session.live.put

        def put_and_look(frame):
            put(frame)
            if lab.session.live.n_dropped:
                is_full.set()

        monkeypatch.setattr(lab.session.live, "put", put_and_look)
        plan = ptycho_raster(*lab.devices, lab.session.live, extent_um=(1.0, 1.0), step_um=0.2)
        # The scan does not wait: it is over while the first step still stands.
        assert lab.run(plan) == "complete"
        assert is_full.wait(SOON_S)
        go.set()
        lab.session.wait()
        lab.check_raw_run("success", 36)
        result = lab.check_derived_run("success")
        dropped = lab.session.live.n_dropped
    assert dropped > 0
    assert result.n_frames == 36 - dropped
    assert caplog.text.count("frames are left out of the live image") == 1
    assert lab.derived.of("stop")[0]["reason"] == f"{dropped} frame(s) were left out: the reconstruction was behind"


def test_without_weights_runs_are_recorded(open_lab, make_config, tmp_path, caplog):
    config = make_config(reconstructor={"name": "pinn", "weights": str(tmp_path / "lost.safetensors")})
    with caplog.at_level(logging.ERROR, "bluesky_cdi"), open_lab(config) as lab:
        (record,) = caplog.records
        assert record.getMessage().startswith(f"there is no live reconstruction: no weights at {tmp_path}")
        assert record.getMessage().endswith("Runs are recorded all the same.")
        assert lab.run(ptycho_raster(*lab.devices, **WINDOW)) == "complete"
        lab.settle()
        lab.check_raw_run("success", 12)
        assert not lab.check_derived_run("fail").complete
    assert len(caplog.records) == 2 and caplog.records[1].exc_info is None
