"""What `bench memory --scan` says of a course, and that it sends a scan no faster than its images keep up."""

import threading

import pytest

from bluesky_cdi.bench.reports import tables
from bluesky_cdi.bench.suites import scan_memory


def test_growth_is_that_after_the_beginning():
    course = [(100 * k, 500.0 if k > 3 else 100.0 * k) for k in range(1, 11)]
    course[-1] = (1000, 550.0)
    found = scan_memory._summary(course, 1000)
    # 900 to 1000 frames against 400 and 500.
    assert found == {"from_mib": 500.0, "least_mib": 500.0, "most_mib": 550.0, "growth": pytest.approx(0.05)}


def test_a_scan_is_sent_and_looked_at(monkeypatch):
    options = scan_memory.Options(side=5, memory_mb=1)
    config = scan_memory._config(options)
    made = config.reconstructor.model_copy(update={"name": "rpie", "refine_iterations": 1})
    probe = config.probe.model_copy(update={"trust": True})
    monkeypatch.setattr(
        scan_memory, "_config", lambda _: config.model_copy(update={"reconstructor": made, "probe": probe})
    )
    monkeypatch.setattr(scan_memory, "WAITING", 8)
    before = set(threading.enumerate())
    found = scan_memory.scan_memory(options)
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("bluesky_cdi")]
    scan = found["scan"]
    assert (scan["frames"], scan["reconstructed"]) == (25, 25)
    assert [sent for sent, _ in scan["course"]] == list(range(1, 26)) and all(mib > 1 for _, mib in scan["course"])
    text = tables.scan_memory(found)
    assert text.startswith("25 frames, 0.00694 a second for 3600 s, in ") and "25 in the image" in text
