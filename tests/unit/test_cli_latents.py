"""What `bluesky-cdi latents` tells of frames' counts."""

from types import SimpleNamespace

import numpy as np

from bluesky_cdi.cli.latents import _counts_of
from bluesky_cdi.config import load_config


def test_hot_pixels_are_no_counts(monkeypatch):
    counts = np.ones((2, 4, 4), np.uint16)
    counts[:, 1, 2] = 65535
    valid = counts[0] < 65535
    for mask, total in ((valid, 15), (None, 15 + 65535)):
        run = SimpleNamespace(scan=SimpleNamespace(counts=counts, mask=mask), numbers=(3, 7))
        monkeypatch.setattr("bluesky_cdi.recorded_run.recorded_run", lambda *args, run=run, **options: run)
        found = _counts_of(None, "uid", load_config())
        assert {number: int(frame.sum()) for number, frame in found.items()} == {3: total, 7: total}
