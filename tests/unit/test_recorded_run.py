"""One frame of a run, as the page shows it beside its fit."""

from types import SimpleNamespace

import numpy as np
import pytest

from bluesky_cdi import recorded_run
from bluesky_cdi.config import load_config


@pytest.mark.parametrize(
    ("settings", "only"),
    [
        ({}, 5),
        ({"documents": {"several": "each"}}, None),
        ({"detector": {"beam_centre_px": "find"}}, None),
    ],
)
def test_the_whole_run_is_read_where_one_event_does_not_tell_its_frame(monkeypatch, settings, only):
    """Of several images an event each has a number of its own, which no single event tells."""
    asked = []
    counts = np.arange(3 * 4).reshape(3, 2, 2)

    def read(*_, unfinished, only):
        asked.append((unfinished, only))
        return SimpleNamespace(numbers=(4, 5, 6), scan=SimpleNamespace(counts=counts, mask=None))

    monkeypatch.setattr(recorded_run, "recorded_run", read)
    found, valid = recorded_run.measured_frame(None, "uid", 5, load_config(overrides=settings))
    np.testing.assert_array_equal(found, counts[1])
    assert valid.all() and asked == [(True, only)]
