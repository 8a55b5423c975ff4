"""What ``bench rate`` measures with: documents of both forms, a file that is stitched, and what it prints."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.paced_run import Sender, _send
from bluesky_cdi.bench.reports import rate as report
from bluesky_cdi.bench.suites import file_rate, rate
from bluesky_cdi.bench.suites.throughput import Workload, simulate
from bluesky_cdi.callbacks import FrameAssembler
from bluesky_cdi.io.chunk_reader import ChunkReader
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.packing import unpack
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.reconstruction.file_stream import FileStream


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return rate.simulated(rate.config_of(rate.Options(side=4)), tmp_path_factory.mktemp("run"))


class Sink(rate._Counter):
    def __init__(self):
        super().__init__()
        self.positions = {}
        self.windows = []

    def start_run(self, info):
        self.windows.append(info.metadata["window_m"])

    def put(self, frame):
        super().put(frame)
        self.positions[frame.seq_num] = frame.position_m


@pytest.mark.parametrize(("form", "documents"), [("rows", 1 + 16 + 1), ("pages", 1 + 4 + 1)])
def test_documents_of_both_forms_give_all_frames(run, form, documents):
    sent = list(rate.replace(run, form=form).documents(80.0))
    assert len(sent) == documents and sent[-1][0] == 16
    sink = Sink()
    assembler = FrameAssembler(sink)
    for _, together in sent:
        for name, doc in together:
            assembler(name, doc)
    assert assembler.error is None and sink.frames == 16 and len(sink.windows) == 1
    np.testing.assert_allclose([sink.positions[k + 1] for k in range(16)], run.positions_m)


def test_a_process_of_its_own_sends_them(run):
    *documents, (name, times) = Sender(run, 1000.0).documents()
    assert [name for name, _ in documents[:3]] == ["start", "descriptor", "stream_resource"]
    assert (documents[-1][0], name) == ("stop", "sent")
    assert len(times) == 16 and (np.diff(times) >= 0).all()


def test_documents_are_sent_when_they_are_due_and_late_ones_at_once(run):
    now, sent = [5.0], []

    def sleep(seconds):
        now[0] += seconds

    def send(message):
        sent.append((now[0], unpack(message)))
        # The receiver holds the fifth frame up.
        now[0] += 0.35 if sent[-1][1][0] == "event" and sent[-1][1][1]["seq_num"] == 5 else 0.0

    _send(SimpleNamespace(send_bytes=send), run, 10.0, lambda: now[0], sleep)
    due = {doc["seq_num"]: at for at, (name, doc) in sent if name == "event"}
    expected = [5.1, 5.2, 5.3, 5.4, 5.5, 5.85, 5.85, 5.85, *np.arange(5.9, 6.65, 0.1)]
    assert list(due.values()) == pytest.approx(expected)
    assert sent[-1][1][1] == pytest.approx(expected)


def test_file_to_image():
    options = file_rate.Options(frames=36, frame_px=64, batch=12, seconds=0.0)
    found = file_rate.file_rate(torch.device("cpu"), options)
    each = found["file"]
    assert (each["frames"], len(each["frames_per_s"]), each["is_direct"]) == (36, 1, True)
    assert each["object_px"] == [64 + 8 * 5 + 4] * 2
    assert 0 <= each["waiting_share"] <= 1 and min(each["frames_per_s"]) > 0
    # The middle of three strips of two rows each; vacuum has more than 1.
    assert each["complex_nrmse"] < 0.9
    text = report.file(found)
    assert "36 frames of 64x64 from an HDF5 file to one stitched image of 108x108 pixels" in text
    # Which of them limits, the machine decides.
    assert each["limit"] in ("reading", "computing", "together") and "what limits: " in text
    assert set(each["stages_us_per_frame"]) == {"placing", "network", "stitching", "reading", "decompressing"}
    assert all(us > 0 for us in each["stages_us_per_frame"].values())


def test_text_of_replays():
    row = {"rate": 200.0, "form": "rows", "frames": 3000, "scan_s": 15.0, "imaged_at_end": 2900, "images": 30,
           "thinned": 5, "dropped": 0, "latency_p50_s": 0.5, "latency_p95_s": 1.25, "latency_last_s": 0.7,
           "rest_s": None, "missing": 1, "cpu_ms_per_frame": 2.125}  # fmt: skip
    found = {"machine": {"cores": 2, "devices": ["x86_64"]},
             "settings": {"frame_px": 64, "weights": "canvas-small", "threads": 1, "load": 3.5},
             "by_processor": [],
             "quality": {"full steps": {"complex_nrmse": [0.5, 0.25], "at_the_end": 0.125}},
             "assembler": {"rows": {"frames_per_s": 2500.0, "cpu_us_per_frame": 400.0}}, "replays": [row]}  # fmt: skip
    lines = report.documents(found).splitlines()
    assert lines[-1] == "| 200 | step | 3000 | 2900 | - | 0.50 | 1.25 | 5 | 0 | 1 | 30 | 2.12 |"
    assert lines[-1].count("|") == lines[-2].count("|") == lines[-3].count("|")
    assert "| full steps | 0.500 | 0.250 | 0.125 |" in lines
    assert "  step (a row a document): 2500 frames/s, 400 µs of a core a frame" in lines


def test_images_by_the_clock_of_their_thread(run):
    config = rate.config_of(rate.Options(side=4))
    found = rate._by_processor(run, rate._counts(run), 5.0, config)
    assert (found["frames"], found["imaged_at_end"], found["thinned"]) == (16, 16, 0)
    assert 1 <= found["images"] <= 16
    # A frame waits for its own image at least, and no longer than all of them took.
    assert 0 < found["latency_p50_s"] <= found["latency_p95_s"] <= 16 * found["ms_per_frame"] / 1e3


def test_batches_that_are_read_ahead_are_stitched_in_their_turn(tmp_path):
    device, work = torch.device("cpu"), Workload(64, 1, 5)
    measured = simulate(work, device)
    file_rate._write(tmp_path / "frames.h5", measured)
    net, grid = load_weights("canvas-small").unrolled_net, ObjectGrid((0.0, 0.0), (work.grid_px,) * 2, 1.0, 64)

    def stream():
        return FileStream(net, measured.probe[0].numpy(), grid, measured.centre_px.numpy(), device, 3)

    with ChunkReader(tmp_path / "frames.h5", file_rate.DATASET, 2) as reader:
        found = stream().run(reader)
    # Nine batches, of which the last is one frame; from memory, one after the other.
    one = stream()
    with torch.no_grad():
        for first in range(0, 25, 3):
            one.stitch(first, measured.counts[first : first + 3])
    torch.testing.assert_close(found, one.map.object, rtol=0, atol=0)
