"""The assembler: every way that frames travel gives the same frames, and no fault of the input reaches the scan."""

import itertools
import os
import re
import time
import weakref
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import event_model
import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ophyd.sim import SynAxis

from bluesky_cdi.callbacks import FrameAssembler, FrameSink, _run_feed
from bluesky_cdi.callbacks._frame_files import FrameFiles, path_of
from bluesky_cdi.callbacks._frame_maker import FrameMaker
from bluesky_cdi.callbacks._join import SeqNumJoin
from bluesky_cdi.config import DetectorConfig
from bluesky_cdi.errors import DocumentError, FrameError, NoPtychographyError, ScanFileError
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.physics.geometry import Geometry

N, H, W = 4, 6, 8
FRAMES = np.random.default_rng(0).poisson(20.0, (N, H, W)).astype(np.uint16)
POSITIONS_UM = np.random.default_rng(1).uniform(-5, 5, (N, 2))
EXPOSURE_S = 0.25
ORDERS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class RecordingSink:
    def __init__(self):
        self.calls = []
        self.infos, self.puts, self.left_out, self.ends, self.errors, self.failed = [], [], [], [], [], []

    def start_run(self, info):
        self.calls.append("start_run")
        self.infos.append(info)

    def put(self, frame):
        self.calls.append("put")
        self.puts.append(frame)

    def leave_out(self, seq_num, error):
        self.calls.append("leave_out")
        self.left_out.append((seq_num, error))

    def end_run(self, exit_status, reason, notes):
        self.calls.append("end_run")
        self.ends.append((exit_status, reason))

    def fail(self, error, start):
        self.calls.append("fail")
        self.errors.append(error)
        self.failed.append(start["uid"])

    @property
    def frames(self):
        """The last frame of each seq_num."""
        return {frame.seq_num: frame for frame in self.puts}


def write_frames(path: Path, frames=FRAMES, **options) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry/data/data", data=frames, chunks=(1, *frames.shape[1:]), **options)
        file["/entry/y"], file["/entry/x"] = POSITIONS_UM.T
    return path


class Run:
    """Composes the documents of a run by hand."""

    def __init__(self, frame=None, position=None, **metadata):
        self.bundle = event_model.compose_run(metadata={"motors": ["y", "x"], "scan_id": 7} | metadata)
        number = {"source": "test", "dtype": "number", "shape": [], "units": "um"} | (position or {})
        array = {"source": "test", "dtype": "array", "shape": [H, W]} | (frame or {})
        keys = {"det_image": array, "y": number, "x": number}
        exposure = {"det_exposure_time": {"source": "test", "dtype": "number", "shape": []}}
        self.stream = self.bundle.compose_descriptor(
            name="primary",
            data_keys=keys,
            object_keys={"det": ["det_image"], "y": ["y"], "x": ["x"]},
            configuration={
                "det": {
                    "data": {"det_exposure_time": EXPOSURE_S},
                    "timestamps": {"det_exposure_time": 0.0},
                    "data_keys": exposure,
                }
            },
        )
        self.start, self.descriptor = ("start", self.bundle.start_doc), ("descriptor", self.stream.descriptor_doc)

    def event(self, seq_num, filled=None, **data):
        stamps = dict.fromkeys(data, 0.0)
        return "event", self.stream.compose_event(data=data, timestamps=stamps, seq_num=seq_num, filled=filled or {})

    def position_event(self, seq_num, position_um):
        return self.event(seq_num, y=position_um[0], x=position_um[1])

    def resource(self, path, key="det_image", dataset="/entry/data/data"):
        return self.bundle.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri="file://localhost" + path.as_uri().removeprefix("file://"),
            data_key=key,
            parameters={"dataset": dataset},
        )

    def datum(self, resource, index, seq_num, n=1):
        return "stream_datum", resource.compose_stream_datum(
            indices={"start": index, "stop": index + n},
            seq_nums={"start": seq_num, "stop": seq_num + n},
            descriptor=self.descriptor[1],
        )

    def stop(self):
        return "stop", self.bundle.compose_stop()


def inline_documents(_path=None):
    run = Run()
    events = [run.event(k + 1, det_image=FRAMES[k], y=p[0], x=p[1]) for k, p in enumerate(POSITIONS_UM)]
    return [run.start, run.descriptor, *events, run.stop()]


def list_documents(_path=None):
    """Inline arrays as lists, shape (1, H, W), in an event page."""
    run = Run(frame={"shape": [1, H, W]})
    events = [
        run.event(k + 1, det_image=FRAMES[k][None].tolist(), y=p[0], x=p[1])[1] for k, p in enumerate(POSITIONS_UM)
    ]
    return [run.start, run.descriptor, ("event_page", event_model.pack_event_page(*events)), run.stop()]


def stream_documents(path):
    run = Run(frame={"external": "STREAM:"})
    resource = run.resource(path)
    middle = [("stream_resource", resource.stream_resource_doc)]
    for k, position in enumerate(POSITIONS_UM):
        middle += [run.datum(resource, k, k + 1), run.position_event(k + 1, position)]
    return [run.start, run.descriptor, *middle, run.stop()]


def fly_documents(path):
    """No events: frames and positions are all StreamDatum columns, in two batches."""
    external = {"external": "STREAM:"}
    run = Run(frame=external, position=external)
    places = {"det_image": "/entry/data/data", "y": "/entry/y", "x": "/entry/x"}
    resources = {key: run.resource(path, key, place) for key, place in places.items()}
    middle = [("stream_resource", resource.stream_resource_doc) for resource in resources.values()]
    for first, n in ((0, 1), (1, N - 1)):
        middle += [run.datum(resource, first, first + 1, n) for resource in resources.values()]
    return [run.start, run.descriptor, *middle, run.stop()]


def legacy_documents(path, kwargs="point_number"):
    run = Run(frame={"external": "FILESTORE:"})
    resource = run.bundle.compose_resource(
        spec="AD_HDF5", root=str(path.parent), resource_path=path.name, resource_kwargs={"frame_per_point": 1}
    )
    middle = [("resource", resource.resource_doc)]
    for k, position in enumerate(POSITIONS_UM):
        datum = resource.compose_datum(datum_kwargs={kwargs: k})
        event = run.event(k + 1, det_image=datum["datum_id"], y=position[0], x=position[1], filled={"det_image": False})
        middle += [("datum", datum), event]
    return [run.start, run.descriptor, *middle, run.stop()]


WAYS = {
    "inline": inline_documents,
    "page of lists": list_documents,
    "stream": stream_documents,
    "fly": fly_documents,
    "legacy": legacy_documents,
}


def feed(documents, **options) -> tuple[RecordingSink, FrameAssembler]:
    sink = RecordingSink()
    assembler = FrameAssembler(sink, **options)
    for name, doc in documents:
        assembler(name, doc)
    return sink, assembler


def assert_the_frames(sink, frames=FRAMES, positions_um=POSITIONS_UM):
    assert not sink.errors
    assert sorted(sink.frames) == list(range(1, len(frames) + 1))
    for seq_num, frame in sink.frames.items():
        np.testing.assert_array_equal(frame.counts, frames[seq_num - 1])
        np.testing.assert_allclose(frame.position_m, positions_um[seq_num - 1] * 1e-6, rtol=1e-12)
        assert frame.exposure_s == EXPOSURE_S
        assert frame.flux == 1.0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames") / "a scan #1 (50 %).h5")


class TestWays:
    @pytest.mark.parametrize("way", WAYS)
    def test_identical_frames(self, way, path):
        sink, assembler = feed(WAYS[way](path))
        assert_the_frames(sink)
        assert sink.calls == ["start_run", *["put"] * N, "end_run"]
        assert sink.ends == [("success", "")]
        assert assembler.error is None

    def test_run_info(self, path):
        documents = stream_documents(path)
        (info,) = feed(documents)[0].infos
        start = documents[0][1]
        assert (info.uid, info.scan_id, info.frame_shape) == (start["uid"], 7, (H, W))
        assert info.metadata["motors"] == ["y", "x"]

    def test_sink_protocol(self):
        assert isinstance(RecordingSink(), FrameSink)

    @pytest.mark.parametrize("kwargs", ["point_number", "frame", "other"])
    def test_legacy_datum_kwargs(self, path, kwargs):
        assert_the_frames(feed(legacy_documents(path, kwargs))[0])

    def test_leading_axis_in_the_file(self, tmp_path):
        assert_the_frames(feed(stream_documents(write_frames(tmp_path / "a.h5", FRAMES[:, None])))[0])

    def test_rows_that_were_announced_together_are_read_together(self, tmp_path, monkeypatch):
        reads, read_now = [], FrameFiles._read_now

        def read(self, path, resource, start, stop, part):
            reads.append((start, stop))
            return read_now(self, path, resource, start, stop, part)

        monkeypatch.setattr(FrameFiles, "_read_now", read)
        path = write_frames(tmp_path / "a.h5")
        documents = fly_documents(path)
        assert_the_frames(feed(documents)[0])
        # Two columns of positions twice, the first frame, and then all others at once.
        assert sorted(reads) == sorted([(0, 1), (0, 1), (0, 1), (1, N), (1, N), (1, N)])

    def test_of_rows_read_together_one_that_is_late_is_left_out_alone(self, tmp_path):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            data = file.create_dataset("/entry/data/data", FRAMES.shape, FRAMES.dtype, chunks=(1, H, W))
            data[[0, 1, 3]] = FRAMES[[0, 1, 3]]
            file["/entry/y"], file["/entry/x"] = POSITIONS_UM.T
        sink, _ = feed(fly_documents(path))
        assert sorted(sink.frames) == [1, 2, 4] and [number for number, _ in sink.left_out] == [3]
        np.testing.assert_array_equal(sink.frames[4].counts, FRAMES[3])

    def test_frames_say_when_their_documents_were_complete(self, path, monkeypatch):
        clock = itertools.count(100.0).__next__
        monkeypatch.setattr(_run_feed, "FrameMaker", partial(FrameMaker, clock=clock))
        sink, _ = feed(stream_documents(path))
        assert [sink.frames[k].arrived_s for k in range(1, N + 1)] == [100.0 + k for k in range(N)]

    def test_compressed(self, tmp_path):
        assert_the_frames(feed(stream_documents(write_frames(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())))[0])

    def test_files_are_closed_at_stop(self, path):
        def is_open():
            return any(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())

        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("needs /proc")
        documents = stream_documents(path)
        assembler = FrameAssembler(RecordingSink())
        for document in documents[:-1]:
            assembler(*document)
        assert is_open()
        assembler(*documents[-1])
        assert not is_open()

    def test_file_still_being_written(self, tmp_path):
        """Single writer, multiple readers: each frame is there as soon as it is announced."""
        run, sink = Run(frame={"external": "STREAM:"}), RecordingSink()
        assembler = FrameAssembler(sink)
        with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
            data = file.create_dataset("/entry/data/data", (0, H, W), "u2", maxshape=(None, H, W), chunks=(1, H, W))
            file.swmr_mode = True
            resource = run.resource(tmp_path / "a.h5")
            for document in (run.start, run.descriptor, ("stream_resource", resource.stream_resource_doc)):
                assembler(*document)
            for k in range(N):
                data.resize(k + 1, axis=0)
                data[k] = FRAMES[k]
                data.flush()
                assembler(*run.datum(resource, k, k + 1))
                assembler(*run.position_event(k + 1, POSITIONS_UM[k]))
                assert len(sink.puts) == k + 1
            assembler(*run.stop())
        assert_the_frames(sink)

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("file:///data/a.h5", "/data/a.h5"),
            ("file://localhost/data/a%20b.h5", "/data/a b.h5"),
            ("file://host.lab.org/d/50%25%23.h5", "/d/50%#.h5"),
            ("file:/data/a.h5", "/data/a.h5"),
            ("file://localhost/not encoded #1 (50 %).h5", "/not encoded #1 (50 %).h5"),
        ],
    )
    def test_uris(self, uri, expected):
        assert path_of(uri) == expected

    def test_uri_that_only_looks_encoded(self, tmp_path):
        (tmp_path / "a%20b.h5").touch()
        assert path_of(f"file://localhost{tmp_path}/a%20b.h5") == f"{tmp_path}/a%20b.h5"
        (tmp_path / "a b.h5").touch()
        assert path_of(f"file://localhost{tmp_path}/a%20b.h5") == f"{tmp_path}/a b.h5"

    def test_no_file_uri(self):
        with pytest.raises(ScanFileError, match="opened here"):
            path_of("http://localhost/a.h5")


class TestOrder:
    """Everything between start and stop may come in any order, the descriptor included."""

    @settings(ORDERS, max_examples=settings().max_examples // 4)
    @given(data=st.data())
    @pytest.mark.parametrize("way", ["inline", "stream", "fly", "legacy"])
    def test_any_order(self, way, path, data):
        start, *middle, stop = WAYS[way](path)
        sink, _ = feed([start, *data.draw(st.permutations(middle)), stop])
        assert_the_frames(sink)
        assert sink.calls[0] == "start_run" and sink.calls[-1] == "end_run"

    @settings(ORDERS, max_examples=settings().max_examples * 6 // 10)
    @given(data=st.data())
    def test_point_taken_twice(self, path, data):
        """Event 2 is taken again (slot 3 of the file); images and events keep their own order, nothing else does."""
        run = Run(frame={"external": "STREAM:"})
        resource = run.resource(path)
        images = [run.datum(resource, 0, 1), run.datum(resource, 1, 2), run.datum(resource, 2, 2)]
        events = [run.position_event(s, POSITIONS_UM[k]) for k, s in enumerate((1, 2, 2))]
        source = [("stream_resource", resource.stream_resource_doc)]
        queues = {"i": iter(images), "e": iter(events), "s": iter(source), "d": iter([run.descriptor])}
        order = data.draw(st.permutations("iiieeesd"))
        sink, _ = feed([run.start, *(next(queues[kind]) for kind in order), run.stop()])
        assert_the_frames(sink, FRAMES[[0, 2]], POSITIONS_UM[[0, 2]])

    def test_inline_point_taken_twice(self):
        run = Run()
        events = [
            run.event(s, det_image=FRAMES[k], y=POSITIONS_UM[k][0], x=POSITIONS_UM[k][1])
            for k, s in enumerate((1, 2, 2))
        ]
        sink, _ = feed([run.start, run.descriptor, *events, run.stop()])
        assert len(sink.puts) == 3
        assert_the_frames(sink, FRAMES[[0, 2]], POSITIONS_UM[[0, 2]])

    def test_legacy_point_taken_twice(self, path):
        """The file's slot and the event's number are out of step after the second taking."""
        run = Run(frame={"external": "FILESTORE:"})
        resource = run.bundle.compose_resource(
            spec="AD_HDF5", root=str(path.parent), resource_path=path.name, resource_kwargs={}
        )
        documents = [run.start, run.descriptor, ("resource", resource.resource_doc)]
        for k, seq_num in enumerate((1, 1, 2)):
            datum = resource.compose_datum(datum_kwargs={"point_number": k})
            y, x = POSITIONS_UM[k]
            event = run.event(seq_num, det_image=datum["datum_id"], y=y, x=x, filled={"det_image": False})
            documents += [("datum", datum), event]
        assert_the_frames(feed([*documents, run.stop()])[0], FRAMES[[1, 2]], POSITIONS_UM[[1, 2]])

    def test_what_came_twice_or_as_another_type_is_told_at_the_end(self, tmp_path, caplog):
        run = Run(frame={"external": "STREAM:", "dtype_numpy": "<u2"})
        resource = run.resource(write_frames(tmp_path / "a.h5", FRAMES.astype(np.uint32)))
        documents = [run.start, run.descriptor, ("stream_resource", resource.stream_resource_doc)]
        for row, seq_num in enumerate((1, 1, 2)):
            documents += [run.datum(resource, row, seq_num), run.position_event(seq_num, POSITIONS_UM[row])]
        sink, _ = feed([*documents, run.stop()])
        np.testing.assert_array_equal(sink.frames[1].counts, FRAMES[1])
        (told,) = [record.getMessage() for record in caplog.records]
        assert told == (
            "run 7: 3 frame(s) are uint32 in their file, where the descriptor states uint16; "
            "1 frame(s) came again, and the last one counts"
        )

    def test_frames_without_position_are_held_and_logged(self, path, caplog):
        documents = [d for d in stream_documents(path) if d[0] != "event"]
        sink, _ = feed(documents)
        assert sink.calls == ["start_run", *["leave_out"] * 4, "end_run"]
        assert "event 1 must have a frame and a position; its x and y never came" in str(sink.left_out[0][1])
        assert "4 frame(s) lack their frame or their position and are left out" in caplog.text

    def test_join_keeps_no_arrays(self):
        join = SeqNumJoin({"a", "b"})
        values = np.ones(3)
        array = weakref.ref(values)
        assert join.add(1, {"a": values}) is None
        assert set(join.add(1, {"b": 2.0})) == {"a", "b"}
        del values
        assert array() is None


class TestRuns:
    def test_runs_one_after_the_other(self, path):
        sink, _ = feed([*stream_documents(path), *inline_documents()])
        assert sink.calls == ["start_run", *["put"] * N, "end_run"] * 2
        assert sink.infos[0].uid != sink.infos[1].uid

    def test_interleaved_run_is_left_out(self, path, caplog):
        fed, left_out = stream_documents(path), stream_documents(path)
        documents = [pair for pairs in zip(fed, left_out, strict=True) for pair in pairs]
        sink, assembler = feed(documents)
        assert_the_frames(sink)
        assert sink.calls == ["start_run", *["put"] * N, "end_run"]
        assert f"run {left_out[0][1]['uid']} is left out" in caplog.text
        assert assembler.error is None

    def test_a_run_without_a_stop_document_ends_when_the_next_one_measures(self, path, caplog):
        """Its process died, and documents of the next session come over the same network."""
        dead, fed, after = inline_documents()[:-2], inline_documents(), stream_documents(path)
        sink, assembler = feed([*dead, *fed, *after])
        assert sink.calls == ["start_run", *["put"] * (N - 1), "end_run", *["start_run", *["put"] * N, "end_run"] * 2]
        assert sink.ends[0] == ("fail", "no stop document came before the next run")
        assert [info.uid for info in sink.infos] == [each[0][1]["uid"] for each in (dead, fed, after)]
        assert f"run {dead[0][1]['uid']} sent no stop document" in caplog.text
        assert assembler.error is None

    def test_its_late_documents_are_left_out(self, path):
        dead, fed = inline_documents(), stream_documents(path)
        sink, assembler = feed([*dead[:-2], *fed[:-1], *dead[-2:], fed[-1]])
        assert sink.calls == ["start_run", *["put"] * (N - 1), "end_run", "start_run", *["put"] * N, "end_run"]
        assert [status for status, _ in sink.ends] == ["fail", "success"]
        assert assembler.error is None

    def test_a_run_without_frames_ends_no_other(self):
        fed = inline_documents()
        run = event_model.compose_run()
        keys = {"t": {"source": "t", "dtype": "number", "shape": []}}
        stream = run.compose_descriptor(name="primary", data_keys=keys)
        inside = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("stop", run.compose_stop())]
        sink, _ = feed([*fed[:-3], *inside, *fed[-3:]])
        assert_the_frames(sink)
        assert sink.calls == ["start_run", *["put"] * N, "end_run"]

    def test_no_frames(self):
        run = event_model.compose_run()
        keys = {"t": {"source": "t", "dtype": "number", "shape": []}}
        baseline = run.compose_descriptor(name="baseline", data_keys=keys)
        documents = [("start", run.start_doc), ("descriptor", baseline.descriptor_doc), ("stop", run.compose_stop())]
        sink, assembler = feed(documents)
        assert sink.calls == []
        assert assembler.error is None

    def test_abort_reaches_the_sink(self):
        *documents, _ = inline_documents()
        stop = {"run_start": documents[0][1]["uid"], "exit_status": "abort", "reason": "by hand"}
        assert feed([*documents, ("stop", stop)])[0].ends == [("abort", "by hand")]

    def test_error_is_forgotten_at_the_next_start(self):
        bad = Run(position={"units": "steps"})
        sink, assembler = feed([bad.start, bad.descriptor, bad.stop()])
        assert isinstance(assembler.error, DocumentError)
        for document in inline_documents():
            assembler(*document)
        assert assembler.error is None
        assert sink.calls == ["fail", "start_run", *["put"] * N, "end_run"]

    def test_documents_of_unknown_runs(self):
        *_, event, stop = inline_documents()
        assert feed([event, stop])[0].calls == []


class TestReconfigured:
    """A device configured anew during a run opens a second descriptor of the same stream."""

    def second_descriptor(self, run, **changes):
        second = {**run.descriptor[1], "uid": "second"}
        det = second["configuration"]["det"]
        second["configuration"] = {"det": {**det, "data": {"det_exposure_time": 0.5}}}
        second["data_keys"] = {**second["data_keys"], **changes}
        return "descriptor", second

    def event_of_second(self, run):
        name, doc = run.event(2, det_image=FRAMES[1], y=1.0, x=2.0)
        return name, {**doc, "descriptor": "second"}

    def test_exposure_may_change(self):
        run = Run()
        first = run.event(1, det_image=FRAMES[0], y=1.0, x=2.0)
        rest = [self.second_descriptor(run), self.event_of_second(run), run.stop()]
        sink, _ = feed([run.start, run.descriptor, first, *rest])
        assert sink.calls == ["start_run", "put", "put", "end_run"]
        assert [frame.exposure_s for frame in sink.puts] == [EXPOSURE_S, 0.5]

    @pytest.mark.parametrize(
        "changes",
        [
            {"det_image": {"source": "test", "dtype": "array", "shape": [H, 2 * W]}},
            {"y": {"source": "test", "dtype": "number", "shape": [], "units": "mm"}},
        ],
    )
    def test_nothing_else_may(self, changes):
        run = Run()
        sink, _ = feed([run.start, run.descriptor, self.second_descriptor(run, **changes), run.stop()])
        with pytest.raises(DocumentError, match="only the exposure"):
            raise sink.errors[0]
        assert sink.calls == ["start_run", "fail", "end_run"]


class TestKeys:
    def test_options(self):
        run = event_model.compose_run(metadata={"motors": ["a", "b"], "scan_id": 1})
        frame = {"source": "t", "dtype": "array", "shape": [H, W]}
        number = {"source": "t", "dtype": "number", "shape": []}
        stream = run.compose_descriptor(
            name="flight",
            data_keys={
                "near": frame,
                "far": frame,
                "py": number | {"units": "mm"},
                "px": number | {"units": "nm"},
                "i0": number,
            },
        )
        data = {"near": FRAMES[0], "far": FRAMES[1], "py": 2.0, "px": 3.0, "i0": 0.5}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0))
        sink, _ = feed(
            [("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)],
            stream="flight",
            frame_key="far",
            position_keys=("py", "px"),
            monitor_key="i0",
        )
        (frame,) = sink.puts
        np.testing.assert_array_equal(frame.counts, FRAMES[1])
        np.testing.assert_allclose(frame.position_m, [2e-3, 3e-9])
        assert frame.flux == 0.5
        assert np.isnan(frame.exposure_s)

    def test_read_back_from_hints(self):
        run = event_model.compose_run(metadata={"motors": ["my", "mx"], "scan_id": 1, "monitor": "i0"})
        number = {"source": "t", "dtype": "number", "shape": [], "units": "um"}
        stream = run.compose_descriptor(
            name="primary",
            data_keys={"img": {"source": "t", "dtype": "array", "shape": [H, W]}}
            | dict.fromkeys(("my_readback", "my_setpoint", "mx_readback", "i0"), number),
            hints={"my": {"fields": ["my_readback"]}, "mx": {"fields": ["mx_readback"]}},
        )
        data = {"img": FRAMES[0], "my_readback": 1.0, "my_setpoint": 9.0, "mx_readback": 2.0, "i0": 3.0}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0))
        sink, _ = feed([("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)])
        np.testing.assert_allclose(sink.puts[0].position_m, [1e-6, 2e-6])
        assert sink.puts[0].flux == 3.0


class TestPositions:
    """Which keys are (y, x), whatever plan it was."""

    def frame_of(self, motors=(), keys=("a", "b"), read=("a", "b"), units="um", hints=None, configured=None, **more):
        """Feed one event of a run, where the keys read 1, 2, ...; its frame, and the errors."""
        metadata = {"scan_id": 1, **({"motors": list(motors)} if motors else {}), **more.pop("md", {})}
        run = event_model.compose_run(metadata=metadata)
        number = {"source": "t", "dtype": "number", "shape": []} | ({"units": units} if units else {})
        configuration = {
            key: {
                "data": {f"{key}_motor_egu": configured},
                "timestamps": {f"{key}_motor_egu": 0.0},
                "data_keys": {f"{key}_motor_egu": {"source": "t", "dtype": "string", "shape": []}},
            }
            for key in (read if configured else ())
        }
        stream = run.compose_descriptor(
            name="primary",
            data_keys={"img": {"source": "t", "dtype": "array", "shape": [H, W]}} | dict.fromkeys(read, number),
            object_keys={"det": ["img"]} | {key: [key] for key in read},
            configuration=configuration,
            hints=hints or {},
        )
        data = {"img": FRAMES[0]} | {key: float(k) for k, key in enumerate(read, 1)}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0))
        sink, _ = feed([("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)], **more)
        return sink.puts[0].position_m if sink.puts else sink

    @pytest.mark.parametrize(
        "names", [("x", "y"), ("stage_x", "stage_y"), ("zpssx", "zpssy"), ("X_fine", "Y_fine"), ("st-x", "st-y")]
    )
    def test_x_before_y_is_brought_to_their_order(self, names):
        np.testing.assert_allclose(self.frame_of(names, read=names), [2e-6, 1e-6])
        np.testing.assert_allclose(self.frame_of(names[::-1], read=names), [2e-6, 1e-6])
        np.testing.assert_allclose(self.frame_of(names, read=names, position_keys=names), [1e-6, 2e-6])

    @pytest.mark.parametrize("names", [("a", "b"), ("x1", "y2"), ("max", "may_not"), ("axis", "ayis2"), ("xx", "yy")])
    def test_other_names_come_as_y_and_x(self, names):
        np.testing.assert_allclose(self.frame_of(names, read=names), [1e-6, 2e-6])

    def test_a_plan_tells_which_motor_is_x(self):
        """bluesky's spirals name the two motors in an order that is not theirs."""
        a, b = (repr(Axis(name=name)) for name in "ab")
        for motors in (("a", "b"), ("b", "a")):
            position = self.frame_of(motors, md={"plan_args": {"x_motor": a, "y_motor": b}})
            np.testing.assert_allclose(position, [2e-6, 1e-6])

    def test_a_plan_that_names_no_motors(self):
        md = {"hints": {"dimensions": [(["b", "c"], "primary")]}}
        np.testing.assert_allclose(self.frame_of(read=("a", "b", "c"), md=md), [2e-6, 3e-6])
        hints = {"a": {"fields": ["a"]}, "c": {"fields": ["c"]}}
        np.testing.assert_allclose(self.frame_of(read=("a", "b", "c"), hints=hints), [1e-6, 3e-6])
        np.testing.assert_allclose(self.frame_of(read=("a", "b")), [1e-6, 2e-6])
        assert self.frame_of(read=("a", "b", "c")).calls == []

    def test_where_the_unit_stands(self):
        np.testing.assert_allclose(self.frame_of("ab", units="MM"), [1e-3, 2e-3])
        np.testing.assert_allclose(self.frame_of("ab", units=None, configured="Microns"), [1e-6, 2e-6])
        np.testing.assert_allclose(self.frame_of("ab", units="", configured="Microns"), [1e-6, 2e-6])
        np.testing.assert_allclose(self.frame_of("ab", units=None, position_unit="nm"), [1e-9, 2e-9])
        np.testing.assert_allclose(self.frame_of("ab", units="um", position_unit="nm"), [1e-6, 2e-6])

    @pytest.mark.parametrize("unit", [None, "steps"])
    def test_no_unit_is_told_with_the_device(self, unit):
        (error,) = self.frame_of("ab", units=unit).errors
        assert re.search(rf"'a' must state a unit of length, one of m, .* states {unit!r}", str(error))


class TestSeveralImages:
    """An event of n images is one frame, their sum, or n frames."""

    images = np.random.default_rng(2).integers(0, 60000, (N, 3, H, W)).astype(np.uint16)

    def documents(self, path=None):
        run = Run(frame={"shape": [3, H, W], **({"external": "STREAM:"} if path else {})})
        if path is None:
            events = [run.event(k + 1, det_image=self.images[k], y=p[0], x=p[1]) for k, p in enumerate(POSITIONS_UM)]
            return [run.start, run.descriptor, *events, run.stop()]
        resource = run.resource(path)
        middle = [("stream_resource", resource.stream_resource_doc)]
        for k, position in enumerate(POSITIONS_UM):
            middle += [run.datum(resource, k, k + 1), run.position_event(k + 1, position)]
        return [run.start, run.descriptor, *middle, run.stop()]

    @pytest.fixture(params=["inline", "(n, 3, H, W)", "(3 n, H, W)"])
    def three(self, request, tmp_path):
        if request.param == "inline":
            return self.documents()
        images = self.images if request.param.startswith("(n") else self.images.reshape(-1, H, W)
        return self.documents(write_frames(tmp_path / "several.h5", images))

    def test_sum(self, three):
        sink, _ = feed(three)
        assert [frame.seq_num for frame in sink.puts] == [1, 2, 3, 4]
        for frame, images, position_um in zip(sink.puts, self.images, POSITIONS_UM, strict=True):
            np.testing.assert_array_equal(frame.counts, images.astype(int).sum(axis=0))
            np.testing.assert_allclose(frame.position_m, position_um * 1e-6)
            assert frame.exposure_s == 3 * EXPOSURE_S

    def test_each(self, three):
        sink, _ = feed(three, several="each")
        assert [frame.seq_num for frame in sink.puts] == list(range(1, 3 * N + 1))
        np.testing.assert_array_equal([frame.counts for frame in sink.puts], self.images.reshape(-1, H, W))
        np.testing.assert_allclose([frame.position_m for frame in sink.puts], POSITIONS_UM.repeat(3, axis=0) * 1e-6)
        assert {frame.exposure_s for frame in sink.puts} == {EXPOSURE_S}

    @pytest.mark.parametrize(("several", "numbers"), [("sum", [2]), ("each", [4, 5, 6])])
    def test_one_bad_image_leaves_its_event_out(self, several, numbers):
        run = Run(frame={"shape": [3, H, W]})
        images = self.images.astype(float)
        images[1, 2, 0, 0] = -1
        events = [run.event(k + 1, det_image=images[k], y=0.0, x=1.0) for k in range(N)]
        sink, _ = feed([run.start, run.descriptor, *events, run.stop()], several=several)
        assert [number for number, _ in sink.left_out] == numbers
        assert "must hold counts" in str(sink.left_out[0][1])

    @pytest.mark.parametrize("settings", [{"bin": 2}, {"dark": "dark.npy"}, {"crop_px": 4, "mask_flagged": True}])
    def test_each_image_is_preprocessed_and_then_summed(self, settings, tmp_path):
        """A dark frame belongs to an image, and a flag is the largest number of an image's type."""
        images = np.random.default_rng(5).integers(20, 900, (N, 3, 8, 8)).astype(np.uint32)
        images[:, :, 3, 3] = 2**32 - 1
        bad = np.zeros((8, 8), np.uint8)
        bad[3, 3] = "mask_flagged" not in settings
        dark = np.random.default_rng(6).integers(0, 30, (8, 8))
        np.save(tmp_path / "bad.npy", bad)
        np.save(tmp_path / "dark.npy", dark)
        chosen = {**settings, "bad_pixels": str(tmp_path / "bad.npy")}
        if "dark" in settings:
            chosen["dark"] = str(tmp_path / "dark.npy")
        wanted = Preprocessing(DetectorConfig(**chosen))
        run = Run(frame={"shape": [3, 8, 8]})
        events = [run.event(k + 1, det_image=images[k], y=p[0], x=p[1]) for k, p in enumerate(POSITIONS_UM)]
        sink, _ = feed([run.start, run.descriptor, *events, run.stop()], preprocessing=wanted)
        assert not sink.left_out and [frame.seq_num for frame in sink.puts] == [1, 2, 3, 4]
        plan = wanted.plan((8, 8), images.dtype, frames=images.reshape(-1, 8, 8))
        mask = sink.infos[0].preprocessed.mask
        np.testing.assert_array_equal(mask, plan.mask)
        assert (~mask).sum() == 1
        for frame, event in zip(sink.puts, images, strict=True):
            assert frame.exposure_s == 3 * EXPOSURE_S
            np.testing.assert_array_equal(frame.counts[mask], plan.apply(event).sum(axis=0)[mask])
            assert not np.shares_memory(frame.counts, event)

    def test_one_of_one_comes_before_several(self):
        run = event_model.compose_run(metadata={"motors": ["y", "x"]})
        number = {"source": "t", "dtype": "number", "shape": [], "units": "um"}
        array = {"source": "t", "dtype": "array"}
        keys = {"rgb": array | {"shape": [3, H, W]}, "one": array | {"shape": [1, H, W]}, "y": number, "x": number}
        stream = run.compose_descriptor(name="primary", data_keys=keys)
        data = {"rgb": self.images[0], "one": FRAMES[:1], "y": 1.0, "x": 2.0}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0))
        documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)]
        np.testing.assert_array_equal(feed(documents)[0].puts[0].counts, FRAMES[0])
        summed = feed(documents, frame_key="rgb")[0].puts[0]
        np.testing.assert_array_equal(summed.counts, self.images[0].astype(int).sum(axis=0))


class TestWithoutAWindow:
    """A run that does not state its window is opened when two of its frames lie at two places."""

    geometry: ClassVar = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}
    pixel_um = Geometry(**geometry, frame_px=8).pixel_m * 1e6

    def feed_at(self, positions_px, finish=True, bad=(), **metadata):
        run = Run(frame={"shape": [8, 8]}, geometry=self.geometry, **metadata)
        events = [
            run.event(k, det_image=np.full((8, 8), -1 if k in bad else k), y=y * self.pixel_um, x=x * self.pixel_um)
            for k, (y, x) in enumerate(positions_px, 1)
        ]
        return feed([run.start, run.descriptor, *events, *([run.stop()] if finish else [])])

    def test_frames_are_held_until_the_stage_has_moved(self):
        places = [(5, 7), (5.1, 7), (5, 7.2)]
        assert self.feed_at(places, finish=False)[0].calls == []
        sink, _ = self.feed_at([*places, (5, 8), (9, 9)])
        assert sink.calls == ["start_run", *["put"] * 5, "end_run"]
        assert [frame.seq_num for frame in sink.puts] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(sink.infos[0].window_m, np.array([[5, 7], [5.1, 8]]) * self.pixel_um * 1e-6)

    def test_what_is_left_out_keeps_its_place(self):
        sink, _ = self.feed_at([(0, 0), (0, 0), (0, 3)], bad=(2,))
        assert sink.calls == ["start_run", "put", "leave_out", "put", "end_run"]

    def test_a_pattern_is_opened_with_its_first_point(self):
        """In the middle of a quarter of a frame, 2 pixels, more."""
        md = {
            "plan_pattern": "outer_product",
            "plan_pattern_module": "bluesky.plan_patterns",
            "plan_pattern_args": {
                "args": ["A(name='y')", 0, 3 * self.pixel_um, 2, "A(name='x')", 0, 5 * self.pixel_um, 2]
            },
        }
        sink, _ = self.feed_at([(10, 20)], finish=False, **md)
        assert sink.calls == ["start_run", "put"] and not sink.infos[0].grows
        window_px = np.array(sink.infos[0].window_m) / self.pixel_um * 1e6
        np.testing.assert_allclose(window_px, [[8, 18], [15, 27]])
        # Where the first point can't be used, its window is not known.
        sink, _ = self.feed_at([(10, 20), (13, 20), (10, 20)], bad=(1,), **md)
        assert sink.calls == ["start_run", "leave_out", "put", "put", "end_run"] and sink.infos[0].grows

    def test_a_run_with_its_window_is_opened_at_once(self):
        sink, _ = self.feed_at([(0, 0)], finish=False, window_m=[[0, 0], [1e-6, 1e-6]])
        assert sink.calls == ["start_run", "put"] and sink.infos[0].window_m is None

    @pytest.mark.parametrize("n", [1, 5, 40])
    def test_a_series_at_one_place_is_no_scan(self, n, caplog):
        sink, assembler = self.feed_at([(5, 7)] * n)
        (record,) = caplog.records
        assert "lie at one place, within half a sample pixel" in record.getMessage() and record.exc_info is None
        assert sink.calls == [] and assembler.error is None

    @pytest.mark.parametrize("there", [0, 2])
    def test_a_file_that_is_written_last_of_all(self, tmp_path, there):
        frames = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
        run = Run(frame={"shape": [8, 8], "external": "STREAM:"}, geometry=self.geometry)
        file = tmp_path / "a.h5"
        resource = run.resource(file)
        documents = [run.start, run.descriptor, ("stream_resource", resource.stream_resource_doc)]
        documents += [run.datum(resource, 0, 1, 4)]
        documents += [run.event(k, y=k * self.pixel_um, x=0.0) for k in (1, 2)]
        sink, assembler = feed(documents)
        assert sink.calls == []
        write_frames(file, frames[: 4 - there])
        documents = [run.event(k, y=k * self.pixel_um, x=0.0) for k in (3, 4)]
        for name, doc in [*documents, run.stop()]:
            assembler(name, doc)
        assert {number: frame.counts.max() for number, frame in sink.frames.items()} == {
            number: 64 * number - 1 for number in range(1, 5 - there)
        }
        assert [number for number, _ in sink.left_out] == [3, 4][2 - there :]
        assert (sink.calls[0], sink.calls[-1]) == ("start_run", "end_run") and sink.infos[0].grows

    def test_frames_none_of_which_can_be_used_are_told(self):
        sink, _ = self.feed_at([(0, 0), (0, 3)], bad=(1, 2))
        assert sink.calls == ["start_run", "leave_out", "leave_out", "end_run"]

    @pytest.mark.parametrize("shape", [(8, 8), (10, 12)])
    def test_what_comes_out_of_preprocessing_sets_the_pixel(self, shape):
        """Of 4 pixels in place of 8 or 10 each is larger; frames that are no squares are brought to some."""
        wanted = Preprocessing(DetectorConfig(crop_px=4), 4)
        pixel_um = Geometry(**self.geometry, frame_px=4).pixel_m * 1e6
        run = Run(frame={"shape": list(shape)}, geometry=self.geometry)
        places = [(0, 0), (0.3, 0), (0, 1), (2, 2)]
        events = [
            run.event(k, det_image=np.ones(shape, int), y=y * pixel_um, x=x * pixel_um)
            for k, (y, x) in enumerate(places, 1)
        ]
        sink, _ = feed([run.start, run.descriptor, *events[:2]], preprocessing=wanted)
        assert sink.calls == []
        sink, _ = feed([run.start, run.descriptor, *events, run.stop()], preprocessing=wanted)
        assert sink.calls == ["start_run", *["put"] * 4, "end_run"]
        info = sink.infos[0]
        assert info.frame_shape == (4, 4) and info.grows
        np.testing.assert_allclose(info.window_m, np.array([[0, 0], [0.3, 1]]) * pixel_um * 1e-6)

    def test_an_event_of_many_images_is_one_place(self):
        run = Run(frame={"shape": [20, 8, 8]}, geometry=self.geometry)
        events = [run.event(k, det_image=np.ones((20, 8, 8), int), y=0.0, x=5 * k * self.pixel_um) for k in range(1, 4)]
        sink, _ = feed([run.start, run.descriptor, *events, run.stop()], several="each")
        assert sink.calls == ["start_run", *["put"] * 60, "end_run"]

    def test_what_is_left_out_waits_with_the_frames_that_are_looked_at(self):
        wanted = Preprocessing(DetectorConfig(mask_flagged=True))
        run = Run(frame={"shape": [8, 8]}, geometry=self.geometry, window_m=[[0, 0], [1e-6, 1e-6]])
        events = [
            run.event(k, det_image=np.ones((8, 8), int), y=np.nan if k == 2 else 0.0, x=0.1 * k) for k in range(1, 5)
        ]
        sink, _ = feed([run.start, run.descriptor, *events, run.stop()], preprocessing=wanted)
        assert sink.calls == ["start_run", "put", "leave_out", "put", "put", "end_run"]

    def test_a_run_beside_one_that_is_held_is_left_out(self, caplog):
        first = Run(frame={"shape": [8, 8]}, geometry=self.geometry)
        event = first.event(1, det_image=np.ones((8, 8)), y=0.0, x=0.0)
        inside = inline_documents()
        late = first.event(2, det_image=np.ones((8, 8)), y=5.0, x=0.0)
        begun = [first.start, first.descriptor, event]
        sink, _ = feed([begun[0], inside[0], *begun[1:], *inside[1:], late, first.stop()])
        assert sink.calls == ["start_run", "put", "put", "end_run"]
        assert "another one is being fed" in caplog.text


class Axis(SynAxis):
    def __init__(self, *, units="um", **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def describe(self):
        return {key: value | ({"units": self.units} if self.units else {}) for key, value in super().describe().items()}


class Detector:
    """Reads prepared frames, inside the event or from a file."""

    parent = None

    def __init__(self, frames=FRAMES, keys=("det_image",), path=None, shape=(H, W), i0=None):
        self.name, self.frames, self.keys, self.path, self.shape, self.i0 = "det", frames, keys, path, shape, i0
        self.taken = 0
        self.resource = None

    def describe(self):
        key = {"source": "test", "dtype": "array", "shape": list(self.shape)}
        key |= {"external": "STREAM:"} if self.path else {}
        number = {"source": "test", "dtype": "number", "shape": []}
        return dict.fromkeys(self.keys, key) | ({"i0": number} if self.i0 is not None else {})

    def read(self):
        self.taken += 1
        values = {} if self.path else dict.fromkeys(self.keys, self.frames[self.taken - 1])
        values |= {"i0": self.i0} if self.i0 is not None else {}
        return {key: {"value": value, "timestamp": 0.0} for key, value in values.items()}

    def get_index(self):
        return self.taken

    def collect_asset_docs(self, index=None):
        if self.path is None:
            return
        if self.resource is None:
            self.resource = event_model.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=self.path.as_uri(),
                data_key="det_image",
                parameters={"dataset": "/entry/data/data"},
            )
            yield "stream_resource", self.resource.stream_resource_doc
        yield "stream_datum", self.resource.compose_stream_datum(indices={"start": self.taken - 1, "stop": self.taken})


def scan(detector, y, x, positions=POSITIONS_UM, md=None):
    yield from bp.list_scan([detector], y, list(positions[:, 0]), x, list(positions[:, 1]), md=md)


@pytest.fixture(scope="module")
def engine(run_engine):
    with run_engine() as engine:
        yield engine


@contextmanager
def assembled(engine, **options):
    """An assembler subscribed to the RunEngine itself, where an exception would abort the scan."""
    sink, documents = RecordingSink(), defaultdict(list)
    assembler = FrameAssembler(sink, **options)
    tokens = [engine.subscribe(assembler), engine.subscribe(lambda name, doc: documents[name].append(doc))]
    try:
        yield SimpleNamespace(sink=sink, assembler=assembler, documents=documents)
    finally:
        for token in tokens:
            engine.unsubscribe(token)


def spoilt(value, dtype=float, frame=2):
    frames = FRAMES.astype(dtype)
    frames[frame, 1, 1] = value
    return frames


def with_masked_pixel(frame=...):
    masked = np.ma.array(FRAMES, mask=np.zeros(FRAMES.shape, bool))
    masked[frame, 1, 1] = np.ma.masked
    return masked


class TestRunEngine:
    """Under a RunEngine: the frames of a good scan, and one clear error of a bad one, which is still recorded."""

    @pytest.mark.parametrize("in_file", [False, True])
    def test_good_scan(self, engine, path, in_file):
        with assembled(engine) as got:
            engine(scan(Detector(path=path if in_file else None), Axis(name="y"), Axis(name="x")))
        assert len(got.sink.puts) == N
        for frame, counts, position_um in zip(got.sink.puts, FRAMES, POSITIONS_UM, strict=True):
            np.testing.assert_array_equal(frame.counts, counts)
            np.testing.assert_allclose(frame.position_m, position_um * 1e-6)

    @pytest.mark.parametrize(
        ("options", "match", "left_out"),
        [
            ({"frames": spoilt(np.nan)}, "frame 3 must be finite; 1 of 48 pixels", [3]),
            ({"frames": with_masked_pixel(2)}, "frame 3 must be finite; 1 of 48 pixels", [3]),
            ({"frames": spoilt(np.inf)}, "frame 3 must be finite", [3]),
            ({"frames": spoilt(-2, int)}, "frame 3 must hold counts.*lowest value is -2", [3]),
            ({"frames": spoilt(-0.5)}, "not negative", [3]),
            ({"frames": np.ones((N, H, W), complex)}, "its type is complex", range(1, N + 1)),
            ({"frames": FRAMES[:, :-1]}, r"announced shape \(6, 8\); it has \(5, 8\)", range(1, N + 1)),
            ({"i0": 0.0}, "frame 1 must have a finite, positive incident flux", range(1, N + 1)),
            ({"i0": float("nan")}, "frame 1 must have a finite, positive incident flux", range(1, N + 1)),
        ],
    )
    def test_unusable_frames_are_left_out(self, engine, options, match, left_out):
        md = {"monitor": "i0"} if "i0" in options else None
        with assembled(engine) as got:
            engine(scan(Detector(**options), Axis(name="y"), Axis(name="x"), md=md))
        self.assert_left_out(got, FrameError, match, left_out)

    @pytest.mark.parametrize("frames", [spoilt(np.nan), spoilt(-1, int), with_masked_pixel()])
    def test_what_masked_pixels_hold_is_not_looked_at(self, engine, frames):
        mask = np.ones((H, W), bool)
        mask[1, 1] = False
        with assembled(engine, mask=mask) as got:
            engine(scan(Detector(frames=frames), Axis(name="y"), Axis(name="x")))
        assert [frame.seq_num for frame in got.sink.puts] == list(range(1, N + 1)) and got.assembler.error is None

    def test_two_keys_of_frames(self, engine):
        with assembled(engine) as got:
            engine(scan(Detector(keys=("a", "b")), Axis(name="y"), Axis(name="x")))
        self.assert_failed_once(got, DocumentError, "it has 2: a, b .*documents.frame_key", 0)

    @pytest.mark.parametrize(
        ("plan", "level", "why"),
        [
            (lambda: scan(Detector(keys=()), Axis(name="y"), Axis(name="x")), "INFO", "no 2-D frames; its keys: y,"),
            (lambda: bp.count([Detector(keys=(), i0=1.0)], N), "INFO", "no 2-D frames; its keys: i0"),
            (lambda: bp.count([Detector()], N), "WARNING", r"names 0 motor\(s\): none"),
            (lambda: bp.scan([Detector()], Axis(name="y"), 0, 1, N), "WARNING", r"names 1 motor\(s\): y"),
            (lambda: bp.scan([Detector(keys=())], Axis(name="y"), 0, 1, N), "INFO", "no 2-D frames"),
            (lambda: scan(Detector(), Axis(name="e", units="keV"), Axis(name="x")), "WARNING", "'e' moves in 'keV'"),
        ],
        ids=["diode map", "diode count", "count", "line", "diode line", "energy"],
    )
    def test_what_is_no_ptychography_is_nobodys_fault(self, engine, caplog, plan, level, why):
        with assembled(engine) as got, caplog.at_level("INFO", "bluesky_cdi"):
            engine(plan())
            (record,) = caplog.records
            assert record.levelname == level and record.exc_info is None
            assert re.search(rf"^run \d+ is recorded, and not reconstructed: .*{why}", record.getMessage())
            assert got.sink.calls == [] and got.assembler.error is None
            engine(scan(Detector(), Axis(name="y"), Axis(name="x")))
        assert got.sink.calls == ["start_run", *["put"] * N, "end_run"]

    @pytest.mark.parametrize("md", [{"window_m": [[0, 0], [1, 1]]}, {"reconstruction_uid": "announced"}])
    def test_unless_its_plan_means_it_to_be_reconstructed(self, engine, md):
        with assembled(engine) as got:
            engine(bp.list_scan([Detector()], Axis(name="y"), list(range(N)), md=md))
        self.assert_failed_once(got, NoPtychographyError, r"pair \(y, x\); the run names 1 motor", 0)

    def test_missing_unit(self, engine):
        y = Axis(name="y")
        y.units = None
        with assembled(engine) as got:
            engine(scan(Detector(), y, Axis(name="x")))
        self.assert_failed_once(got, DocumentError, "'y' must state a unit of length", 0)

    def test_position_not_read(self, engine):
        @bpp.run_decorator(md={"motors": ["y", "x"]})
        def plan(detector):
            for _ in range(N):
                yield from bps.trigger_and_read([detector])

        with assembled(engine) as got:
            engine(plan(Detector()))
        self.assert_failed_once(got, DocumentError, "must hold the position of 'y'.*position_keys", 0)

    def test_position_not_finite(self, engine):
        positions = POSITIONS_UM.copy()
        positions[1, 0] = np.nan
        with assembled(engine) as got:
            engine(scan(Detector(), Axis(name="y"), Axis(name="x"), positions))
        # The simulated axis, once at NaN, does not leave it for the third position.
        self.assert_left_out(got, FrameError, "frame 2 must have a finite position", [2, 3])

    def test_unknown_keys_of_the_options(self, engine, caplog):
        for options, told in (
            ({"frame_key": "eiger"}, "no 2-D frames under frame_key='eiger'; .* det_image"),
            ({"position_keys": ("y", "z")}, r"does not hold the position z \(position_keys\)"),
        ):
            caplog.clear()
            with assembled(engine, **options) as got:
                engine(scan(Detector(), Axis(name="y"), Axis(name="x")))
            assert got.sink.calls == [] and re.search(told, caplog.text)
            assert len(caplog.records) == 1
        with assembled(engine, monitor_key="i1") as got:
            engine(scan(Detector(), Axis(name="y"), Axis(name="x")))
        self.assert_failed_once(got, DocumentError, "monitor 'i1' must be a data key", 0)

    def test_truncated_file(self, engine, tmp_path, path):
        whole = path.read_bytes()
        (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
        with assembled(engine) as got:
            engine(scan(Detector(path=tmp_path / "cut.h5"), Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "can't read /entry/data/data of file:.*cut.h5", range(1, N + 1))

    def test_absent_file(self, engine, tmp_path):
        with assembled(engine) as got:
            engine(scan(Detector(path=tmp_path / "none.h5"), Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "can't read .*none.h5", range(1, N + 1))

    def test_file_of_other_layout(self, engine, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["/entry/data/frames"] = FRAMES
        with assembled(engine) as got:
            engine(scan(Detector(path=tmp_path / "a.h5"), Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "can't read /entry/data/data", range(1, N + 1))

    def test_file_with_too_few_frames(self, engine, tmp_path):
        with assembled(engine) as got:
            detector = Detector(path=write_frames(tmp_path / "a.h5", FRAMES[:2]))
            engine(scan(detector, Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "announce rows 2 to 2 of .*, which holds 2", range(3, N + 1))

    def test_file_whose_frames_are_announced_before_they_are_written(self, engine, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("/entry/data/data", FRAMES.shape, FRAMES.dtype, chunks=(1, H, W))
            data[:2] = FRAMES[:2]
        with assembled(engine) as got:
            engine(scan(Detector(path=tmp_path / "a.h5"), Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "not all are written: .* its writer did not come", range(3, N + 1))

    def test_values_outside_of_hdf5(self, engine, tmp_path):
        (tmp_path / "raw").write_bytes(FRAMES.tobytes())
        with h5py.File(tmp_path / "a.h5", "w") as file:
            storage = [(str(tmp_path / "raw"), 0, FRAMES.nbytes)]
            file.create_dataset("/entry/data/data", FRAMES.shape, FRAMES.dtype, external=storage)
        with assembled(engine) as got:
            engine(scan(Detector(path=tmp_path / "a.h5"), Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "external storage", range(1, N + 1))

    @pytest.mark.parametrize("place", ["below", "elsewhere"])
    def test_frames_of_another_file(self, engine, tmp_path, place):
        for name in ("data/below", "elsewhere"):
            (tmp_path / name).mkdir(parents=True)
        folder = tmp_path / "data"
        where = write_frames((folder if place == "below" else tmp_path) / place / "frames.h5")
        layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
        layout[:] = h5py.VirtualSource(where, "/entry/data/data", FRAMES.shape)
        with h5py.File(folder / "a.h5", "w", libver="latest") as file:
            file.create_virtual_dataset("/entry/data/data", layout)
        with assembled(engine) as got:
            engine(scan(Detector(path=folder / "a.h5"), Axis(name="y"), Axis(name="x")))
        if place == "below":
            assert not got.sink.left_out
            for k, frame in enumerate(FRAMES, 1):
                np.testing.assert_array_equal(got.sink.frames[k].counts, frame)
        else:
            self.assert_left_out(got, ScanFileError, "outside of the file's folder", range(1, N + 1))

    def test_frames_beyond_any_size(self, engine, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("/entry/data/data", (N, 10**5, 10**5), "u2", chunks=(1, 100, 100))
        with assembled(engine) as got:
            engine(scan(Detector(path=tmp_path / "a.h5"), Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, "a row of .* must have at most 1 GiB", range(1, N + 1))

    def test_several_frames_an_event(self, engine, tmp_path):
        with assembled(engine) as got:
            detector = Detector(path=write_frames(tmp_path / "a.h5", np.stack([FRAMES, FRAMES], axis=1)))
            engine(scan(detector, Axis(name="y"), Axis(name="x")))
        self.assert_left_out(got, ScanFileError, r"must have the shape \(n, H, W\)", range(1, N + 1))

    def test_position_that_is_no_number(self):
        run = Run()
        documents = [run.event(k + 1, det_image=FRAMES[k], y=None if k == 1 else 1.0, x=2.0) for k in range(3)]
        sink, assembler = feed([run.start, run.descriptor, *documents, run.stop()])
        assert [frame.seq_num for frame in sink.puts] == [1, 3]
        ((seq_num, error),) = sink.left_out
        assert seq_num == 2 and "frame 2 must have a number for its y; it has None" in str(error)
        assert assembler.error is None

    @staticmethod
    def assert_left_out(got, error, match, left_out):
        (stop,) = got.documents["stop"]
        assert stop["exit_status"] == "success"
        assert stop["num_events"]["primary"] == N
        assert got.assembler.error is None and not got.sink.errors
        assert [seq_num for seq_num, _ in got.sink.left_out] == list(left_out)
        with pytest.raises(error, match=match):
            raise got.sink.left_out[0][1]
        assert [frame.seq_num for frame in got.sink.puts] == sorted(set(range(1, N + 1)) - set(left_out))
        assert got.sink.calls[-1] == "end_run"

    @staticmethod
    def assert_failed_once(got, error, match, n_before):
        (stop,) = got.documents["stop"]
        assert stop["exit_status"] == "success"
        assert stop["num_events"]["primary"] == N
        assert len(got.sink.errors) == 1
        with pytest.raises(error, match=match):
            raise got.sink.errors[0]
        assert got.assembler.error is got.sink.errors[0]
        puts = ["put"] * n_before
        assert got.sink.calls in (["fail"], ["start_run", *puts, "fail", "end_run"])
        assert len(got.sink.puts) == n_before


def test_document_of_wrong_form():
    run = Run()
    descriptor = {key: value for key, value in run.descriptor[1].items() if key != "data_keys"}
    sink, _ = feed([run.start, ("descriptor", descriptor), run.stop()])
    with pytest.raises(DocumentError, match="a descriptor document doesn't have the form"):
        raise sink.errors[0]
    assert sink.calls == ["fail"]


def test_frame_of_another_kind_of_file(path):
    documents = stream_documents(path)
    documents = [
        (name, doc | {"mimetype": "multipart/related;type=image/tiff"} if name == "stream_resource" else doc)
        for name, doc in documents
    ]
    sink, _ = feed(documents)
    with pytest.raises(ScanFileError, match="Set the detector's file writer to HDF5"):
        raise sink.left_out[0][1]


class TestLateFiles:
    """Files that come after their documents: waiting is a call of `sleep`, during which the file comes."""

    @pytest.fixture
    def while_waiting(self, monkeypatch):
        waits = []

        def at(number, action):
            def sleep(seconds):
                waits.append(seconds)
                if len(waits) == number:
                    action()

            clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
            monkeypatch.setattr("bluesky_cdi.callbacks._frame_files.time", clock)
            return waits

        return at

    def test_file_that_comes_late(self, path, tmp_path, while_waiting):
        late = tmp_path / "late.h5"
        documents = stream_documents(late)
        waits = while_waiting(3, lambda: late.write_bytes(path.read_bytes()))
        sink, _ = feed(documents, file_timeout_s=600.0)
        assert_the_frames(sink)
        assert len(waits) == 3 and not sink.left_out

    def test_rows_that_come_late_in_a_file_that_is_written_anew(self, path, tmp_path, while_waiting):
        growing = write_frames(tmp_path / "growing.h5", FRAMES[:1])
        waits = while_waiting(2, lambda: growing.write_bytes(path.read_bytes()))
        sink, _ = feed(stream_documents(growing), file_timeout_s=600.0)
        assert_the_frames(sink)
        assert len(waits) == 2

    def test_a_slow_flush_costs_one_frame(self, path, tmp_path, monkeypatch):
        """The first frame is waited for in vain; the file comes while the second one is."""
        late, now = tmp_path / "late.h5", [0.0]

        def sleep(seconds):
            now[0] += seconds
            if now[0] > 6.0 and not late.exists():
                late.write_bytes(path.read_bytes())

        clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
        monkeypatch.setattr("bluesky_cdi.callbacks._frame_files.time", clock)
        sink, _ = feed(stream_documents(late), file_timeout_s=5.0)
        assert [seq_num for seq_num, _ in sink.left_out] == [1]
        assert [frame.seq_num for frame in sink.puts] == [2, 3, 4]
        np.testing.assert_array_equal(sink.infos[0].read_again(1).counts, FRAMES[0])

    def test_file_that_never_comes_is_waited_for_twice_the_time(self, tmp_path, monkeypatch):
        now = [0.0]
        clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
        monkeypatch.setattr("bluesky_cdi.callbacks._frame_files.time", clock)
        sink, _ = feed(stream_documents(tmp_path / "never.h5"), file_timeout_s=5.0)
        assert 5.0 + 2.5 <= now[0] < 10.0
        assert [seq_num for seq_num, _ in sink.left_out] == list(range(1, N + 1))
        assert sink.calls == ["start_run", *["leave_out"] * N, "end_run"]


class TestReadAgain:
    """What `RunInfo.read_again` gives after the run is what came."""

    @staticmethod
    def assert_same(sink, numbers):
        for number in numbers:
            again, came = sink.infos[0].read_again(number), sink.frames[number]
            np.testing.assert_array_equal(again.counts, came.counts)
            np.testing.assert_array_equal(again.position_m, came.position_m)
            assert (again.seq_num, again.exposure_s, again.flux) == (number, came.exposure_s, came.flux)

    @pytest.mark.parametrize("way", ["stream", "fly", "legacy"])
    def test_frames_in_files(self, way, path):
        sink, _ = feed(WAYS[way](path))
        self.assert_same(sink, range(1, N + 1))

    @pytest.mark.parametrize("way", ["inline", "page of lists"])
    def test_frames_in_documents_are_in_no_file(self, way):
        sink, _ = feed(WAYS[way]())
        assert [sink.infos[0].read_again(k + 1) for k in range(N)] == [None] * N

    @pytest.mark.parametrize("several", ["sum", "each"])
    def test_several_images_an_event(self, tmp_path, several):
        where = write_frames(tmp_path / "a.h5", np.stack([FRAMES, FRAMES + 1], axis=1))
        run = Run(frame={"external": "STREAM:", "shape": [2, H, W]})
        resource = run.resource(where)
        documents = [("stream_resource", resource.stream_resource_doc), run.datum(resource, 0, 1, N)]
        documents += [run.position_event(k + 1, p) for k, p in enumerate(POSITIONS_UM)]
        sink, _ = feed([run.start, run.descriptor, *documents, run.stop()], several=several)
        assert len(sink.frames) == {"sum": N, "each": 2 * N}[several]
        self.assert_same(sink, sink.frames)

    def test_what_is_wrong_with_it_is_raised(self, tmp_path):
        sink, _ = feed(stream_documents(write_frames(tmp_path / "a.h5", FRAMES[:2])))
        with pytest.raises(ScanFileError, match="which holds 2"):
            sink.infos[0].read_again(3)
        write_frames(tmp_path / "a.h5", np.full(FRAMES.shape, -1.0))
        with pytest.raises(FrameError, match="must hold counts"):
            sink.infos[0].read_again(3)
