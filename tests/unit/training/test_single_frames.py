"""Single frames as scans of one frame: what is drawn, what is hidden, and what the losses look at."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import load_frame_model
from bluesky_cdi.physics.likelihood import expected_deviance
from bluesky_cdi.training.pretraining import single_frames as module
from bluesky_cdi.training.pretraining.losses import hidden_deviance, hidden_pixels, masked_losses, reduced
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.run import PretrainingConfig, pretrain_frames
from bluesky_cdi.training.pretraining.single_frames import (
    SingleFrameSource,
    as_scans,
    box_of_light,
    exit_waves,
    measured_frames,
)
from bluesky_cdi.training.process_group import ProcessGroup

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(
    patch=8, width=16, depth=1, heads=1, neighbours=1, decoder_width=16, decoder_depth=1, decoder_heads=1
)


@pytest.fixture(autouse=True)
def small_frames(monkeypatch):
    monkeypatch.setattr(module, "SIZE", 32)
    monkeypatch.setattr(module, "CPU_FRAMES", 4)
    monkeypatch.setattr(module, "POOL_STEPS", 2)


def everywhere(scans):
    return torch.ones_like(scans.data.counts, dtype=torch.bool)


def test_a_batch_is_a_function_of_seed_process_and_step():
    one, other = SingleFrameSource(CPU, 3), SingleFrameSource(CPU, 3)
    first = one.batch(0)[0]
    for step in (1, 2):
        one.batch(step)
    later, again = one.batch(3)[0], other.batch(3)[0]
    assert torch.equal(later.data.counts, again.data.counts) and torch.equal(later.probe, again.probe)
    assert torch.equal(other.batch(0)[0].data.counts, first.data.counts)
    assert not torch.equal(later.data.counts, first.data.counts)
    assert not torch.equal(SingleFrameSource(CPU, 3, rank=1).batch(0)[0].data.counts, first.data.counts)


def test_samples_lie_inside_their_boxes_and_explain_their_frames():
    scans, _ = SingleFrameSource(CPU, 5, (1e6, 1.01e6), frames=12).batch(0)
    assert scans.single
    light, size = scans.probe[:, 0].abs(), 32
    assert not (scans.truth.abs() * (light == 0)).any()
    assert torch.allclose(scans.probe.abs().square().sum(dim=(1, 2, 3)), torch.tensor(1e6), rtol=0.02)
    # Those that were expected: of the counted ones some will be hidden.
    counted = scans.data.counts.sum(dim=(1, 2))
    assert (scans.probe.abs().square().sum(dim=(1, 2, 3)) / counted - 1).abs().min() > 1e-5
    # The box is about the middle, and less than half as wide as the frame, which so is oversampled.
    for dim in (1, 2):
        there = torch.nonzero((light > 0).any(dim=dim))
        for frame in range(12):
            lines = there[there[:, 0] == frame, 1]
            assert lines.min() + lines.max() == size and len(lines) < 0.6 * size
    rate = scans.data.rate(scans.data.probes(scans.probe), scans.data.patches(scans.truth))
    found = hidden_deviance(scans.truth, scans, everywhere(scans)).mean()
    assert found == pytest.approx(expected_deviance(rate).mean().item(), rel=0.05)


def test_light_in_a_box_is_not_its_own_twin():
    box = torch.zeros(1, 16, 16, dtype=torch.bool)
    box[0, 5:12, 6:11] = True
    light = box_of_light(box, torch.tensor([1e4]))
    assert light.abs().square().sum().item() == pytest.approx(1e4, rel=1e-5)
    assert torch.equal(light[0, 0].abs() > 0, box[0])
    twin = torch.roll(light.flip(-1, -2), (1, 1), dims=(-2, -1)).conj()
    assert (twin - light).abs().max() > 0.3 * light.abs().max()


def test_no_hidden_count_reaches_what_is_predicted():
    scans, draws = SingleFrameSource(CPU, 3).batch(0)
    shown = draw_shown(scans, 8, draws, share=0.5)
    assert len(shown.frames) == 4 and shown.patches.shape[1] == 8
    hidden = hidden_pixels(shown, scans.data, 8)
    other = replace(scans.data, counts=torch.where(hidden, 1e4, scans.data.counts))
    torch.manual_seed(1)
    model = MaskedFrameModel(SIZE)
    for decoder in (model.patterns, model.objects):
        torch.nn.init.normal_(decoder.exit.weight, std=0.1)
    one, same = (model(scans.probe, data, shown) for data in (scans.data, other))
    assert torch.equal(one.object, same.object) and torch.equal(one.log_rate, same.log_rate)
    seen = torch.where(hidden, scans.data.counts, 1e4)
    assert not torch.equal(model(scans.probe, replace(scans.data, counts=seen), shown).object, one.object)


def test_the_object_of_a_single_frame_is_judged_by_all_pixels():
    scans, draws = SingleFrameSource(CPU, 3).batch(0)
    shown = draw_shown(scans, 8, draws, share=0.5)
    torch.manual_seed(1)
    found = MaskedFrameModel(SIZE)(scans.probe, scans.data, shown)
    losses = masked_losses(found, scans, 8)
    wanted = hidden_deviance(found.object, scans, everywhere(scans)).log1p().mean()
    assert losses["frames"].item() == pytest.approx(wanted.item(), rel=1e-5)
    seen = ~hidden_pixels(shown, scans.data, 8)
    after = hidden_deviance(reduced(found.object, scans, seen, 5), scans, everywhere(scans)).log1p().mean()
    assert losses["reduced"].item() == pytest.approx(after.item(), rel=1e-5)


def test_error_reduction_lowers_the_misfit_and_stays_in_the_box():
    scans, _ = SingleFrameSource(CPU, 3, (1e6, 1.01e6)).batch(0)
    start, all_pixels = torch.ones_like(scans.truth), everywhere(scans)
    before = hidden_deviance(start, scans, all_pixels)
    once, often = (hidden_deviance(reduced(start, scans, all_pixels, n), scans, all_pixels) for n in (1, 30))
    assert (once < before).all() and (often < once).all()
    # The truth stays what it is, but for noise.
    near = exit_waves(reduced(scans.truth, scans, all_pixels, 1) - scans.truth, scans.probe)
    assert near.abs().square().sum() < 0.05 * exit_waves(scans.truth, scans.probe).abs().square().sum()


def test_measured_frames_need_nothing_but_counts():
    scans, _ = SingleFrameSource(CPU, 3, (1e6, 1.01e6)).batch(0)
    found = measured_frames(scans.data.counts)
    assert torch.equal(found.data.counts, scans.data.counts) and found.truth is None
    photons = found.probe.abs().square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(photons, scans.data.counts.sum(dim=(1, 2)), rtol=1e-4, atol=0)
    extents = [(probe[:, 0].abs() > 0).sum(dim=(1, 2)).sqrt() for probe in (found.probe, scans.probe)]
    assert (extents[0] / extents[1] - 1).abs().max() < 0.35
    assert as_scans(scans.data.counts).object_shape == (4, 32, 32)


def test_pretraining_on_single_frames_is_repeated_by_its_seed(tmp_path, monkeypatch):
    config = PretrainingConfig(steps=2, photons=(1e5, 1e6), model=SIZE, single_frames=True)
    records = [
        pretrain_frames(config, ProcessGroup(CPU), tmp_path / f"{number}.encoder.safetensors") for number in range(2)
    ]
    assert records[0]["sha256"] == records[1]["sha256"] and records[0]["frames_seen"] == 8
    table = records[0]["validation"]["1e+06"]
    assert set(table) == {
        f"frames, {name}" for name in ("object", "object, error reduction", "error reduction", "truth")
    }
    assert table["frames, truth"] < 0.2 * table["frames, error reduction"]
    assert load_frame_model(tmp_path / "0.encoder.safetensors").record["config"]["single_frames"]


def test_recorded_files_are_no_single_frames(tmp_path):
    config = PretrainingConfig(steps=1, model=SIZE, single_frames=True)
    with pytest.raises(ConfigError, match="leave files out"):
        pretrain_frames(config, ProcessGroup(CPU), tmp_path / "n.encoder.safetensors", [tmp_path])
