"""Pretraining that begins with what another has learned."""

import json
from dataclasses import replace

import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import load_frame_model, save_frame_model
from bluesky_cdi.training.pretraining import run as module
from bluesky_cdi.training.pretraining import scans as scans_module
from bluesky_cdi.training.pretraining.run import PretrainingConfig, pretrain_frames
from bluesky_cdi.training.process_group import ProcessGroup
from bluesky_cdi.training.stream import SceneShape

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(
    patch=8, width=64, depth=2, heads=1, neighbours=2, decoder_width=64, decoder_depth=1, decoder_heads=1
)
CONFIG = PretrainingConfig(steps=1, learning_rate=1e-9, photons=(1e4, 1e5), model=SIZE)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(scans_module, "CPU_SHAPES", (SceneShape(16, 32, (5, 9), 36, 1.0),))
    monkeypatch.setattr(scans_module, "CPU_POOL", 2)
    monkeypatch.setattr(module, "validate_frames", lambda *_: {})


@pytest.fixture
def earlier(tmp_path):
    torch.manual_seed(7)
    path = tmp_path / "earlier.encoder.safetensors"
    save_frame_model(MaskedFrameModel(SIZE), path, {})
    return path


def test_it_begins_where_the_other_ended(earlier, tmp_path):
    """With next to no learning rate what was learned stays; from nothing it is something else."""
    out = tmp_path / "on.encoder.safetensors"
    record = pretrain_frames(CONFIG, ProcessGroup(CPU), out, initial=earlier)
    assert record["initial"] == "earlier.encoder" and record["initial_sha256"] == load_frame_model(earlier).sha256
    before, after = (load_frame_model(path).model.state_dict() for path in (earlier, out))
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in before)
    nothing = tmp_path / "nothing.encoder.safetensors"
    assert "initial" not in pretrain_frames(CONFIG, ProcessGroup(CPU), nothing)
    entry = load_frame_model(nothing).model.encoder.entry.weight
    assert not torch.allclose(entry, before["encoder.entry.weight"], atol=0.01)


def test_other_sizes_are_refused(earlier, tmp_path):
    config = replace(CONFIG, model=replace(SIZE, depth=4))
    with pytest.raises(WeightsError, match=r"can't go on from earlier\.encoder"):
        pretrain_frames(config, ProcessGroup(CPU), tmp_path / "other.encoder.safetensors", initial=earlier)


def test_the_command_takes_sizes_over(earlier, tmp_path, capsys):
    out = tmp_path / "mine.encoder.safetensors"
    line = ["pretrain", str(out), "--initial", str(earlier), "--steps", "1", "--device", "cpu"]
    assert main(line) == 0
    assert load_frame_model(out).model.config == SIZE
    assert json.loads(out.with_suffix(".json").read_text())["initial"] == "earlier.encoder"
    assert main([*line, "--depth", "4"]) == 1
    assert "--initial has its own sizes" in capsys.readouterr().err
