"""What is told of a thread without signs of life, on a clock that the tests step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluesky_cdi.live.activity import GRACE_S, IDLE_S, LOOK_MAX_S, REMEMBERED, STUCK_S, USUAL, Activity

BEAT_S = 0.5
FIRST_S = 5.0


class Watched:
    """A thread and who looks at it, one beat after the other."""

    def __init__(self, tune_s=0.0, share=0.0):
        self.now = self.used = 0.0
        # Of a processor, that the computation uses.
        self.share = share
        self.told = []
        self.activity = Activity(FIRST_S, tune_s, clock=lambda: self.now, processor_s=lambda: self.used)

    def passes(self, seconds):
        """Let time pass, and look at each beat that falls into it."""
        end = self.now + seconds
        while (beat := (self.now // BEAT_S + 1) * BEAT_S) <= end:
            self._pass(beat - self.now)
            self.told.append(self.activity.look())
        self._pass(end - self.now)

    def _pass(self, seconds):
        self.now += seconds
        self.used += self.share * seconds

    def steps(self, count, seconds, signs=1):
        for _ in range(count):
            self.activity.begin("a step")
            for _ in range(signs):
                self.passes(seconds / signs)
                self.activity.sign()
            self.activity.begin(None)

    def hangs(self, seconds):
        """Begin a step that does not end; what is told of it, and after how long."""
        self.activity.begin("a step")
        self.told.clear()
        began = self.now
        told = []
        while self.now < began + seconds:
            self.passes(BEAT_S)
            if self.told[-1] is not None:
                told.append((self.now - began, self.told[-1]))
        return told


@pytest.mark.parametrize("signs", [1, 10])
def test_a_hang_is_told_within_two_seconds_after_what_is_usual(signs):
    """Usual is twice the longest silence of a step, however long the steps are that gave signs in between."""
    watched = Watched()
    watched.steps(3, 2.0, signs)
    assert not any(watched.told)
    after_s, silence = watched.hangs(30.0)[0]
    usual_s = USUAL * 2.0 / signs
    assert silence.at == "a step" and silence.usual_s == pytest.approx(usual_s)
    assert usual_s + GRACE_S < after_s <= usual_s + GRACE_S + BEAT_S == usual_s + 2.0
    assert silence.for_s == pytest.approx(after_s)


@pytest.mark.parametrize(("share", "patience_s"), [(0.0, IDLE_S), (0.001, IDLE_S), (0.1, STUCK_S), (1.0, STUCK_S)])
def test_what_does_not_even_compute_is_taken_for_hung_sooner(share, patience_s):
    watched = Watched(share=share)
    watched.steps(3, 1.0)
    hung = [after_s for after_s, silence in watched.hangs(200.0) if silence.left_s <= 0]
    assert USUAL + patience_s <= hung[0] <= USUAL + patience_s + BEAT_S


def test_what_computes_now_and_then_is_not_ended_before_it_does_not():
    """Documents that come are read in the process whose computation hangs."""
    watched = Watched(share=0.5)
    watched.steps(3, 1.0)
    assert all(silence.left_s > 0 for _, silence in watched.hangs(50.0))
    watched.share = 0.0
    watched.told.clear()
    watched.passes(IDLE_S - BEAT_S)
    assert all(silence.left_s > 0 for silence in watched.told)
    watched.passes(BEAT_S)
    assert watched.told[-1].left_s <= 0


def test_what_was_not_done_before_has_the_time_of_the_settings():
    """A network that is loaded, a kernel that is compiled."""
    told = Watched(tune_s=20.0).hangs(300.0)
    assert 25.0 + GRACE_S < told[0][0] <= 25.0 + GRACE_S + BEAT_S
    hung = [after_s for after_s, silence in told if silence.left_s <= 0]
    assert 25.0 + STUCK_S <= hung[0] <= 25.0 + STUCK_S + BEAT_S


def test_each_kind_of_work_has_its_own_time():
    watched = Watched()
    watched.activity.begin("the start of a run")
    watched.passes(4.0)
    watched.steps(1, 0.5)
    assert watched.hangs(10.0)[0][0] <= USUAL * 0.5 + 2.0


def test_time_to_tune_is_given_to_every_step():
    watched = Watched(tune_s=20.0)
    watched.steps(3, 1.0)
    assert watched.hangs(40.0)[0][0] > 20.0 + USUAL + GRACE_S


def test_one_that_was_slow_once_is_forgotten():
    watched = Watched()
    watched.steps(1, 4.0)
    watched.steps(REMEMBERED - 1, 0.25)
    assert watched.hangs(20.0)[0][1].usual_s == USUAL * 4.0
    watched.activity.begin(None)
    watched = Watched()
    watched.steps(1, 4.0)
    watched.steps(REMEMBERED, 0.25)
    assert watched.hangs(20.0)[0][1].usual_s == USUAL * 0.25


def test_a_thread_that_waits_for_work_does_not_hang():
    watched = Watched()
    watched.steps(2, 0.1)
    watched.passes(1000.0)
    assert not any(watched.told)


def test_a_machine_that_was_stopped_is_no_hang():
    """Between two looks no more than a second passes for the thread: it had no more than whoever looks."""
    watched = Watched()
    watched.steps(3, 0.2)
    watched.activity.begin("a step")
    watched.now += 3600.0
    assert watched.activity.look() is None
    for _ in range(10):
        watched.now += 100.0
        silence = watched.activity.look()
    assert silence.for_s == pytest.approx(11 * LOOK_MAX_S)


def test_a_question_whether_to_come_back_is_a_sign():
    watched = Watched()
    watched.steps(3, 0.1)
    interrupted = watched.activity.watched(lambda: False)
    watched.activity.begin("a step")
    for _ in range(100):
        watched.passes(0.2)
        assert interrupted() is False
    assert not any(watched.told)


@given(first=st.floats(0.0, FIRST_S), factors=st.lists(st.floats(0.0, 2.0), max_size=12))
def test_a_machine_that_gets_busy_is_never_told_of(first, factors):
    """Steps of any length, each at most twice as long as the longest before, and a second more."""
    watched, longest = Watched(), first
    watched.steps(1, first)
    for factor in factors:
        step_s = factor * longest + 1.0
        watched.steps(1, step_s)
        longest = max(longest, step_s)
        if longest > 600.0:
            break
    assert not any(watched.told)
