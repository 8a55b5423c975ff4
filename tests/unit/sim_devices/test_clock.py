"""The clocks that simulated devices live by."""

import threading

import pytest

from bluesky_cdi.sim_devices import ManualClock, RealClock

SOON_S = 120.0


@pytest.fixture
def clock():
    return ManualClock()


def test_time_stands_still_until_it_is_moved_on(clock):
    assert clock.now_s() == 0.0
    clock.advance(0.25)
    clock.advance(0.5)
    assert clock.now_s() == 0.75


def test_actions_come_in_the_order_of_time_and_see_their_own(clock):
    seen = []
    for name, time_s in (("late", 3.0), ("early", 1.0), ("never", 3.5), ("between", 2.0)):
        clock.call_at(time_s, lambda name=name: seen.append((name, clock.now_s())))
    assert clock.alarms_s == [1.0, 2.0, 3.0, 3.5]
    clock.advance(1.0)
    assert seen == [("early", 1.0)]
    clock.advance(2.25)
    assert seen == [("early", 1.0), ("between", 2.0), ("late", 3.0)]
    assert clock.now_s() == 3.25 and clock.alarms_s == [3.5]


def test_an_action_sets_another(clock):
    seen = []
    clock.call_at(1.0, lambda: clock.call_at(clock.now_s() + 1.0, lambda: seen.append(clock.now_s())))
    clock.advance(5.0)
    assert seen == [2.0]


def test_what_is_past_happens_at_once(clock):
    seen = []
    clock.advance(1.0)
    for time_s in (0.5, 1.0):
        clock.call_at(time_s, lambda: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()] * 2 and clock.alarms_s == []


def test_a_cancelled_action_is_not_done(clock):
    seen = []
    first, second = (clock.call_at(1.0, lambda n=n: seen.append(n)) for n in (1, 2))
    first.cancel()
    clock.advance(2.0)
    assert seen == [2]
    second.cancel()


def test_waiting_for_what_other_threads_set(clock, beside):
    with beside(lambda: [clock.call_at(t, lambda: None) for t in (2.0, 1.0)]):
        clock.wait_for_alarm(1.0)
    assert clock.alarms_s == [1.0, 2.0]
    with beside(lambda: clock.advance(1.5)):
        clock.wait_for_alarm(2.0)
    with pytest.raises(TimeoutError, match=r"should be at 3 s; after waiting for 0 s there is something at \[2\.0\] s"):
        clock.wait_for_alarm(3.0, timeout_s=0.0)


def test_the_machines_clock_goes_on_and_calls_from_another_thread():
    clock, called, threads = RealClock(), threading.Event(), []

    def action():
        threads.append((threading.current_thread(), clock.now_s()))
        called.set()

    begun_s = clock.now_s()
    clock.call_at(begun_s + 0.01, action)
    assert called.wait(SOON_S)
    ((thread, seen_s),) = threads
    assert thread is not threading.current_thread() and seen_s >= begun_s + 0.01


def test_the_machines_clock_does_what_is_past_at_once_and_forgets_what_is_cancelled():
    clock, seen = RealClock(), []
    clock.call_at(clock.now_s(), lambda: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()]
    alarm = clock.call_at(clock.now_s() + 3600.0, lambda: seen.append("cancelled"))
    alarm.cancel()
    alarm.join(SOON_S)
    assert not alarm.is_alive() and len(seen) == 1
