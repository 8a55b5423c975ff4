"""What a session knows of the reconstruction's process."""

from bluesky_cdi.remote.process_state import RESTARTS_MAX, ProcessState


def test_a_late_report_of_an_older_scan_does_not_fail_the_newest():
    state = ProcessState()
    state.begin()
    state.sends_scan()
    state.fail(1, "numbers went wrong")
    assert str(state.error) == "numbers went wrong"

    # Announced, and still on its way.
    state.begin()
    state.fail(1, "numbers went wrong")
    assert state.error is None
    # Sent, and not heard yet.
    state.sends_scan()
    state.fail(1, "numbers went wrong")
    assert state.error is None

    state.fail(2, "no room")
    assert str(state.error) == "no room"
    # Nor does an older scan's success hide the newest one's failure.
    state.fail(1, None)
    assert str(state.error) == "no room"
    state.fail(2, None)
    assert state.error is None


def test_processes_that_end_are_given_up_for_a_run_and_tried_again_for_the_next():
    state = ProcessState()
    for _ in range(RESTARTS_MAX):
        assert "it is started again" in str(state.lost("exit code 3")) and not state.is_given_up
    assert f"{RESTARTS_MAX + 1} times in one run" in str(state.lost("exit code 3")) and state.is_given_up
    state.begin()
    assert not state.is_given_up and state.error is None
    state.can_not_begin("no such network")
    state.begin()
    assert state.is_given_up and "no such network" in str(state.error)
