"""The controller and the detector that fly, on a clock that stands still until it is moved."""

import h5py
import numpy as np
import pytest

from bluesky_cdi.protocols import Flight
from bluesky_cdi.sim_devices import (
    Beam,
    NotStagedError,
    OutOfRangeError,
    SimFlyDetector,
    SimScanner,
    SimStage,
    SimulatedSource,
    TriggerLine,
    simulated_beamline,
)

UM = 1e-6
FLUSH_S = 0.05


class CountingSource:
    """Frames whose first pixel is their number, and whose second is where they were taken, nm."""

    frame_shape = (2, 2)
    frame_dtype = np.dtype("<u2")

    def __init__(self):
        self.number = 0

    def expose(self, position_m, exposure_s, flux):
        return self.expose_along(np.array([[position_m]]), exposure_s, np.array([flux]))[0]

    def expose_along(self, paths_m, exposure_s, flux):
        frames = np.zeros((len(paths_m), 2, 2), "<u2")
        for frame, path in zip(frames, paths_m, strict=True):
            self.number += 1
            frame[0] = self.number, round(float(path[:, 1].mean()) / 1e-9)
        return frames


def flight(n=20, period_s=0.01, exposure_s=0.004):
    """Along x at 100 um/s, from 0."""
    end_s = (n + 2) * period_s
    return Flight(
        np.array([0.0, end_s]), np.array([[0.0, 0.0], [0.0, 100 * UM * end_s]]), period_s, period_s, exposure_s, n
    )


@pytest.fixture
def flown(clock, tmp_path):
    """Devices, staged; keywords are those of controller and detector."""
    devices = []

    def make(detector=None, is_open=None, limits_um=(-100.0, 100.0), **scanner):
        line, stage = TriggerLine(), SimStage(name="stage", clock=clock, limits_um=(limits_um, limits_um))
        diff = SimFlyDetector(
            name="diff", source=CountingSource(), beam=Beam(is_open=is_open), line=line, nominal_s=0.004, clock=clock,
            position_m=lambda: stage.position_m, directory=tmp_path, exposure_s=0.1, **(detector or {}),
        )  # fmt: skip
        controller = SimScanner(name="scanner", stage=stage, line=line, directory=tmp_path, clock=clock, **scanner)
        for device in (diff, controller):
            device.stage()
            devices.append(device)
        return diff, controller, stage

    yield make
    for device in devices:
        device.unstage()


def fly(diff, controller, planned, clock=None, seconds=None):
    for device in (diff, controller):
        device.prepare(planned).wait(30)
    diff.kickoff().wait(30)
    controller.kickoff().wait(30)
    done = diff.complete(), controller.complete()
    if clock is not None:
        clock.advance(planned.duration_s + 2 * FLUSH_S if seconds is None else seconds)
    return done


def read(device):
    """The columns that a device announced, by data key."""
    docs = list(device.collect_asset_docs())
    paths = {doc["uid"]: doc for name, doc in docs if name == "stream_resource"}
    columns = {}
    for name, doc in docs:
        if name == "stream_datum":
            resource = paths[doc["stream_resource"]]
            path = resource["uri"].removeprefix("file://localhost")
            with h5py.File(path, libver="latest", swmr=True) as file:
                rows = slice(doc["indices"]["start"], doc["indices"]["stop"])
                columns[resource["data_key"]] = file[resource["parameters"]["dataset"]][rows]
    return columns


def test_frames_come_at_their_times_with_the_stage_where_they_say(flown, clock):
    diff, controller, stage = flown()
    clock.advance(3.0)
    planned = flight()
    frames_done, samples_done = fly(diff, controller, planned, clock)
    assert frames_done.success and samples_done.success
    frames, samples = read(diff), read(controller)
    np.testing.assert_array_equal(frames["diff_number"], np.arange(1, 21))
    np.testing.assert_allclose(frames["diff_timestamp"], 3.0 + 0.01 * np.arange(1, 21), rtol=1e-12)
    # The middle of the exposure, in nanometres: 100 um/s at 2 ms after its beginning.
    np.testing.assert_array_equal(frames["diff_image"][:, 0, 1], 1000 * np.arange(1, 21) + 200)
    np.testing.assert_array_equal(frames["i0"], 1e6)
    np.testing.assert_allclose(samples["stage_x"], 100 * (samples["scanner_timestamp"] - 3.0), atol=1e-9)
    assert np.diff(samples["scanner_timestamp"]) == pytest.approx(1e-4)
    assert stage.x.position == pytest.approx(22.0)


def test_documents_tell_of_what_is_written_and_no_more(flown, clock):
    diff, controller, _ = flown()
    fly(diff, controller, flight(), clock, seconds=0.1001)
    # Exposures 1 to 9 have ended after 0.1 s.
    assert diff.get_index() == 9 and not diff.complete().done
    assert len(read(diff)["diff_image"]) == 9
    assert list(diff.collect_asset_docs()) == []
    clock.advance(1.0)
    kinds = [name for name, _ in diff.collect_asset_docs()]
    assert kinds == ["stream_datum"] * 4 and diff.get_index() == 20 and diff.complete().success
    assert [name for name, _ in controller.collect_asset_docs(index=50)] == ["stream_resource"] * 3 + [
        "stream_datum"
    ] * 3


def test_the_file_is_compressed_in_chunks_of_a_frame_and_open_to_readers(flown, clock, tmp_path):
    diff, controller, _ = flown()
    fly(diff, controller, flight(), clock, seconds=0.11)
    (path,) = tmp_path.glob("diff_*.h5")
    with h5py.File(path, libver="latest", swmr=True) as file:
        data = file["/entry/data/data"]
        assert data.chunks == (1, 2, 2) and data.shape[0] == 9
        assert data._filters.keys() == {"32008"}  # bitshuffle
        assert not file.attrs["complete"]
    for device in (diff, controller):
        device.unstage()
    with h5py.File(path) as file:
        assert file.attrs["complete"]


def test_dropped_frames_late_and_lost_samples_and_another_clock(flown, clock):
    diff, controller, _ = flown(
        {"dropped": (3, 4)}, encoder_hz=1e3, clock_offset_s=50.0, latency_s=0.1, lost_s=[(0.05, 0.08)]
    )
    frames_done, samples_done = fly(diff, controller, flight(), clock)
    assert frames_done.success and not samples_done.done
    assert read(diff)["diff_number"].tolist() == [1, 2, *range(5, 21)]
    clock.advance(0.2)
    assert samples_done.success
    times = read(controller)["scanner_timestamp"]
    assert times[0] == 50.0
    expected = np.arange(0, 0.2205, 1e-3)
    np.testing.assert_allclose(times - 50.0, expected[(expected < 0.0495) | (expected > 0.0805)], atol=1e-9)


def test_behind_a_closed_shutter_frames_are_dark(flown, clock):
    is_open = [True]
    diff, controller, _ = flown(is_open=lambda: is_open[0])
    fly(diff, controller, flight(), clock, seconds=0.1001)
    is_open[0] = False
    clock.advance(1.0)
    frames = read(diff)
    assert (frames["i0"][:9] > 0).all() and (frames["i0"][9:] == 0).all()
    assert not frames["diff_image"][9:].any()


def test_a_pause_ends_the_flight_and_it_can_be_flown_again(flown, clock):
    diff, controller, stage = flown()
    planned = flight()
    done = fly(diff, controller, planned, clock, seconds=0.1)
    for device in (controller, diff):
        device.pause()
    assert all(status.success for status in done)
    assert stage.x.position == pytest.approx(10.0)
    clock.advance(1.0)
    assert diff.get_index() == 9 and not stage.x.moving
    clock.advance(1.0)
    # On the way to the flight's beginning the stage needs time, too.
    status = controller.prepare(planned)
    clock.advance(1.0)
    status.wait(30)
    diff.prepare(planned).wait(30)
    diff.kickoff()
    controller.kickoff()
    clock.advance(1.0)
    assert diff.complete().success and controller.complete().success
    assert diff.get_index() == 29
    np.testing.assert_array_equal(read(diff)["diff_image"][:, 0, 1], 1000 * np.arange(1, 21) + 200)


def test_a_stop_fails_and_a_fault_of_the_file_is_told(flown, clock):
    diff, controller, _ = flown()
    done = fly(diff, controller, flight(), clock, seconds=0.1)
    controller.stop()
    diff.stop()
    assert [type(status.exception()).__name__ for status in done] == ["UnknownStatusFailure"] * 2
    diff._flight_file.close()
    planned = flight()
    clock.advance(1.0)
    diff.prepare(planned).wait(30)
    diff.kickoff()
    diff._set_off(clock.now_s())
    clock.advance(1.0)
    assert diff.complete().done and not diff.complete().success
    diff._flight_file = None


def test_what_leaves_the_limits_is_refused_before_anything_moves(flown):
    _, controller, stage = flown(limits_um=(-1.0, 20.0))
    with pytest.raises(OutOfRangeError, match="between -1 and 20 um"):
        controller.prepare(flight())
    with pytest.raises(OutOfRangeError):
        stage.follow(flight(), 0.0)
    assert not stage.x.moving and not stage.y.moving


def test_what_must_come_first(flown):
    diff, controller, _ = flown()
    for device in (diff, controller):
        with pytest.raises(NotStagedError):
            device.kickoff()
        with pytest.raises(NotStagedError):
            device.complete()
    diff.unstage()
    with pytest.raises(NotStagedError):
        diff.prepare(flight())


def test_a_step_scan_follows_in_the_same_session(flown, clock):
    diff, controller, _ = flown()
    fly(diff, controller, flight(), clock)
    assert diff.exposure_s.get() == 0.004
    diff.unstage()
    assert diff.exposure_s.get() == 0.1
    diff.stage()
    status = diff.trigger()
    clock.wait_for_alarm(clock.now_s() + 0.1)
    clock.advance(0.1)
    status.wait(30)
    docs = list(diff.collect_asset_docs())
    assert [name for name, _ in docs] == ["stream_resource", "stream_datum"]
    assert docs[1][1]["indices"] == {"start": 0, "stop": 1} and diff.get_index() == 1


def test_frames_on_the_way_are_means_over_it(make_config):
    source = SimulatedSource(make_config(exposure_s=0.01, photons=1e9, saturation=2**31))
    places = np.array([[0.0, 0.0], [0.0, 60e-9], [0.0, 120e-9]])
    (frame,) = source.expose_along(places[None], 0.01, np.array([1.0]))
    mean = np.mean([source.expected(tuple(place), 0.01, 1.0) for place in places], axis=0)
    bright = mean > 1e3
    np.testing.assert_allclose(frame[bright], mean[bright], atol=6 * np.sqrt(mean[bright].max()), rtol=6e-2)
    assert abs(frame.sum() / mean.sum() - 1) < 1e-3
    one = source.expected((0.0, 60e-9), 0.01, 1.0)
    assert np.abs(one - mean).sum() > 10 * np.abs(frame - mean).sum()
    assert source.truth.positions_m[-1] == pytest.approx((0.0, 60e-9))


def test_the_simulated_beamline_has_them(make_config, tmp_path, clock):
    beamline = simulated_beamline(make_config(exposure_s=0.001), tmp_path, clock)
    assert isinstance(beamline.detector, SimFlyDetector) and beamline.scanner.name == "scanner"
    described = beamline.detector.describe_collect()
    assert set(described) == {"diff_image", "diff_timestamp", "diff_number", "i0"}
    assert described["diff_image"] == {**beamline.detector.describe()["diff_image"]}
    assert beamline.detector.frame_number_key == "diff_number"
