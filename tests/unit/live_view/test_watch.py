"""What is seen of frames on their way to the worker."""

import threading

import numpy as np
import pytest

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live_view import watch as watch_module
from bluesky_cdi.live_view.watch import KEPT_EVERY_S, FrameWatch
from bluesky_cdi.protocols import Frame, RunInfo

N = 32
LONG_S = 60.0
METADATA = {
    "plan_name": "ptycho_raster",
    "geometry": {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 1e-4},
}


class Sink:
    """Keeps the names of what it was told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *_: self.told.append(name)


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def watch(sink, now):
    return FrameWatch(sink, clock=lambda: now[0])


def run(uid="raw-run", metadata=METADATA):
    return RunInfo(uid, 7, metadata, (N, N))


def frame(number):
    return Frame(number, np.array([0.0, 1e-7 * number]), np.full((N, N), 3, np.uint16))


def test_all_is_handed_on_and_seen_at_once(watch, sink, now):
    asked = watch.look(0)
    watch.start_run(run())
    assert not asked.done()
    watch.put(frame(1))
    first = asked.result(LONG_S)
    assert (first.uid, first.scan_id, first.plan, first.received) == ("raw-run", 7, "ptycho_raster", 1)
    np.testing.assert_array_equal(first.counts, frame(1).counts)
    assert first.fit is None and first.photons[0] == 3 * N * N
    now[0] = 0.5
    watch.put(frame(2))
    watch.leave_out(3, ValueError())
    watch.end_run("success", "", {})
    second = watch.look(first.number).result(LONG_S)
    assert second.received == 3 and len(second.maps) == 2 and second.ended == "success"
    assert second.rate_hz == pytest.approx(2.0)
    watch.fail(ValueError(), {})
    assert sink.told == ["start_run", "put", "put", "leave_out", "end_run", "fail"]


def test_who_knows_the_newest_waits_for_a_newer_one(watch):
    watch.start_run(run())
    watch.put(frame(1))
    first = watch.look(0).result(LONG_S)
    asked = watch.look(first.number)
    assert not asked.done()
    watch.put(frame(2))
    assert asked.result(LONG_S).received == 2


def test_a_second_who_looks_takes_the_place_of_the_first(watch):
    first, second = watch.look(0), watch.look(0)
    with pytest.raises(WorkerError, match="somebody else looks"):
        first.result(LONG_S)
    watch.start_run(run())
    watch.put(frame(1))
    assert second.result(LONG_S).received == 1


def test_the_fit_is_of_the_newest_frame_in_the_image(watch, now, make_estimate):
    """Frames 1 to 9 are in it; the newest ones are not."""
    watch.start_run(run())
    for number in range(1, 13):
        now[0] = number * KEPT_EVERY_S * 1.01
        watch.put(frame(number))
    watch.show(make_estimate(9))
    seen = watch.look(0).result(LONG_S)
    assert seen.frame_seq_num == 9 and seen.fit.shape == (N, N) and np.isfinite(seen.deviance)
    assert seen.received == 12


def test_frames_that_come_fast_are_not_all_kept_and_some_of_them_are(watch, now, make_estimate):
    watch.start_run(run())
    for number in range(1, 301):
        now[0] = number * KEPT_EVERY_S / 10
        watch.put(frame(number))
    watch.show(make_estimate(20))
    seen = watch.look(0).result(LONG_S)
    assert 10 <= seen.frame_seq_num <= 20 and seen.received == 300


def test_the_image_of_the_run_before_fits_no_frame_of_this_one(watch, make_estimate):
    watch.start_run(run("another run"))
    watch.put(frame(1))
    watch.show(make_estimate(9))
    seen = watch.look(0).result(LONG_S)
    assert seen.uid == "another run" and seen.fit is None


def test_a_run_without_geometry_is_handed_on_and_not_looked_at(watch, sink):
    asked = watch.look(0)
    watch.start_run(run(metadata={}))
    watch.put(frame(1))
    assert sink.told == ["start_run", "put"] and not asked.done()
    watch.start_run(run())
    watch.put(frame(1))
    assert asked.result(LONG_S).received == 1


def test_what_goes_wrong_here_never_reaches_the_worker(watch, sink, caplog):
    watch.start_run(run())
    watch.put(Frame(1, np.zeros(2), np.zeros((3, 3))))
    watch.put(frame(2))
    assert sink.told == ["start_run", "put", "put"]
    assert caplog.text.count("the run can't be looked at") == 1


def test_whoever_puts_frames_waits_for_no_fit(watch, make_estimate, monkeypatch):
    """The fit is held up; frames are taken all the same."""
    began, go_on = threading.Event(), threading.Event()

    def slow(*_):
        began.set()
        assert go_on.wait(LONG_S)

    monkeypatch.setattr(watch_module, "_fit", slow)
    watch.start_run(run())
    watch.put(frame(1))
    asked = watch.look(0)
    assert began.wait(LONG_S)
    watch.put(frame(2))
    assert not asked.done()
    go_on.set()
    assert asked.result(LONG_S).received == 1
