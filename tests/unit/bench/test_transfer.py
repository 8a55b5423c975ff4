"""Tuning a frame encoder on few frames of a scan: what is judged is never given, and each begins as it should."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.suites import transfer as suite
from bluesky_cdi.cli import main
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import save_frame_model
from bluesky_cdi.physics.forward import Diffraction

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(
    patch=8, width=16, depth=2, heads=1, neighbours=2, decoder_width=16, decoder_depth=1, decoder_heads=1
)
OPTIONS = suite.Options(seconds=8.0)


@pytest.fixture(scope="module")
def scan():
    """48 frames along a line, of an object that looks nowhere as elsewhere."""
    rng, shape = torch.Generator().manual_seed(2), (1, 24, 130)
    index = torch.arange(16) - 8.0
    probe = (8 * torch.exp(-(index[:, None] ** 2 + index**2) / 20))[None, None].to(torch.complex64)
    obj = torch.polar(0.5 + 0.5 * torch.rand(shape, generator=rng), torch.rand(shape, generator=rng))
    corner = torch.stack([torch.full((48,), 4), 4 + 2 * torch.arange(48)], dim=1)
    data = Diffraction(torch.zeros(48, 16, 16), corner, torch.zeros(48, 2), shape)
    return probe, replace(data, counts=data.rate(data.probes(probe), data.patches(obj)).round())


@pytest.fixture(scope="module")
def instrument(scan):
    return suite.instrument_of(*scan, epochs=0)


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = MaskedFrameModel(SIZE)
    # As after some training: the last layers begin at 0.
    for layer in (model.patterns.exit, model.objects.exit):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def test_what_is_judged_lies_at_the_ends_and_is_never_given(scan, instrument):
    _, data = scan
    assert len(instrument.order) == 48 - suite.WINDOWS_JUDGED * suite.JUDGED
    assert abs(int(instrument.order[0]) - 24) <= 1
    assert set(instrument.order.tolist()) == set(range(8, 40))
    judged = torch.cat([scans.data.counts for scans in instrument.judged])
    given = data.counts[torch.from_numpy(instrument.order)]
    assert not any((each == given).all(dim=(1, 2)).any() for each in judged)


def test_a_window_is_the_same_scan_elsewhere(scan, instrument):
    """An object cut as the window is explains its frames as the whole one does."""
    probe, data = scan
    rows = np.arange(10, 16)
    cut = suite.window(instrument, rows).data
    assert cut.object_shape == (1, 20, 16 + 10 + 4)
    obj = torch.polar(torch.rand(data.object_shape), torch.rand(data.object_shape))
    whole = data[torch.from_numpy(rows)]
    expected = whole.rate(whole.probes(probe), whole.patches(obj))
    part = obj[:, 2:22, 22:52]
    torch.testing.assert_close(cut.rate(cut.probes(probe), cut.patches(part)), expected)


def test_a_tuning_begins_with_what_was_pretrained_or_with_nothing(instrument, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clock = itertools.count(0.0, 1.0).__next__
    curve = suite.tuned(model, instrument, 16, "pretrained", OPTIONS, clock)
    assert {name: curve[0][name] for name in ("patches", "frames")} == suite.judged(model, instrument)
    assert [point["seconds"] for point in curve] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert [point["steps"] for point in curve] == [0, 1, 2, 4, 8]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(OPTIONS.seed)
    fresh = suite.judged(MaskedFrameModel(SIZE), instrument)
    nothing = suite.tuned(model, instrument, 16, "nothing", OPTIONS, itertools.count(0.0, 8.0).__next__)
    assert {name: nothing[0][name] for name in fresh} == fresh != suite.judged(model, instrument)


def test_the_command_and_its_figure(scan, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite, "_scan", lambda name, options: scan)
    path = tmp_path / "some.encoder.safetensors"
    save_frame_model(model, path, {})
    chosen = ["--instruments", "simulated", "--frames", "8", "500", "--seconds", "0.05", "--epochs", "1"]
    out, figure = tmp_path / "found.json", tmp_path / "figure.png"
    assert main(["bench", "transfer", str(path), *chosen, "--out", str(out), "--figure", str(figure)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["frames"], row["start"]) for row in rows] == list(itertools.product([8, 32], suite.STARTS))
    assert "| simulated | 32 | nothing |" in capsys.readouterr().out and figure.stat().st_size > 1000


def test_recorded_scans_need_their_folder():
    with pytest.raises(BlueskyCDIError, match="name the folder of recorded scans"):
        suite._scan("star64", OPTIONS)
