"""What `bench host` says, and the device that it takes memory from; the host's faults are in tests/faults."""

from types import SimpleNamespace

import pytest
import torch

from bluesky_cdi.bench import without_memory
from bluesky_cdi.bench.reports import tables

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


def test_memory_is_lacking_once_for_each_sign(tmp_path):
    sign = tmp_path / "no memory"
    real = SimpleNamespace(step=lambda budget_s: budget_s, frames="frames")
    faulty = without_memory._WithoutMemory(real, sign)
    assert faulty.step(1.0) == 1.0 and faulty.frames == "frames"
    sign.touch()
    with pytest.raises(torch.OutOfMemoryError, match="the benchmark says so"):
        faulty.step(1.0)
    assert faulty.step(2.0) == 2.0
