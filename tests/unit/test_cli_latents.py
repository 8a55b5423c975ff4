"""What `bluesky-cdi latents` tells of frames' counts."""

from types import SimpleNamespace

import numpy as np
import pytest

from bluesky_cdi.cli import main
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


@pytest.mark.parametrize("groups", ["27", "0"])
def test_groups_have_a_letter_each(groups, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["latents", "result.npz", "--clusters", groups])
    assert "--clusters" in capsys.readouterr().err
    assert main(["latents", "absent.npz", "--clusters", "26"]) == 1
    assert "there is no file absent.npz" in capsys.readouterr().err
