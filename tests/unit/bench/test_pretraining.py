"""``bench pretraining``: scans with labels, linear models that tell what can be told, and the figure."""

import json

import numpy as np
import pytest
import torch

from bluesky_cdi import viz
from bluesky_cdi.bench.reports import tables
from bluesky_cdi.bench.suites import pretraining as module
from bluesky_cdi.bench.suites.pretraining import KINDS, draw_labelled, masked_frames, simulated_window, told
from bluesky_cdi.cli import main
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import load_frame_model, save_frame_model

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(patch=16, width=16, depth=1, heads=1, decoder_width=16, decoder_depth=1, decoder_heads=1)


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "frames.encoder.safetensors"
    save_frame_model(MaskedFrameModel(SIZE), path, {})
    return path


def test_scans_are_what_their_labels_say():
    scans = [draw_labelled(number, 5, CPU) for number in (0, 8, 3)]
    assert [scan.kind for scan in scans] == [KINDS[0], KINDS[0], KINDS[3]]
    for scan in scans:
        assert np.log10(scan.probe.abs().square().sum().item()) == pytest.approx(scan.dose, abs=1e-3)
        assert scan.data.counts.sum(dim=(1, 2)).max() < 1.1 * 10**scan.dose
    again = draw_labelled(8, 5, CPU)
    assert torch.equal(again.data.counts, scans[1].data.counts) and again.defocus == scans[1].defocus
    # The assumed probe tells the dose, and nothing of the defocus.
    first, second = (scan.probe / scan.probe.abs().square().sum().sqrt() for scan in scans[:2])
    torch.testing.assert_close(first, second)


def test_linear_models_tell_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(1)
    scan = np.repeat(np.arange(40), 6)
    dose, defocus = (rng.uniform(-1, 1, 40)[scan] for _ in range(2))
    kind = np.array(KINDS)[scan % 4]
    labels = {"scan": scan, "kind": kind, "dose": dose, "defocus": defocus}
    features = np.stack([*(kind == each for each in KINDS[:4]), dose], axis=1) + 0.01 * rng.standard_normal((240, 5))
    found = told(features, labels)
    assert found["values"] == 5 and found["kind"] == 1 and found["dose"] > 0.99 and found["defocus"] < 0.3


def test_the_figure_shows_hidden_and_predicted_frames(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIELD", 0.4)
    scans, shown, pixel_m = simulated_window(1e5, 16, CPU, frame_px=64)
    frames, objects, mask, values = masked_frames(load_frame_model(encoder), scans, shown)
    assert [bool(frame.shown.any()) for frame in frames] == [True, True, False, False]
    assert [frame.decoded is None for frame in frames] == [False, False, True, True]
    assert list(objects) == ["truth", "some physics steps", "encoder and decoder"]
    # Untrained, the decoder leaves the object as the physics steps made it, and the rates as those through vacuum.
    np.testing.assert_allclose(objects["encoder and decoder"], objects["some physics steps"], atol=1e-5)
    assert values["patches, decoder"] == pytest.approx(values["patches, probe through vacuum"])
    assert values["frames, truth"] < values["frames, physics steps"] < values["frames, vacuum"]
    assert mask.shape == objects["truth"].shape and 0.1 < mask.mean() < 0.9
    figure = viz.show_masked_frames(frames, objects, mask, pixel_m=pixel_m, title="a scan")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:4] == list(viz.masked_frames.COLUMNS) and "Phase, truth" in titles
    assert {image.origin for ax in figure.axes for image in ax.images} == {"upper"}
    viz.save_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_command(encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "masked_frames", lambda *_: ([], {}, None, {"frames, object": 0.5}))
    monkeypatch.setattr(viz, "show_masked_frames", lambda *_, **__: viz.panels.prepared(None, (1, 1)))
    figure = tmp_path / "figure.png"
    line = ["bench", "pretraining", str(encoder), "--device", "cpu", "--scans", "0", "--figure", str(figure), "--json"]
    assert main(line) == 0 and figure.exists()
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == [] and printed["predicted"] == {
        "simulated, 1e+05 photons a frame": {"frames, object": 0.5}
    }
    told_of = {
        "features": "class tokens",
        "values": 16,
        "kind": 0.5,
        "dose": 0.25,
        "defocus": -0.125,
        "ms_a_frame": 2.5,
    }
    settings = {"kinds": list(KINDS), "pass_ms_a_frame": 1.5}
    text = tables.pretraining({**printed, "settings": settings, "rows": [told_of]})
    assert "class tokens  16      0.500      0.250           -0.125             2.50" in text
    assert "takes 1.50 ms a frame" in text and "frames, object  0.5" in text
