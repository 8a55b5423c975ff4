import threading

import bluesky.plan_stubs as bps
import pytest
from bluesky.utils import FailedStatus, RunEngineInterrupted
from ophyd.utils.errors import LimitError, StatusTimeoutError, UnknownStatusFailure

from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.sim_devices import OutOfRangeError, SimAxis, SimStage

SOON_S = 120.0


@pytest.fixture
def stage(clock):
    limits_um = ((-20, 20), (-10, 10))
    return SimStage(name="stage", velocity_um_per_s=100.0, limits_um=limits_um, start_um=(1.0, 2.0), clock=clock)


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


def test_arrives_exactly(stage, clock):
    for target in (3.3, -0.1, 1 / 3):
        status = stage.y.set(target)
        clock.advance(1.0)
        status.wait(SOON_S)
        assert stage.y.position == target == stage.y.read()["stage_y"]["value"]
    assert stage.position_m == (1 / 3 * 1e-6, 2.0 * 1e-6)


def test_a_move_takes_distance_over_velocity(stage, clock):
    stage.y.set(3.0)
    assert clock.alarms_s == pytest.approx([2.0 / 100.0])
    clock.advance(0.0199)
    assert stage.y.moving
    clock.advance(0.0002)
    assert not stage.y.moving and stage.y.position == 3.0
    stage.y.velocity.set(1000).wait(SOON_S)
    stage.y.set(13.0)
    assert clock.alarms_s == pytest.approx([0.0201 + 10.0 / 1000.0])


def test_a_move_in_real_time_arrives_no_sooner_than_it_should():
    stage = SimStage(name="stage", velocity_um_per_s=100.0)
    begun_s = stage.y.clock.now_s()
    stage.y.set(2.0).wait(SOON_S)
    assert stage.y.clock.now_s() - begun_s >= 0.02 and stage.y.position == 2.0


def test_axes_move_together(RE, stage, clock):
    def plan():
        yield from bps.abs_set(stage.y, 11.0, group="move")
        yield from bps.abs_set(stage.x, -8.0, group="move")
        assert clock.alarms_s == pytest.approx([0.1, 0.1])
        clock.advance(0.11)
        yield from bps.wait("move")

    RE(plan())
    assert (stage.y.position, stage.x.position) == (11.0, -8.0)


def test_reads_back_on_the_way(stage, clock):
    stage.y.set(11.0)
    clock.advance(0.03)
    assert stage.y.moving
    assert stage.y.position == pytest.approx(4.0)
    clock.advance(0.08)
    assert not stage.y.moving


@pytest.mark.parametrize("success", [True, False])
def test_stop_ends_the_status_and_stays(stage, clock, success):
    status = stage.y.set(20.0)
    clock.advance(0.02)
    stage.stop(success=success)
    assert stage.y.position == pytest.approx(3.0)
    if success:
        status.wait(SOON_S)
    else:
        with pytest.raises(UnknownStatusFailure, match=r"stage_y was stopped at 3 um on its way to 20 um"):
            status.wait(SOON_S)
    assert clock.alarms_s == []
    clock.advance(1.0)
    assert stage.y.position == pytest.approx(3.0)
    stage.y.stop()


def test_new_target_ends_the_old_move(stage, clock):
    first = stage.y.set(20.0)
    clock.advance(0.01)
    stage.y.set(1.5)
    with pytest.raises(UnknownStatusFailure, match="at 2 um on its way to 20"):
        first.wait(SOON_S)
    clock.advance(0.01)
    assert stage.y.position == 1.5


def test_timeout_fails_the_status_and_the_axis_can_be_stopped(stage, clock):
    status = stage.y.set(20.0, timeout=0.01)
    clock.advance(0.05)
    with pytest.raises(StatusTimeoutError):
        status.wait(SOON_S)
    stage.y.stop()
    assert stage.y.position == pytest.approx(6.0) and clock.alarms_s == []


def test_callbacks_and_waiting_move(stage, clock, beside):
    seen, told, done = [], threading.Event(), threading.Event()

    def on_readback(value, **_):
        seen.append(value)
        told.set()

    stage.y.subscribe(on_readback, event_type=stage.y.SUB_READBACK, run=False)
    with beside(lambda: stage.y.move(1.5, wait=True, moved_cb=lambda status, obj: done.set())) as move:
        clock.wait_for_alarm(0.005)
        assert not move.done() and not done.is_set()
        clock.advance(0.01)
    assert done.wait(SOON_S) and told.wait(SOON_S)
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


def test_pause_stops_the_move_and_resume_completes_it(RE, stage, clock, beside):
    def plan():
        yield from bps.checkpoint()
        yield from bps.mv(stage.y, 16.0)

    def half_way():
        clock.wait_for_alarm(0.15)
        clock.advance(0.05)
        RE.request_pause(defer=False)

    with beside(half_way), pytest.raises(RunEngineInterrupted):
        RE(plan())
    assert stage.y.position == pytest.approx(6.0)
    assert not stage.y.moving and clock.alarms_s == []
    with beside(lambda: (clock.wait_for_alarm(0.15), clock.advance(0.11))):
        RE.resume()
    assert stage.y.position == 16.0


def test_move_stopped_as_failed_fails_the_plan(RE, stage, clock, beside):
    with beside(lambda: (clock.wait_for_alarm(0.15), stage.y.stop())), pytest.raises(FailedStatus) as raised:
        RE(bps.mv(stage.y, 16.0))
    assert "was stopped" in str(raised.value.__cause__)
