"""The way of frames into live images, by a clock that stands still unless work is done."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, ScanFileError, WorkerError
from bluesky_cdi.evaluation.pipeline import KEY, pipeline_said
from bluesky_cdi.live.flow import FrameFlow
from bluesky_cdi.live.inbox import LEAST_FRAMES, Inbox, QueueLimits
from bluesky_cdi.live.messages import End, LeftOut
from bluesky_cdi.live.parts import Pace, WorkerParts
from bluesky_cdi.live.run_frames import RunFrames
from bluesky_cdi.live.run_job import RunJob
from bluesky_cdi.live.steps import Steps
from bluesky_cdi.live.tempo import FIRST_FRAMES, LEAST_SHARE, Tempo
from bluesky_cdi.protocols import Estimate, Frame, RunInfo

# Seconds of a full step and of a quick reading: of any frames, and of each. As on one core, frames of 64x64.
FULL_S, QUICK_S = (1.0, 0.0047), (0.2, 0.0018)
LATENCY_S = 2.0


def image_of(numbers, **source):
    n, image, row = len(numbers), np.ones((2, 2)), np.zeros(len(numbers))
    return Estimate(n, image, (0.0, 0.0), 1.0, image[None], image, image, image, np.array(sorted(numbers)),
                    np.zeros((n, 2)), np.zeros((n, 1)), row, row, row, source=source)  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Rebuild:
    """A reconstructor whose work takes its time by the clock; of more frames than time allows it reads every other."""

    def __init__(self, clock, quick=True):
        self.clock, self.quick, self.known, self.there = clock, quick, [], set()
        self.fulls, self.readings = [], []

    def add(self, frames):
        self.known += [frame.seq_num for frame in frames]

    def step(self, budget_s, interrupted=None):
        self.clock.now += FULL_S[0] + FULL_S[1] * len(self.known)
        self.there = set(self.known)
        self.fulls.append(len(self.known))
        return image_of(self.there)

    def read_quickly(self, budget_s):
        waiting = [number for number in self.known if number not in self.there]
        if not self.quick or not waiting:
            return None
        most = max(1, int((budget_s - QUICK_S[0]) / QUICK_S[1]))
        read = waiting[:: -(-len(waiting) // most)]
        self.clock.now += QUICK_S[0] + QUICK_S[1] * len(read)
        self.there |= set(read)
        self.readings.append(len(read))
        return image_of(self.there)


class Scan:
    """Frames that come at a rate, images that are made of them, as the worker's thread makes them."""

    def __init__(self, *, quick=True, latency_s=LATENCY_S, **options):
        self.clock = Clock()
        self.rebuild = Rebuild(self.clock, quick)
        self.flow, self.pace = FrameFlow(self.clock), Pace(latency_s=latency_s)
        self.steps = Steps(self.rebuild, self.pace, self.flow, clock=self.clock, **options)
        self.image = None

    def run(self, rate, seconds):
        began, frames, came = self.clock.now, int(rate * seconds), 0
        while came < frames:
            due = min(frames, int(rate * (self.clock.now - began) + 1e-9))
            if due == came:
                self.clock.now = began + (came + 1) / rate
                continue
            new = [
                Frame(k + 1, np.zeros(2), np.zeros((2, 2)), arrived_s=began + (k + 1) / rate) for k in range(came, due)
            ]
            for frame in new:
                self.flow.receive(frame.seq_num, frame.arrived_s)
            self.rebuild.add(new)
            self.image, came = self.steps.make(lambda: False) or self.image, due
        return self.flow.notes()

    def rest(self):
        """Make images while nothing comes, until none is due any more."""
        while self.steps.rest_s is not None:
            self.clock.now += self.steps.rest_s
            self.image = self.steps.make(lambda: False, paused=True)


def assert_adds_up(counts):
    assert counts["received"] == sum(counts[name] for name in ("imaged", "waiting", "thinned", "bad", "dark"))


# At a low rate there is time for full steps, which a frame may have to wait for; at 400 quick readings take all of it.
@pytest.mark.parametrize(("rate", "p95_s"), [(20, 3.0), (100, LATENCY_S), (200, LATENCY_S), (400, 3.0)])
def test_no_frame_is_thinned_at_the_sustained_rate_and_the_image_does_not_lag(rate, p95_s):
    scan = Scan()
    counts = scan.run(rate, 40)
    assert_adds_up(counts)
    assert counts["received"] == 40 * rate
    assert counts["waiting"] <= rate * LATENCY_S
    assert counts["ever_thinned"] <= 0.2 * counts["received"] and counts["latency_p95_s"] <= p95_s
    scan.rest()
    assert scan.flow.notes()["imaged"] == 40 * rate and scan.rebuild.fulls[-1] == 40 * rate


def test_frames_that_are_too_many_are_thinned_and_all_come_in_when_no_more_come(caplog):
    scan = Scan()
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        counts = scan.run(4000, 5)
    assert_adds_up(counts)
    assert counts["thinned"] > 10_000 and counts["latency_p95_s"] <= LATENCY_S
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["frames come faster than they can be read"]
    assert counts == scan.image.source[KEY] and str(counts["thinned"]) in pipeline_said(scan.image.source)
    scan.rest()
    counts = scan.flow.notes()
    assert (counts["imaged"], counts["thinned"], counts["waiting"]) == (20_000, 0, 0)
    assert counts["ever_thinned"] > 10_000
    # First all frames, then one image of all of them.
    assert scan.rebuild.fulls[-1] == 20_000 and sum(scan.rebuild.readings) <= 20_000


def test_every_image_is_full_where_it_is_made_in_time():
    scan, before = Scan(), Scan(latency_s=math.inf)
    for each in (scan, before):
        each.run(10, 15)
    assert scan.rebuild.readings == [] and scan.rebuild.fulls == before.rebuild.fulls
    assert scan.steps.rest_s is None


@pytest.mark.parametrize("options", [{"quick": False}, {"always_full": True}, {"latency_s": math.inf}])
def test_every_image_is_full_without_a_network_and_for_decisions(options):
    scan = Scan(**options)
    counts = scan.run(1000, 4)
    assert scan.rebuild.readings == [] and counts["thinned"] == 0
    assert_adds_up(counts)


def test_full_steps_take_their_share_of_the_time():
    clock = Clock()
    tempo = Tempo(2.0, clock)
    began = clock.now
    assert tempo.is_full(FIRST_FRAMES) and not tempo.is_full(FIRST_FRAMES + 1)
    clock.now += 5.0
    tempo.stepped(began, 1000, full=True)
    # Busy all the time: until a full step is no more than its least share.
    for _ in range(int(5.0 * (1 / LEAST_SHARE - 1)) - 1):
        assert not tempo.is_full(1000)
        began = clock.now
        clock.now += 1.0
        tempo.stepped(began, 1000, full=False)
    clock.now += 1.0
    assert tempo.is_full(1000)
    # With hardly anything to do: after as long as it takes.
    tempo.stepped(clock.now - 5.0, 1000, full=True)
    clock.now += 4.9
    assert not tempo.is_full(1000)
    clock.now += 0.2
    assert tempo.is_full(1000) and not tempo.is_full(2000)


def test_first_steps_grow_with_the_scan_and_none_is_begun_that_would_take_too_long(monkeypatch):
    """Of rows that follow one another a step's time grows from next to nothing: it looks at what frames lie on."""
    monkeypatch.setattr(f"{__name__}.FULL_S", (0.3, 0.0046))
    scan = Scan()
    scan.run(400, 8.0)
    took_s = [FULL_S[0] + FULL_S[1] * frames for frames in scan.rebuild.fulls]
    assert len(took_s) >= 2 and max(took_s) <= LATENCY_S and scan.rebuild.readings


def test_counts_of_bad_dark_and_late_frames():
    clock = Clock()
    flow = FrameFlow(clock)
    for number in range(1, 7):
        flow.receive(number, 90.0 + number)
    flow.leave_out(7, is_bad=True)
    flow.leave_out(8, is_bad=False)
    clock.now = 110.0
    flow.receive(9, 109.0)
    # 6 came while the image was made; 4 is dark.
    image = flow.show(image_of([1, 2, 3], dark_frames=[4]), began_s=95.5)
    counts = image.source[KEY]
    assert counts == flow.notes()
    assert_adds_up(counts)
    assert [counts[k] for k in ("received", "imaged", "waiting", "thinned", "bad", "dark")] == [9, 3, 2, 2, 1, 1]
    assert counts["latency_p50_s"] == pytest.approx(18.0)  # 19, 18 and 17 s
    # What was thinned, and what was read again, counts as imaged; not for the latency.
    flow.receive(8)
    clock.now = 111.0
    counts = flow.show(image_of([1, 2, 3, 5, 6, 8, 9], dark_frames=[4]), began_s=110.5).source[KEY]
    assert [counts[k] for k in ("received", "imaged", "waiting", "thinned", "bad", "dark")] == [9, 7, 0, 0, 1, 1]
    assert counts["ever_thinned"] == 2 and counts["latency_p95_s"] == pytest.approx(18.8)
    # Measured again, it waits again, and counts once.
    flow.receive(1, 111.0)
    assert (flow.notes()["received"], flow.notes()["waiting"]) == (9, 1)
    assert pipeline_said({}) == ""


def test_counts_are_those_of_the_image_that_they_are_told_with():
    def said(image):
        counts = image.source[KEY]
        assert_adds_up(counts)
        assert counts["imaged"] == image.n_frames
        return [counts[name] for name in ("waiting", "thinned", "bad", "dark")]

    clock = Clock()
    flow = FrameFlow(clock)
    for number in range(1, 7):
        flow.receive(number, 90.0)
    older = flow.show(image_of([3, 4], dark_frames=[1, 2]), 80.0)
    assert said(older) == [2, 0, 0, 2]
    # What is dark more frames tell: 1 is no more, 3 is now.
    assert said(flow.show(image_of([1, 4, 5], dark_frames=[2, 3]), 95.0)) == [0, 1, 0, 2]
    # 2 is not dark any more, and is still to be read.
    assert said(flow.show(image_of([1, 4, 5, 6], dark_frames=[3]), 95.0)) == [1, 0, 0, 1]
    assert flow.unread == 1
    flow.leave_out(4, is_bad=True)
    # Measured again in vain: the image has it as it was. And an image before that is shown in place of a bad one.
    assert said(flow.show(image_of([1, 2, 4, 5, 6], dark_frames=[3]), 100.0)) == [0, 0, 0, 1]
    assert said(flow.noted(older)) == [2, 0, 0, 2]


class Recorder:
    def publish(self, estimate):
        pass

    def close(self, estimate, exit_status, reason):
        self.estimate, self.exit_status = estimate, exit_status


class Judged(Rebuild):
    """A reconstructor whose runs end; after a step with this many frames none helps."""

    def __init__(self, clock, frames):
        super().__init__(clock)
        self.frames = frames

    def step(self, budget_s, interrupted=None):
        return None if self.fulls == [self.frames] else super().step(budget_s)

    def checked(self, estimate, interrupted):
        return estimate

    def close(self):
        pass


@pytest.mark.parametrize("final_steps", [0, 3])
def test_frames_that_were_passed_over_come_in_after_the_last_one(final_steps):
    FRAMES = 10 * FIRST_FRAMES
    recorder, rebuild = Recorder(), Judged(Clock(), FRAMES)
    parts = WorkerParts(lambda info: rebuild, None, lambda info, uid: recorder, None)
    job = RunJob(RunInfo("raw", 1, {}, (2, 2)), "uid", parts, Pace(final_steps=final_steps, latency_s=LATENCY_S))
    job.open()
    job.take([Frame(k + 1, np.zeros(2), np.zeros((2, 2))) for k in range(FRAMES)], lambda: False)
    assert job.estimate.n_frames == rebuild.readings[0] < FRAMES and job.frames.flow.thins
    job.end(End("success", "", {"dropped_frames": 2}))
    while job.is_open:
        job.refine(lambda: False)
    assert recorder.estimate.n_frames == FRAMES == rebuild.fulls[-1]
    assert recorder.estimate.source["dropped_frames"] == 2
    counts = recorder.estimate.source[KEY]
    assert (counts["imaged"], counts["thinned"], counts["waiting"]) == (FRAMES, 0, 0)


@pytest.mark.parametrize("end", [lambda job: job.fail(WorkerError("broken")), lambda job: job.abandon("closed")])
def test_what_is_known_of_a_run_is_kept_where_its_reconstruction_ends_before_it(end):
    told, recorder = {}, Recorder()
    parts = WorkerParts(lambda info: Judged(Clock(), 0), None, lambda info, uid: recorder, None)
    info = RunInfo("raw", 1, {}, (2, 2), notes_by_now=lambda: told)
    job = RunJob(info, "uid", parts, Pace(latency_s=LATENCY_S))
    job.open()
    job.take([Frame(k + 1, np.zeros(2), np.zeros((2, 2))) for k in range(FIRST_FRAMES)], lambda: False)
    told["dropped_frames"] = 2
    end(job)
    assert (recorder.exit_status, recorder.estimate.source["dropped_frames"]) == ("fail", 2)
    assert "2 frame(s) were dropped" in str(recorder.estimate.source["verdict"]["remarks"])


def test_order_of_frames_does_not_matter():
    numbers, counts = np.arange(1, 41), []
    for order in (numbers, numbers[::-1], np.random.default_rng(0).permutation(numbers)):
        flow = FrameFlow(Clock())
        for number in order.tolist():
            flow.receive(number, float(number))
        flow.show(image_of(range(1, 41, 3)), began_s=30.0)
        counts.append(flow.notes())
    assert counts[0] == counts[1] == counts[2]
    assert_adds_up(counts[0])


def test_frames_that_can_not_be_used_are_bad_once_that_is_known(monkeypatch):
    monkeypatch.setattr("bluesky_cdi.live.run_frames.LATE_S", 0.0)

    def gone(number, region=None):
        raise ScanFileError("its file is gone")

    frames, rebuild = RunFrames(RunInfo("raw", 1, {}, (2, 2), read_again=gone)), Rebuild(Clock())
    refusing = type("Refusing", (Rebuild,), {"add": lambda self, frames: self._refuse(frames)})(Clock())
    refusing._refuse = lambda frames: (_ for _ in ()).throw(FrameError("wrong shape"))
    frames.take(refusing, [Frame(1, np.zeros(2), np.zeros((2, 2)))])
    assert frames.flow.notes()["bad"] == 1
    frames.take(rebuild, [LeftOut(2, ScanFileError("late")), Frame(3, np.zeros(2), np.zeros((2, 2)))])
    assert (frames.flow.notes()["bad"], frames.flow.notes()["thinned"]) == (1, 1)
    while frames.owed:
        frames.read_again(rebuild, 1.0, lambda: False)
    counts = frames.flow.notes()
    assert (counts["bad"], counts["waiting"], counts["thinned"]) == (2, 1, 0)
    assert_adds_up(counts)


def test_inbox_holds_as_many_frames_as_memory_is_for():
    inbox = Inbox(QueueLimits(bytes=100 * 800))
    taken = [inbox.put(Frame(k, np.zeros(2), np.zeros((10, 10)))) for k in range(1, 151)]
    assert taken == [True] * 100 + [False] * 50 and inbox.frames == 100
    ((first, *_),) = inbox.batch(0.0)
    assert first.seq_num == 1 and inbox.frames == 0 and list(inbox.batch(0.0)) == []
    large = replace(first, counts=np.zeros((200, 200)))
    assert [inbox.put(large) for _ in range(LEAST_FRAMES + 1)] == [True] * LEAST_FRAMES + [False]


def test_freed_memory_is_given_back_and_not_often(monkeypatch):
    clock, given = Clock(), []
    monkeypatch.setattr("bluesky_cdi.live.steps.give_memory_back", lambda: given.append(clock.now))
    steps = Steps(Rebuild(clock), Pace(latency_s=math.inf), FrameFlow(clock), clock=clock)
    for _ in range(30):
        steps.make(lambda: False)
    # A step takes a second here.
    assert given == [111.0, 122.0]
