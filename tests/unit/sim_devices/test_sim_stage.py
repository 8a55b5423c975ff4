import threading
import time

import bluesky.plan_stubs as bps
import pytest
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd.utils.errors import LimitError, StatusTimeoutError, UnknownStatusFailure

from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.sim_devices import OutOfRangeError, SimAxis, SimStage


@pytest.fixture
def stage():
    return SimStage(name="stage", velocity_um_per_s=100.0, limits_um=((-20, 20), (-10, 10)), start_um=(1.0, 2.0))


def seconds(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def test_documents_state_micrometres_and_limits(stage):
    assert stage.hints == {"fields": ["stage_y", "stage_x"]}
    assert stage.egu == stage.y.egu == "um"
    described = stage.describe()
    assert list(described) == list(stage.read()) == ["stage_y", "stage_x"]
    assert described["stage_x"]["units"] == "um"
    assert (described["stage_x"]["lower_ctrl_limit"], described["stage_x"]["upper_ctrl_limit"]) == (-10, 10)
    assert stage.read_configuration()["stage_y_velocity"]["value"] == 100.0
    assert stage.describe_configuration()["stage_y_velocity"]["units"] == "um/s"
    assert "lower_ctrl_limit" not in SimAxis(name="free").describe()["free"]


def test_arrives_exactly(stage):
    for target in (3.3, -0.1, 1 / 3):
        stage.y.set(target).wait(1)
        assert stage.y.position == target == stage.y.read()["stage_y"]["value"]
    assert stage.position_m == (1 / 3 * 1e-6, 2.0 * 1e-6)


def test_move_takes_distance_over_velocity_and_under_a_millisecond_more(stage):
    extra = []
    for target in (3.0, 1.0) * 5:
        extra.append(seconds(lambda target=target: stage.y.set(target).wait(1)) - 0.02)
    assert min(extra) >= 0
    assert min(extra) < 1e-3
    stage.y.velocity.set(1000).wait(1)
    assert seconds(lambda: stage.y.set(13.0).wait(1)) == pytest.approx(0.01, abs=8e-3)


def test_axes_move_together(RE, stage):
    elapsed = seconds(lambda: RE(bps.mv(stage.y, 11.0, stage.x, -8.0)))
    assert 0.1 <= elapsed < 0.17
    assert (stage.y.position, stage.x.position) == (11.0, -8.0)


def test_reads_back_on_the_way(stage):
    status = stage.y.set(11.0)
    time.sleep(0.03)
    assert stage.y.moving
    assert 1.0 < stage.y.position < 11.0
    status.wait(1)
    assert not stage.y.moving


@pytest.mark.parametrize("success", [True, False])
def test_stop_ends_the_status_and_stays(stage, success):
    status = stage.y.set(20.0)
    time.sleep(0.02)
    stage.stop(success=success)
    here = stage.y.position
    assert 1.0 < here < 10.0
    if success:
        status.wait(0.1)
    else:
        with pytest.raises(UnknownStatusFailure, match=r"stage_y was stopped at .* on its way to 20 um"):
            status.wait(0.1)
    time.sleep(0.02)
    assert stage.y.position == here
    stage.y.stop()


def test_new_target_ends_the_old_move(stage):
    first = stage.y.set(20.0)
    time.sleep(0.01)
    stage.y.set(1.5).wait(1)
    assert stage.y.position == 1.5
    with pytest.raises(UnknownStatusFailure, match="on its way to 20"):
        first.wait(0.1)


def test_timeout_stops_the_axis(stage):
    status = stage.y.set(20.0, timeout=0.03)
    with pytest.raises(StatusTimeoutError):
        status.wait(1)
    stage.y.stop()
    assert 1.0 < stage.y.position < 19.0


def test_callbacks_and_waiting_move(stage):
    seen = []
    stage.y.subscribe(lambda value, **_: seen.append(value), event_type=stage.y.SUB_READBACK, run=False)
    done = threading.Event()
    stage.y.move(1.5, wait=True, moved_cb=lambda status, obj: done.set())
    assert done.wait(1)
    deadline = time.monotonic() + 1
    while not seen and time.monotonic() < deadline:
        time.sleep(0.001)
    assert seen == [1.5]


@pytest.mark.parametrize("target", [20.001, -21.0, float("nan"), float("inf")])
def test_refuses_positions_outside_the_limits(stage, target):
    with pytest.raises(OutOfRangeError, match=r"stage_y moves between -20 and 20 um; it was asked to go to"):
        stage.y.set(target)
    assert not stage.y.moving
    assert issubclass(OutOfRangeError, LimitError) and issubclass(OutOfRangeError, BlueskyCDIError)


def test_refuses_a_start_outside_and_no_speed(stage):
    with pytest.raises(OutOfRangeError, match="s_x moves between 0 and 1"):
        SimStage(name="s", limits_um=((0, 1), (0, 1)), start_um=(0.5, 2.0))
    with pytest.raises(OutOfRangeError, match="stage_y_velocity must be a finite number of at least"):
        stage.y.velocity.set(0)


def test_limit_error_comes_out_of_a_plan(RE, stage):
    with pytest.raises(OutOfRangeError, match="between -10 and 10"):
        RE(bps.mv(stage.x, 11.0))


def test_pause_stops_the_move_and_resume_completes_it(RE, stage):
    def plan():
        yield from bps.checkpoint()
        yield from bps.mv(stage.y, 16.0)

    threading.Timer(0.05, RE.request_pause, kwargs={"defer": False}).start()
    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    assert 1.0 < stage.y.position < 16.0
    assert not stage.y.moving
    RE.resume()
    assert stage.y.position == 16.0


def test_move_stopped_as_failed_fails_the_plan(RE, stage):
    threading.Timer(0.03, stage.y.stop).start()
    with pytest.raises(FailedStatus) as raised:
        RE(bps.mv(stage.y, 16.0))
    assert "was stopped" in str(raised.value.__cause__)
