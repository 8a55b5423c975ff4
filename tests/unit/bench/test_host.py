"""What `bench host` says, and the device that it takes memory from; the host's faults are in tests/faults."""

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bluesky_cdi.bench import without_memory
from bluesky_cdi.bench.reports import tables
from bluesky_cdi.bench.suites import host, host_documents
from bluesky_cdi.catalog.schema import PER_FRAME
from bluesky_cdi.journal import Journal

SOON_S = 120.0
ROW = {
    "events": 16, "in_catalog": 16, "same": True, "reconstructed": 16, "complete": True, "error": None, "failed": 0,
    "longest_gap_s": 0.25, "median_gap_s": 0.1, "faults": {}, "up": 0, "back_s": [],
}  # fmt: skip


def test_the_table_tells_what_was_lost():
    faulty = {
        **ROW, "in_catalog": 15, "same": False, "complete": False, "error": "no host", "failed": 2,
        "faults": {"killed": 1, "no memory": 1}, "up": 1, "back_s": [1.0, 4.0],
    }  # fmt: skip
    lines = tables.host({"rows": [ROW, faulty]}).splitlines()
    assert lines[1].split() == ["without", "faults", "16", "16", "16", "0", "0.250", "s", "0.100", "s"]
    assert "15, others" in lines[2] and "not complete: no host" in lines[2]
    assert lines[3] == (
        "faults: killed 1, no memory 1; 1 found a working reconstruction; "
        "it was there again after 2.5 s (at most 4.0 s)"
    )


def test_the_longest_collection_of_garbage_is_told():
    times = iter([0.0, 1.0, 1.5, 4.0, 4.25])
    collections = host._Collections(lambda: next(times))
    for phase in ("start", "stop") * 2:
        collections(phase, {"generation": 2})
    assert collections.longest_s == 0.5
    lines = tables.host({"rows": [{**ROW, "longest_collection_s": 0.5}]}).splitlines()
    assert lines[-1] == "longest collection of garbage: 0.500 s"


def test_memory_is_lacking_once_for_each_sign(tmp_path):
    sign = tmp_path / "no memory"
    real = SimpleNamespace(step=lambda budget_s: budget_s, frames="frames")
    faulty = without_memory._WithoutMemory(real, sign)
    assert faulty.step(1.0) == 1.0 and faulty.frames == "frames"
    sign.touch()
    with pytest.raises(torch.OutOfMemoryError, match="the benchmark says so"):
        faulty.step(1.0)
    assert faulty.step(2.0) == 2.0


def test_one_raster_alone_is_one_line():
    lines = tables.host({"rows": [{**ROW, "faults": {"killed": 1}, "up": 1, "back_s": [2.0]}]}).splitlines()
    assert len(lines) == 3 and lines[1].split()[:2] == ["with", "faults"]


def test_the_wrapper_reads_quickly_only_where_what_it_wraps_does(tmp_path):
    real = SimpleNamespace(step=lambda budget_s: None, read_quickly=lambda budget_s: budget_s)
    faulty = without_memory._QuickWithoutMemory(real, tmp_path / "no memory")
    assert faulty.read_quickly(0.5) == 0.5
    (tmp_path / "no memory").touch()
    with pytest.raises(torch.OutOfMemoryError):
        faulty.read_quickly(0.5)
    assert faulty.read_quickly(0.5) == 0.5


def test_what_a_journal_and_results_hold_is_counted(tmp_path):
    import h5py

    with contextlib.closing(Journal(tmp_path / "journal" / "raw")) as journal:
        journal("start", {"uid": "r", "time": 1.0})
        journal("descriptor", {"uid": "d", "run_start": "r"})
        for number in (1, 2, 4):
            journal("event", {"uid": f"e{number}", "descriptor": "d", "seq_num": number})
    assert host_documents._kept(tmp_path) == [1, 2, 4]
    (tmp_path / "results").mkdir()
    for name, numbers, complete in (("a", [1], False), ("b", [1, 2, 4], True)):
        with h5py.File(tmp_path / "results" / f"{name}.h5", "w") as file:
            file[f"{PER_FRAME}/frame_seq_num"] = numbers
            file.attrs["complete"] = complete
    assert host_documents._result(tmp_path / "results") == (3, True, 1)


def test_a_host_ends_with_who_started_it(tmp_path):
    line = [sys.executable, "-m", "bluesky_cdi.bench.served", "serve-reconstructor", "--port", "0"]
    with subprocess.Popen(
        [*line, "--folder", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("address")
        assert process.poll() is None
        # What happens to the pipe when the one at its other end is gone, however that ends.
        process.stdin.close()
        assert process.wait(SOON_S) == 0


def test_a_host_that_ends_before_who_started_it_ends_in_order(tmp_path):
    """The thread that waits for the end of the other one holds nothing that the interpreter's end needs."""
    line = [sys.executable, "-m", "bluesky_cdi.bench.served", "--version"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        # Until it is over nobody closes the pipe.
        assert process.wait(SOON_S) == 0
        assert process.stderr.read() == b""
