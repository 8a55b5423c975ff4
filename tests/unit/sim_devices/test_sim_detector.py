import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky.utils import FailedStatus, RunEngineInterrupted

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.sim_devices import (
    Beam,
    NotStagedError,
    OutOfRangeError,
    SimAreaDetector,
    SimMonitor,
    SimShutter,
    SimulatedSource,
    simulated_beamline,
)

SOON_S = 120.0
POINTS_UM = [(-0.8, -0.7), (0.0, 0.3), (0.6, -0.3), (0.8, 0.7), (-0.4, 0.6)]


@pytest.fixture
def beamline(make_config, tmp_path):
    return simulated_beamline(make_config(), tmp_path)


@pytest.fixture
def source(make_config):
    """What the beamline's detector sees, for what it should have seen."""
    return SimulatedSource(make_config())


class CountingSource:
    """Frames that tell the number of their exposure in every pixel."""

    frame_shape = (4, 6)
    frame_dtype = np.dtype("u2")

    def __init__(self):
        self.number = 0

    def expose(self, position_m, exposure_s, flux):
        self.number += 1
        return np.full(self.frame_shape, self.number, self.frame_dtype)


class FailingSource(CountingSource):
    def expose(self, position_m, exposure_s, flux):
        raise OverflowError("the sensor is on fire")


def make_detector(source, directory, **kwargs):
    return SimAreaDetector(
        name="diff", source=source, beam=Beam(), position_m=lambda: (0.0, 0.0), directory=directory, **kwargs
    )


def scan(beamline, between=lambda i, stage: (), points=POINTS_UM):
    """Measure points; `between(i, place)` gives messages after the trigger and after the detector's reading."""
    detectors = [beamline.detector, beamline.monitor, beamline.stage]

    @bpp.stage_decorator(detectors)
    @bpp.run_decorator()
    def plan():
        for i, (y, x) in enumerate(points):
            yield from bps.checkpoint()
            yield from bps.mv(beamline.stage.y, y, beamline.stage.x, x)
            yield from bps.trigger(beamline.detector, wait=True)
            yield from between(i, "triggered")
            yield from bps.create("primary")
            yield from bps.read(beamline.detector)
            yield from between(i, "read")
            yield from bps.read(beamline.monitor)
            yield from bps.read(beamline.stage)
            yield from bps.save()
            yield from bps.checkpoint()
            yield from between(i, "saved")

    return plan()


def run_with_pauses(RE, plan):
    pauses = 0
    try:
        RE(plan)
    except RunEngineInterrupted:
        pauses = 1
        while RE.state == "paused":
            try:
                RE.resume()
            except RunEngineInterrupted:
                pauses += 1
    return pauses


def assert_each_frame_belongs_to_its_position(source, docs, points=POINTS_UM):
    """The deviance of every frame is least, and about 1 per pixel that has counts, for its own position."""
    np.testing.assert_allclose(np.stack([docs.column("stage_y"), docs.column("stage_x")], 1), points, atol=1e-9)
    rates = np.array([source.expected((y * 1e-6, x * 1e-6), 0.0, 1.0) for y, x in points])
    frames = docs.frames().astype(float)
    chi2 = ((frames[:, None] - rates) ** 2 / rates).mean(axis=(2, 3))  # (frame, position)
    np.testing.assert_array_equal(chi2.argmin(axis=1), np.arange(len(points)))
    np.testing.assert_allclose(chi2.diagonal(), 1, atol=0.5)
    assert np.min(chi2 + np.diag([np.inf] * len(points))) > 5


def slots(path):
    with h5py.File(path) as file:
        assert file.attrs["complete"]
        return file["/entry/data/data"].shape[0]


def test_step_scan_writes_a_frame_for_each_event(RE, docs, beamline, source):
    RE(bp.list_scan([beamline.detector], *_columns(beamline)))
    names = [name for name, _ in docs]
    assert names[:4] == ["start", "descriptor", "stream_resource", "stream_datum"] and names[-1] == "stop"
    data_key = docs.of("descriptor")[0]["data_keys"]["diff_image"]
    assert data_key["external"] == "STREAM:" and data_key["dims"] == ["diff_row", "diff_col"]
    assert data_key["shape"] == [64, 64] and data_key["dtype_numpy"] == "<u2"
    assert docs.of("descriptor")[0]["configuration"]["diff"]["data"] == {"diff_exposure_s": 0.0}
    assert docs.of("descriptor")[0]["hints"]["diff"] == {"fields": ["diff_total"]}
    assert "diff_image" not in docs.of("event")[0]["data"]
    assert_each_frame_belongs_to_its_position(source, docs)
    np.testing.assert_array_equal(docs.frames().sum(axis=(1, 2)), docs.column("diff_total"))
    assert [slots(p) for p in docs.paths()] == [len(POINTS_UM)]


def _columns(beamline):
    y, x = zip(*POINTS_UM, strict=True)
    return beamline.stage.y, list(y), beamline.stage.x, list(x)


@pytest.mark.parametrize("place", ["triggered", "read", "saved"])
@pytest.mark.parametrize("when", [(0,), (2,), (0, 1, 4)])
def test_pause_and_resume_keep_frames_and_events_together(RE, docs, beamline, source, place, when):
    def pause(i, here):
        return bps.pause() if here == place and i in when else ()

    assert run_with_pauses(RE, scan(beamline, pause)) == len(when)
    assert [event["seq_num"] for event in docs.of("event")] == [1, 2, 3, 4, 5]
    assert [doc["indices"]["start"] for doc in docs.of("stream_datum")] == [0, 1, 2, 3, 4]
    assert_each_frame_belongs_to_its_position(source, docs)
    assert [slots(p) for p in docs.paths()] == [len(POINTS_UM)]


def test_pause_during_an_exposure(RE, docs, tmp_path, clock, beside):
    """The frame of the exposure that is cut short is in no event; the clock stands still until it was."""
    detector = make_detector(CountingSource(), tmp_path, exposure_s=0.3, clock=clock)

    def pause_once():
        clock.wait_for_alarm(0.3)
        clock.advance(0.2)
        RE.request_pause(defer=False)

    with beside(pause_once), pytest.raises(RunEngineInterrupted):
        RE(bp.count([detector], 2))

    def finish():
        # The second exposure begins at 0.2, when the run goes on, and the third when the second has ended.
        for end_s in (0.5, 0.8):
            clock.wait_for_alarm(end_s)
            clock.advance(0.3)

    with beside(finish):
        RE.resume()
    assert docs.frames()[:, 0, 0].tolist() == [2, 3]
    assert docs.column("diff_total").tolist() == [48, 72]
    assert [slots(p) for p in docs.paths()] == [2]


@pytest.mark.parametrize("place", ["triggered", "read", "saved"])
@pytest.mark.parametrize("end", ["abort", "stop", "halt"])
def test_abort_leaves_a_complete_file_with_a_frame_for_each_event(RE, docs, beamline, source, place, end):
    def pause(i, here):
        return bps.pause() if here == place and i == 2 else ()

    with pytest.raises(RunEngineInterrupted):
        RE(scan(beamline, pause))
    getattr(RE, end)()
    events = len(docs.of("event"))
    assert events == (3 if place == "saved" else 2)
    (path,) = set(docs.paths())
    assert slots(path) == events
    assert_each_frame_belongs_to_its_position(source, docs, POINTS_UM[:events])


def test_abort_during_an_exposure_does_not_wait_for_it(RE, docs, tmp_path, clock, beside):
    detector = make_detector(CountingSource(), tmp_path, exposure_s=20.0, clock=clock)

    def pause():
        clock.wait_for_alarm(20.0)
        RE.request_pause(defer=False)

    with beside(pause), pytest.raises(RunEngineInterrupted):
        RE(bp.count([detector]))
    RE.abort()
    assert clock.now_s() == 0.0 and clock.alarms_s == []
    assert docs.of("stop")[0]["exit_status"] == "abort"
    assert slots(next(tmp_path.glob("*.h5"))) == 0


def test_frames_are_readable_while_the_run_goes_on(RE, tmp_path):
    detector = make_detector(CountingSource(), tmp_path)
    seen = []

    def reader(name, doc):
        if name == "event":
            with h5py.File(next(tmp_path.glob("*.h5")), "r", libver="latest", swmr=True) as file:
                seen.append((file["/entry/data/data"][doc["seq_num"] - 1][0, 0], bool(file.attrs["complete"])))

    RE(bp.count([detector], 3), reader)
    assert seen == [(1, False), (2, False), (3, False)]


def test_second_trigger_before_reading_overwrites(tmp_path):
    detector = make_detector(CountingSource(), tmp_path)
    detector.stage()
    for _ in range(3):
        detector.trigger().wait(SOON_S)
    documents = list(detector.collect_asset_docs())
    assert [name for name, _ in documents] == ["stream_resource", "stream_datum"]
    assert list(detector.collect_asset_docs()) == []
    assert detector.get_index() == 1
    detector.unstage()
    with h5py.File(next(tmp_path.glob("*.h5"))) as file:
        assert file["/entry/data/data"][:, 0, 0].tolist() == [3]


def test_one_file_a_staging(RE, docs, tmp_path):
    detector = make_detector(CountingSource(), tmp_path / "new folder" / "frames")
    RE(bp.count([detector], 2))
    RE(bp.count([detector], 1))
    assert [slots(p) for p in docs.paths()] == [2, 1]
    assert docs.frames()[:, 0, 0].tolist() == [1, 2, 3]


def test_exposure_takes_its_time(tmp_path, clock):
    detector = make_detector(CountingSource(), tmp_path, exposure_s=0.05, clock=clock)
    detector.stage()
    status = detector.trigger()
    clock.wait_for_alarm(0.05)
    clock.advance(0.0499)
    assert not status.done and detector.total.get() == 0
    clock.advance(0.0002)
    status.wait(SOON_S)
    assert detector.total.get() == 24
    detector.unstage()


def test_a_trigger_cuts_the_exposure_before_short(tmp_path, clock):
    detector = make_detector(CountingSource(), tmp_path, exposure_s=0.05, clock=clock)
    detector.stage()
    first = detector.trigger()
    clock.wait_for_alarm(0.05)
    clock.advance(0.03)
    second = detector.trigger()
    first.wait(SOON_S)
    clock.wait_for_alarm(0.08)
    assert not second.done and detector.total.get() == 0
    clock.advance(0.05)
    second.wait(SOON_S)
    assert detector.total.get() == 48
    detector.unstage()


def test_trigger_before_staging(RE, tmp_path):
    detector = make_detector(CountingSource(), tmp_path)
    with pytest.raises(NotStagedError, match="diff must be staged before it is triggered"):
        RE(bps.trigger_and_read([detector]))
    RE(bp.count([detector]))
    with pytest.raises(NotStagedError, match="stage_wrapper"):
        detector.trigger()


def test_failure_of_an_exposure_comes_out_of_the_plan(RE, docs, tmp_path):
    detector = make_detector(FailingSource(), tmp_path)
    with pytest.raises(FailedStatus) as raised:
        RE(bp.count([detector]))
    assert isinstance(raised.value.__cause__, OverflowError)
    assert docs.of("stop")[0]["exit_status"] == "fail"
    assert slots(next(tmp_path.glob("*.h5"))) == 0


def test_refuses_bad_settings(tmp_path):
    with pytest.raises(ConfigError, match="frame_mode must be 'file' or 'inline'; got 'tiff'"):
        make_detector(CountingSource(), tmp_path, frame_mode="tiff")
    with pytest.raises(ConfigError, match=r"must have none of %\?# in its path; it is .*50%"):
        make_detector(CountingSource(), tmp_path / "50%")
    with pytest.raises(OutOfRangeError, match="diff_exposure_s must be a finite number of at least 0 s; got -1"):
        make_detector(CountingSource(), tmp_path).exposure_s.set(-1)


def test_inline_frames_are_in_the_event(RE, docs, tmp_path):
    detector = make_detector(CountingSource(), tmp_path, frame_mode="inline")
    RE(bp.count([detector], 3))
    assert docs.column("diff_image")[:, 0, 0].tolist() == [1, 2, 3]
    assert docs.column("diff_image").shape == (3, 4, 6)
    assert "external" not in docs.of("descriptor")[0]["data_keys"]["diff_image"]
    assert not docs.of("stream_resource") and not docs.of("stream_datum")
    assert not list(tmp_path.iterdir())


def test_inline_pause(RE, docs, make_config, source, tmp_path):
    beamline = simulated_beamline(make_config(frames="inline"), tmp_path)
    docs.frames = lambda: docs.column("diff_image")
    assert run_with_pauses(RE, scan(beamline, lambda i, here: bps.pause() if (i, here) == (2, "read") else ())) == 1
    assert_each_frame_belongs_to_its_position(source, docs)


def test_monitor_and_shutter_refuse():
    monitor = SimMonitor(name="i0", beam=Beam())
    assert monitor.get() == 0
    with pytest.raises(Exception, match="i0 is a monitor and can only be read"):
        monitor.put(3)
    with pytest.raises(OutOfRangeError, match="shutter takes 'open' or 'closed'; got 'ajar'"):
        SimShutter(name="shutter").set("ajar")
