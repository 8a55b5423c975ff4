"""Runs with a stream of positions: from documents and their file to frames with positions."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import event_model
import h5py
import numpy as np
import pytest

from bluesky_cdi.callbacks import FrameAssembler, collect_frames, stamped_places
from bluesky_cdi.callbacks._fly_report import FlyReport
from bluesky_cdi.callbacks._stamped_positions import StampedPositions
from bluesky_cdi.catalog import run_documents
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import DocumentError, FrameError

N, SIDE = 12, 6
PERIOD_S, EXPOSURE_S, FIRST_S = 0.01, 0.004, 0.02
FRAMES = np.random.default_rng(0).poisson(20.0, (N, SIDE, SIDE)).astype(np.uint16)
STARTS_S = FIRST_S + PERIOD_S * np.arange(N)
TIMES_S = np.arange(0, 0.2, 1e-3)
GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}


def track_um(times_s):
    return np.stack([20.0 * times_s, 3.0 - 50.0 * times_s], axis=-1)


class Sink:
    def __init__(self):
        self.frames, self.left_out, self.errors, self.puts = {}, {}, [], []

    def start_run(self, info):
        self.info = info

    def put(self, frame):
        self.frames[frame.seq_num] = frame
        self.puts.append(frame.seq_num)

    def leave_out(self, seq_num, error):
        self.left_out[seq_num] = error

    def end_run(self, exit_status, reason, notes):
        self.notes = notes

    def fail(self, error, start):
        self.errors.append(error)


class Fly:
    """A run whose frames and samples lie in one file, announced in blocks."""

    def __init__(self, path, *, times_s=TIMES_S, offset_s=0.0, exposure=True, numbers=None, unit="s", **metadata):
        self.rows = len(times_s)
        with h5py.File(path, "w") as file:
            file["frames"], file["stamps"], file["numbers"] = FRAMES, STARTS_S, np.arange(1, N + 1)
            if numbers is not None:
                file["numbers"][...] = numbers
            file["y"], file["x"] = track_um(times_s).T
            file["times"] = (times_s + offset_s) / {"s": 1.0, "ms": 1e-3}[unit]
        run = self.bundle = event_model.compose_run(
            metadata={"motors": ["y", "x"], "scan_id": 7, "position_stream": "positions", "geometry": GEOMETRY}
            | metadata
        )

        def key(units=None, shape=()):
            spec = {
                "source": "test",
                "dtype": "array" if shape else "number",
                "shape": list(shape),
                "external": "STREAM:",
            }
            return spec | ({"units": units} if units else {})

        configuration = {"det": {"data": {"det_exposure_time": EXPOSURE_S}, "timestamps": {"det_exposure_time": 0.0}}}
        configuration["det"]["data_keys"] = {"det_exposure_time": {"source": "test", "dtype": "number", "shape": []}}
        self.streams = {
            "primary": run.compose_descriptor(
                name="primary",
                data_keys={"image": key(shape=(SIDE, SIDE)), "stamp": key("s"), "number": key()},
                object_keys={"det": ["image", "stamp", "number"]},
                configuration=configuration if exposure else {},
            ),
            "positions": run.compose_descriptor(
                name="positions",
                data_keys={"y": key("um"), "x": key("um"), "time": key(unit)},
                object_keys={"controller": ["y", "x", "time"]},
            ),
        }
        places = {"image": "frames", "stamp": "stamps", "number": "numbers", "y": "y", "x": "x", "time": "times"}
        self.resources = {
            name: run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri="file://localhost" + path.as_uri().removeprefix("file://"),
                data_key=name,
                parameters={"dataset": place},
            )
            for name, place in places.items()
        }

    @property
    def beginning(self):
        yield "start", self.bundle.start_doc
        for stream in self.streams.values():
            yield "descriptor", stream.descriptor_doc
        for resource in self.resources.values():
            yield "stream_resource", resource.stream_resource_doc

    def block(self, keys, start, stop, seq_num=None):
        stream = "positions" if "y" in keys else "primary"
        first = start + 1 if seq_num is None else seq_num
        for key in keys:
            yield (
                "stream_datum",
                self.resources[key].compose_stream_datum(
                    indices={"start": start, "stop": stop},
                    seq_nums={"start": first, "stop": first + stop - start},
                    descriptor=self.streams[stream].descriptor_doc,
                ),
            )

    def frames(self, start=0, stop=N, seq_num=None):
        return self.block(["image", "stamp", "number"], start, stop, seq_num)

    def samples(self, start=0, stop=None):
        return self.block(["y", "x", "time"], start, self.rows if stop is None else stop)

    def stop(self):
        yield "stop", self.bundle.compose_stop()


@pytest.fixture
def fly(tmp_path):
    return lambda **options: Fly(tmp_path / "fly.h5", **options)


def feed(*parts, **settings):
    sink = Sink()
    assembler = FrameAssembler(sink, time_stamps=settings)
    for part in parts:
        for name, doc in part:
            assembler(name, doc)
    return sink


def assert_positions(sink, numbers=range(1, N + 1), shift_s=EXPOSURE_S / 2):
    assert not sink.errors
    assert sorted(sink.frames) == list(numbers)
    for number, frame in sink.frames.items():
        expected = track_um(STARTS_S[number - 1] + shift_s) * 1e-6
        np.testing.assert_allclose(frame.position_m, expected, atol=1e-15)
        np.testing.assert_array_equal(frame.counts, FRAMES[number - 1])
        assert frame.exposure_s == EXPOSURE_S


def test_frames_lie_where_the_middle_of_their_exposure_was(fly):
    run = fly()
    assert_positions(feed(run.beginning, run.frames(), run.samples(), run.stop()))


def test_positions_before_frames_and_in_pieces(fly):
    run = fly()
    pieces = [run.samples(k, k + 50) for k in range(0, 200, 50)]
    assert_positions(feed(run.beginning, *pieces[:2], run.frames(0, 5), *pieces[2:], run.frames(5), run.stop()))


def test_frames_are_handed_on_as_soon_as_their_positions_come(fly):
    run = fly()
    sink = feed(run.beginning, run.frames(), run.samples(0, 100))
    # The last sample is at 99 ms, the middle of frame 8 at 92 ms.
    assert sink.puts == list(range(1, 9))


def test_a_run_whose_positions_never_come_is_told(fly):
    run = fly()
    without = [each for each in run.beginning if each[1].get("name") != "positions"]
    (error,) = feed(without, run.frames(), run.stop()).errors
    assert isinstance(error, DocumentError) and "must have the stream of positions 'positions'" in str(error)
    # One that ended before the first frame is no error.
    assert not feed(without, fly().stop()).errors


@pytest.mark.parametrize(("marks", "shift"), [("start", 0.5), ("centre", 0.0), ("end", -0.5)])
def test_what_a_stamp_marks(fly, marks, shift):
    run = fly()
    sink = feed(run.beginning, run.frames(), run.samples(), run.stop(), frame_marks=marks)
    assert_positions(sink, shift_s=shift * EXPOSURE_S)


def test_an_offset_of_the_clocks_is_taken_off(fly):
    run = fly(offset_s=1e6)
    sink = feed(run.beginning, run.frames(), run.samples(), run.stop(), offset_s=1e6)
    assert sorted(sink.frames) == list(range(1, N + 1))
    # A clock of 1e6 s resolves a tenth of a nanosecond.
    np.testing.assert_allclose(sink.frames[3].position_m, track_um(STARTS_S[2] + EXPOSURE_S / 2) * 1e-6, atol=1e-13)


def test_clocks_that_differ_are_told(fly, caplog):
    run = fly(offset_s=100.0)
    sink = feed(run.beginning, run.frames(), run.samples(), run.stop())
    assert not sink.frames and sorted(sink.left_out) == list(range(1, N + 1))
    assert isinstance(sink.left_out[1], FrameError)
    assert "it was exposed 99.978 s before the first sample" in str(sink.left_out[1])
    assert "time_stamps.offset_s" in str(sink.left_out[1])
    assert f"{N} frame(s) never got a position" in caplog.text


def test_other_units_of_time(fly):
    run = fly(unit="ms")
    sink = feed(run.beginning, run.frames(), run.samples(), run.stop())
    assert sorted(sink.frames) == list(range(1, N + 1))
    np.testing.assert_allclose(sink.frames[3].position_m, track_um(STARTS_S[2] + EXPOSURE_S / 2) * 1e-6, atol=1e-14)


def test_frames_that_run_ahead_are_told_named_and_read_when_positions_come(fly, caplog):
    run = fly(window_m=[[0.0, -1e-5], [1e-5, 1e-5]])
    first = feed(run.beginning, run.samples(0, 30), run.frames(), lead_s=0.05)
    # Frame 12 is at 132 ms; those more than 50 ms older are overdue, the first is known.
    assert sorted(first.left_out) == [2, 3, 4, 5, 6]
    assert "after the last sample of the position" in str(first.left_out[2])
    assert "wait for their positions" in caplog.text
    again = feed(run.beginning, run.samples(0, 30), run.frames(), run.samples(30), run.stop(), lead_s=0.05)
    assert_positions(again)
    assert "5 frame(s) had no position within 0.05 s, 0 of them never got one" in caplog.text


def test_frames_without_positions_are_named_once_at_the_end(fly):
    run = fly()
    sink = feed(run.beginning, run.samples(0, 60), run.frames(), run.stop())
    assert sorted([*sink.frames, *sink.left_out]) == list(range(1, N + 1))
    assert sorted(sink.frames) == [1, 2, 3, 4]


def test_lost_samples(fly):
    run = fly(times_s=TIMES_S[(TIMES_S < 0.05) | (TIMES_S > 0.09)])
    sink = feed(run.beginning, run.frames(), run.samples(), run.stop())
    assert sorted(sink.left_out) == [4, 5, 6, 7]
    assert "samples of the position are missing around it" in str(sink.left_out[5])


def test_dropped_frames_are_told_by_the_detectors_count(fly, caplog):
    numbers = np.arange(1, N + 1)
    numbers[5:] += 2
    run = fly(numbers=numbers, frame_number_key="number")
    assert_positions(feed(run.beginning, run.frames(), run.samples(), run.stop()))
    assert "2 frame(s) were dropped by the detector, by its own count: 6, 7" in caplog.text


def test_frames_taken_again_have_their_new_place(fly):
    # As after a pause: rows 0 to 3 are frames 1 to 4, and then rows 4 to 11 are frames 1 to 8.
    run = fly()
    sink = feed(
        run.beginning, run.frames(0, 4), run.samples(0, 80), run.frames(4, N, seq_num=1), run.samples(80), run.stop()
    )
    assert sorted(sink.frames) == list(range(1, 9))
    for number, frame in sink.frames.items():
        np.testing.assert_array_equal(frame.counts, FRAMES[number + 3])
        np.testing.assert_allclose(frame.position_m, track_um(STARTS_S[number + 3] + EXPOSURE_S / 2) * 1e-6, atol=1e-15)


def test_a_motion_that_blurs_is_told(fly, caplog):
    # 54 um/s for 4 ms; a sample pixel of 6 detector pixels is 0.3 um.
    run = fly()
    with caplog.at_level(logging.INFO):
        feed(run.beginning, run.frames(), run.samples(), run.stop())
    (told,) = (record for record in caplog.records if "during an exposure" in record.message)
    assert told.levelno == logging.INFO and "moved by 0.72 sample pixels" in told.message
    caplog.clear()
    run = fly(geometry=GEOMETRY | {"distance_m": 1.0})
    feed(run.beginning, run.frames(), run.samples(), run.stop())
    (told,) = (record for record in caplog.records if "during an exposure" in record.message)
    assert told.levelno == logging.WARNING and "moved by 1.4 sample pixels" in told.message


def test_the_estimate_learns_how_far_the_probe_moved_and_what_was_dropped(fly):
    numbers = np.arange(1, N + 1)
    numbers[5:] += 2
    run = fly(numbers=numbers, frame_number_key="number")
    documents = [*run.beginning, *run.frames(), *run.samples(), *run.stop()]
    notes = feed(documents).notes
    moved_m = np.hypot(20e-6, 50e-6) * EXPOSURE_S
    assert notes["dropped_frames"] == 2
    assert notes["motion"]["median_m"] == pytest.approx(moved_m) == notes["motion"]["largest_m"]
    assert notes["motion"]["position_error_m"] < 1e-12
    info, _ = collect_frames(documents)
    assert info.notes == notes


def test_what_is_known_of_a_run_is_told_before_its_end(fly):
    numbers = np.arange(1, N + 1)
    numbers[5:] += 2
    run = fly(numbers=numbers, frame_number_key="number", window_m=[[0.0, -1e-5], [1e-5, 1e-5]])
    sink = feed(run.beginning, run.frames(0, 4), run.samples())
    assert "dropped_frames" not in sink.info.notes_by_now() and "motion" in sink.info.notes_by_now()
    documents = [*run.beginning, *run.frames(), *run.samples()]
    by_now = feed(documents).info.notes_by_now()
    assert by_now["dropped_frames"] == 2
    assert by_now == feed(documents, run.stop()).notes


def test_notes_that_are_asked_for_while_frames_are_placed(fly):
    run = fly(window_m=[[0.0, -1e-5], [1e-5, 1e-5]])
    report = FlyReport(1, positions := StampedPositions(1.0), 1.0)
    sound = feed(run.beginning, run.frames(), run.samples()).info.notes_by_now()["motion"]
    # As between two lines of `StampedPositions.place`, the first frames of a run, and then others.
    positions.centre_s, positions.smear_m = [0.0, 0.01], [sound["median_m"]] * 2
    assert report.as_notes() == {}
    positions.error_m, positions.centre_s = [1e-9, 1e-9], [0.0, 0.01, 0.02]
    positions.smear_m.append(1.0)
    assert report.as_notes()["motion"]["largest_m"] == sound["median_m"]


def test_frames_are_read_again_with_their_positions(fly):
    run = fly()
    sink = feed(run.beginning, run.frames(), run.samples(), run.stop())
    again = sink.info.read_again(5)
    np.testing.assert_array_equal(again.counts, FRAMES[4])
    np.testing.assert_array_equal(again.position_m, sink.frames[5].position_m)


def test_samples_in_events(fly):
    run = fly()
    stream = run.streams["positions"]
    pages = [
        ("event_page", event_model.pack_event_page(*(
            stream.compose_event(
                data={"y": y, "x": x, "time": t}, timestamps={"y": t, "x": t, "time": t}, seq_num=k + 1
            )
            for k, (t, (y, x)) in enumerate(zip(TIMES_S, track_um(TIMES_S), strict=True))
        )))
    ]  # fmt: skip
    described = [doc for doc in run.beginning if doc[1].get("name") != "positions"]
    plain = {
        **stream.descriptor_doc,
        "data_keys": {
            key: {k: v for k, v in spec.items() if k != "external"}
            for key, spec in stream.descriptor_doc["data_keys"].items()
        },
    }
    assert_positions(feed(described, [("descriptor", plain)], run.frames(), pages, run.stop()))


@pytest.mark.parametrize(
    ("options", "settings", "match"),
    [
        ({"exposure": False}, {}, "exposure of 'image' must be stated"),
        ({}, {"position_key": "clock"}, "must have time stamps.*under 'clock'"),
        ({}, {"frame_key": "number"}, "must have time stamps"),
    ],
)
def test_what_can_not_be_told_is_an_error(fly, options, settings, match):
    run = fly(**options)
    (error,) = feed(run.beginning, run.frames(), run.samples(), run.stop(), **settings).errors
    assert isinstance(error, DocumentError)
    with pytest.raises(DocumentError, match=match):
        raise error


def test_a_column_that_is_late_is_read_with_the_next_document(fly, tmp_path):
    run = fly()
    hidden = (tmp_path / "fly.h5").rename(tmp_path / "hidden.h5")
    sink = feed(run.beginning)
    assembler = FrameAssembler(sink)
    for name, doc in [*run.beginning, *run.samples(0, 100)]:
        assembler(name, doc)
    hidden.rename(tmp_path / "fly.h5")
    for name, doc in [*run.frames(), *run.samples(100), *run.stop()]:
        assembler(name, doc)
    assert_positions(sink)


def test_as_the_catalog_gives_the_run_back(fly):
    run = fly()
    rows = {"primary": N, "positions": run.rows}

    def node(key, stream):
        doc = run.resources[key].stream_resource_doc
        assets = [SimpleNamespace(data_uri=doc["uri"])]
        source = SimpleNamespace(mimetype=doc["mimetype"], parameters=doc["parameters"], assets=assets)
        return SimpleNamespace(data_sources=lambda: [source], shape=(rows[stream],))

    streams = {
        name: SimpleNamespace(
            descriptors=[stream.descriptor_doc],
            base={key: node(key, name) for key in stream.descriptor_doc["data_keys"]},
        )
        for name, stream in run.streams.items()
    }

    class Entry(dict):
        start, metadata = run.bundle.start_doc, {}
        base = property(dict)

    found = list(run_documents(SimpleNamespace(reaching=nullcontext), Entry(streams)))
    # Positions come first, so that no frame waits for them; rows in blocks.
    assert [doc["name"] for name, doc in found if name == "descriptor"] == ["positions", "primary"]
    assert len(found) < 30
    assert_positions(feed(found, lead_s=0.0))
    # One frame alone finds its position among all samples; the stream of these may be named by the user.
    del Entry.start["position_stream"]
    Entry.start["window_m"] = [[0, 0], [1e-6, 1e-6]]
    options = {"positions": "positions", "only": 5}
    alone = list(run_documents(SimpleNamespace(reaching=nullcontext), Entry(streams), **options))
    _, (frame,) = collect_frames(alone, settings=DocumentsConfig(time_stamps={"stream": "positions"}))
    assert_positions(SimpleNamespace(errors=[], frames={5: frame}), [5])


def test_places_of_a_run_that_goes_on_without_its_frames(fly, tmp_path):
    """No frame is read; those whose position has not come are left out, as the last sample is at 99 ms."""
    run = fly()
    with h5py.File(tmp_path / "fly.h5", "a") as file:
        del file["frames"]
    parts = run.beginning, run.frames(), run.samples(0, 100)
    numbers, positions_m, centres_s = stamped_places([doc for part in parts for doc in part], DocumentsConfig())
    middles_s = STARTS_S + EXPOSURE_S / 2
    expected = track_um(middles_s[middles_s < 0.099]) * 1e-6
    assert numbers.tolist() == list(range(1, len(expected) + 1))
    np.testing.assert_allclose(positions_m, expected, atol=1e-15)
    np.testing.assert_allclose(centres_s, middles_s[middles_s < 0.099])


def test_places_of_a_run_without_a_stream_of_positions(fly):
    with pytest.raises(DocumentError, match="names none"):
        stamped_places(fly(position_stream=None).beginning, DocumentsConfig())
