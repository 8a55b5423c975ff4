"""Masked pretraining: what is learned from, what the losses look at, and that a run can be gone on with."""

import argparse
import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.cli.pretrain import add_pretrain
from bluesky_cdi.errors import ScanFileError, WeightsError
from bluesky_cdi.io import Scan, write_scan
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import load_frame_model
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.likelihood import expected_deviance
from bluesky_cdi.training.pretraining import run as module
from bluesky_cdi.training.pretraining import scans as scans_module
from bluesky_cdi.training.pretraining import validation
from bluesky_cdi.training.pretraining.losses import hidden_deviance, hidden_pixels, masked_losses
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.run import PretrainingConfig, pretrain_frames
from bluesky_cdi.training.pretraining.scans import RecordedFrames, ScanSource
from bluesky_cdi.training.process_group import ProcessGroup
from bluesky_cdi.training.stream import SceneShape

CPU = torch.device("cpu")
# Scenes on a GPU, of which a CPU takes an eighteenth.
SHAPES = (SceneShape(16, 32, (5, 9), 36, 0.5), SceneShape(24, 40, (6, 8), 36, 0.5))
SIZE = FrameEncoderConfig(
    patch=8, width=16, depth=2, heads=1, neighbours=2, decoder_width=16, decoder_depth=1, decoder_heads=1
)
CONFIG = PretrainingConfig(steps=6, photons=(1e4, 1e5), model=SIZE)


@pytest.fixture(autouse=True)
def tiny_scans(monkeypatch):
    monkeypatch.setattr(scans_module, "CPU_SHAPES", SHAPES)
    monkeypatch.setattr(scans_module, "CPU_POOL", 2)
    monkeypatch.setattr(scans_module, "POOL_STEPS", 4)
    monkeypatch.setattr(validation, "DOSES", (1e5,))
    monkeypatch.setattr(module, "validate_frames", tiny_validation)


def tiny_validation(model, device):
    return validation.validate_frames(model, device, SceneShape(16, 32, (9, 9), 2, 1.0))


def counts_of(source, step):
    scans, draws = source.batch(step)
    return scans.data.counts, draw_shown(scans, 8, draws).patches


def write_recorded(path, probe=True, propagation="far", frames=12):
    geometry = Geometry(8000.0, 2.0, 172e-6, 16, propagation)
    rng = np.random.default_rng(1)
    positions_m = geometry.pixel_m * rng.uniform(0, 20, (frames, 2))
    counts = rng.poisson(5.0, (frames, 16, 16)).astype(np.float32)
    beam = np.exp(-np.add.outer(np.arange(-8, 8) ** 2, np.arange(-8, 8) ** 2) / 16)
    guess = (6 * beam[None]).astype(np.complex64) if probe else None
    mask = np.ones((16, 16), bool)
    mask[3, 5] = False
    scan = Scan(counts, positions_m, geometry, guess, mask, flux=rng.uniform(1, 2, frames))
    write_scan(path, scan)
    return scan


def test_a_batch_is_that_of_its_step():
    one, other = ScanSource(CPU, 3), ScanSource(CPU, 3)
    # A source that has given others before, of other pools too, and one that begins there.
    for step in (0, 3, 4, 9, 2):
        first = counts_of(one, step)
    for a, b in zip(first, counts_of(other, 2), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(counts_of(one, 3)[0][:4], counts_of(one, 7)[0][:4])
    assert not torch.equal(counts_of(ScanSource(CPU, 4), 2)[0][:4], first[0][:4])


def test_processes_have_batches_of_one_size_and_scans_of_their_own():
    sources = [ScanSource(CPU, 3, rank=rank) for rank in (0, 1)]
    sizes = set()
    for step in range(8):
        (counts, patches), (others, their_patches) = (counts_of(source, step) for source in sources)
        assert counts.shape == others.shape and patches.shape == their_patches.shape
        assert not torch.equal(counts, others)
        sizes.add(counts.shape[1:])
    assert len(sizes) == 2


def test_windows_of_a_recorded_scan(tmp_path):
    scan = write_recorded(tmp_path / "scan.npz")
    scans = RecordedFrames(scan, tmp_path / "scan.npz", CPU).windows([0, 7], 5)
    data = scans.data
    assert data.counts.shape == (10, 16, 16) and scans.judging_data is data and scans.truth is None
    places = scan.positions_m / scan.geometry.pixel_m
    found = (data.corner + data.shift_px).double().numpy()
    frames = data.propagator.to_detector(data.counts).numpy()
    for window, middle in enumerate((0, 7)):
        nearest = np.sort(np.argsort(np.linalg.norm(places - places[middle], axis=1))[:5])
        part = slice(5 * window, 5 * window + 5)
        assert (data.scene[part] == window).all()
        np.testing.assert_array_equal(frames[part], np.where(scan.mask, scan.counts[nearest], 0))
        np.testing.assert_allclose(np.diff(found[part], axis=0), np.diff(places[nearest], axis=0), atol=1e-5)
        np.testing.assert_allclose(data.flux[part], scan.flux[nearest] / scan.flux.mean(), rtol=1e-6)
    assert (data.corner >= 0).all() and int(data.corner.max()) + 16 <= data.object_shape[-1]
    assert torch.equal(data.propagator.to_detector(data.mask), torch.from_numpy(scan.mask))


def test_half_of_the_batches_are_recorded(tmp_path):
    (tmp_path / "more").mkdir()
    write_recorded(tmp_path / "far.npz")
    write_recorded(tmp_path / "more" / "near.cxi", propagation="near")
    (tmp_path / "result.npz").write_bytes(b"PK\x03\x04 something else")
    source = ScanSource(CPU, 3, files=[tmp_path])
    assert source.names == ["far.npz", "near.cxi"]
    batches = [source.batch(step)[0] for step in range(24)]
    assert 6 < sum(scans.truth is None for scans in batches) < 18
    # Frames without a truth train like the others.
    recorded = next(scans for scans in batches if scans.truth is None)
    model = MaskedFrameModel(SIZE)
    shown = draw_shown(recorded, 8, source.batch(0)[1], share=0.5)
    losses = masked_losses(model(recorded.probe, recorded.data, shown), recorded, 8)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_scans_that_nothing_is_learned_from_are_refused(tmp_path):
    write_recorded(tmp_path / "blind.npz", probe=False)
    with pytest.raises(ScanFileError, match=r"blind\.npz holds no probe.*bluesky-cdi probe"):
        ScanSource(CPU, 3, files=[tmp_path / "blind.npz"])
    write_recorded(tmp_path / "short.npz", frames=3)
    with pytest.raises(ScanFileError, match=r"has 3 frames with light.*4 are needed"):
        ScanSource(CPU, 3, files=[tmp_path / "short.npz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanFileError, match=r"no scans in .*empty: name files"):
        ScanSource(CPU, 3, files=[tmp_path / "empty"])


def test_what_is_hidden():
    source, shares = ScanSource(CPU, 3), []
    for step in range(12):
        scans, draws = source.batch(step)
        shown = draw_shown(scans, 8, draws)
        number, frames = len(scans.probe), len(scans.data) // len(scans.probe)
        of_scan = torch.bincount(shown.frames // frames, minlength=number)
        assert (of_scan == of_scan[0]).all() and of_scan[0] == frames - max(1, round(frames / 4))
        assert (shown.frames.diff() > 0).all() and (shown.patches.diff(dim=1) > 0).all()
        shares.append(shown.patches.shape[1] / (-(-scans.data.counts.shape[-1] // 8)) ** 2)
    assert min(shares) < 0.7 and max(shares) == 1


def test_losses_look_at_what_was_hidden_alone():
    scans, draws = ScanSource(CPU, 3, shapes=SHAPES[1:]).batch(0)
    mask = torch.rand(24, 24) > 0.1
    scans = replace(scans, judging_data=replace(scans.judging_data, mask=mask), data=replace(scans.data, mask=mask))
    shown, model = draw_shown(scans, 8, draws, share=0.5), MaskedFrameModel(SIZE)
    found = model(scans.probe, scans.data, shown)
    hidden = hidden_pixels(shown, scans.data, 8)
    assert 0.3 < hidden.float().mean() < 0.8

    def losses(counts):
        data, judging = replace(scans.data, counts=counts), replace(scans.judging_data, counts=counts)
        other = replace(scans, data=data, judging_data=judging)
        return {name: loss.item() for name, loss in masked_losses(found, other, 8).items()}

    counts = scans.data.counts
    before = losses(counts)
    assert losses(torch.where(hidden, counts, 7.0)) == before
    after = losses(torch.where(hidden, 7.0, counts))
    assert all(after[name] != before[name] for name in before)
    # By hand: the mean over hidden patches of the logarithm of one and their mean deviance.
    rate, order = found.log_rate.exp(), scans.data.propagator.to_detector
    ours, known = order(counts[shown.frames]), order(hidden[shown.frames])
    each = 2 * (torch.special.xlogy(ours, ours / rate) - ours + rate) * known
    cells = [x.view(-1, 3, 8, 3, 8).sum(dim=(2, 4)) for x in (each, known.float())]
    wanted = (1 + cells[0] / cells[1].clamp_min(1)).log()[cells[1] > 0].mean()
    assert before["patches"] == pytest.approx(wanted.item(), rel=1e-4)


def test_the_truth_explains_hidden_frames_to_the_photon_noise():
    scans, draws = ScanSource(CPU, 5, photons=(1e6, 1e6), shapes=SHAPES[1:]).batch(1)
    hidden = hidden_pixels(draw_shown(scans, 8, draws), scans.data, 8)
    data = scans.judging_data
    rate = data.rate(data.probes(scans.judging_probe), data.patches(scans.truth))
    noise = (expected_deviance(rate) * hidden).sum() / hidden.sum()
    found = (hidden_deviance(scans.truth, scans, hidden) * hidden.sum(dim=(1, 2))).sum() / hidden.sum()
    # The background, and the photons of the probe within a per cent or two, are not told.
    assert 0.8 * noise < found < 1.6 * noise
    vacuum = hidden_deviance(torch.ones_like(scans.truth), scans, hidden)
    assert vacuum.median() > 10 * found


def test_losses_fall_and_reach_every_weight():
    torch.manual_seed(4)
    scans, draws = ScanSource(CPU, 6, photons=(1e4, 1e5)).batch(0)
    shown, model = draw_shown(scans, 8, draws, share=0.5), MaskedFrameModel(SIZE)
    optimiser, values = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(40):
        losses = masked_losses(model(scans.probe, scans.data, shown), scans, 8)
        values.append({name: loss.item() for name, loss in losses.items()})
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert all(values[-1][name] < 0.9 * values[0][name] for name in ("patches", "frames")), (values[0], values[-1])


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = tmp_path / "whole.encoder.safetensors"
    record = pretrain_frames(CONFIG, ProcessGroup(CPU), whole)
    assert record["steps"] == 6 and json.loads(whole.with_suffix(".json").read_text())["sha256"] == record["sha256"]
    assert {"patches, decoder", "frames, object", "frames, truth", "NRMSE, object"} <= set(
        record["validation"]["1e+05"]
    )
    out, batch = tmp_path / "parts.encoder.safetensors", ScanSource.batch

    def interrupted(source, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch(source, step)

    monkeypatch.setattr(ScanSource, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_frames(CONFIG, ProcessGroup(CPU), out)
    monkeypatch.setattr(ScanSource, "batch", batch)
    with pytest.raises(WeightsError, match="of another run"):
        pretrain_frames(replace(CONFIG, seed=2), ProcessGroup(CPU), out, resume=True)
    pretrain_frames(CONFIG, ProcessGroup(CPU), out, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    assert not out.with_suffix(".resume").exists()
    with pytest.raises(WeightsError, match="can't resume from"):
        pretrain_frames(CONFIG, ProcessGroup(CPU), out, resume=True)


def test_a_run_by_the_clock_ends_with_it(tmp_path, monkeypatch):
    # A clock that goes on by half a second each time that it is looked at.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=itertools.count(0.0, 0.5).__next__))
    monkeypatch.setattr(module, "AGREED_EVERY", 2)
    config = replace(CONFIG, steps=None, seconds=5.0)
    record = pretrain_frames(config, ProcessGroup(CPU), tmp_path / "run.encoder.safetensors")
    assert 4 <= record["steps"] <= 8 and record["curve"][-1]["seconds"] >= 5


def test_training_that_diverges_says_so(tmp_path, monkeypatch):
    nothing = torch.full((), torch.nan, requires_grad=True)
    monkeypatch.setattr(module.MaskedLosses, "forward", lambda *_: {"patches": nothing, "frames": nothing})
    with pytest.raises(WeightsError, match=r"pretraining diverged before step 1 .*lower learning rate than 0\.0008"):
        pretrain_frames(CONFIG, ProcessGroup(CPU), tmp_path / "run.encoder.safetensors")


def test_the_command_trains_on_this_machine(tmp_path, capsys):
    write_recorded(tmp_path / "scan.npz")
    out = tmp_path / "frames.encoder.safetensors"
    line = ["pretrain", str(out), "--steps", "2", "--width", "64", "--depth", "1", "--device", "cpu", "-q", "--json"]
    assert main([*line, "--files", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2 and printed["recorded_scans"] == ["scan.npz"]
    assert load_frame_model(out).model.config.width == 64
    assert main(["pretrain", str(tmp_path / "frames.safetensors"), "-q"]) == 1
    assert "must end in .encoder.safetensors" in capsys.readouterr().err
    assert main(["pretrain", str(out), "--width", "100", "-q"]) == 1
    assert "--width must be a multiple of 64" in capsys.readouterr().err


def test_torchrun_takes_no_option_for_its_own():
    from torch.distributed.run import get_args_parser

    commands = argparse.ArgumentParser().add_subparsers()
    add_pretrain(commands, argparse.ArgumentParser(add_help=False))
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", commands.choices["pretrain"].format_usage())) - {"-h"}
    assert "--steps" in options
    for option in options:
        line = ["--nproc-per-node=2", "-m", "bluesky_cdi", "pretrain", "out.safetensors", option]
        assert get_args_parser().parse_args(line).training_script_args == ["pretrain", "out.safetensors", option]


TWO = """
import sys, torch
from pathlib import Path
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.training.pretraining import run as module, scans
from bluesky_cdi.training.process_group import joined
from bluesky_cdi.training.stream import SceneShape
torch.set_num_threads(1)
scans.CPU_SHAPES, scans.CPU_POOL = eval(sys.argv[2]), 2
module.validate_frames = lambda model, device: {}
with joined("cpu") as processes:
    record = module.pretrain_frames(eval(sys.argv[3], vars(module)), processes, Path(sys.argv[1]))
    assert bool(record) == processes.leads and processes.size == 2
"""
TWO_STEPS = replace(CONFIG, steps=2)


def test_two_processes_are_one_with_both_batches(tmp_path, monkeypatch, fork_two):
    script, out = tmp_path / "two.py", tmp_path / "two.encoder.safetensors"
    script.write_text(TWO)
    code, said = fork_two(script, out, repr(SHAPES), repr(TWO_STEPS))
    assert code == 0, said[-2000:]
    monkeypatch.setattr(scans_module, "POOL_STEPS", 63)
    sources = [ScanSource(CPU, CONFIG.seed, CONFIG.photons, rank=rank) for rank in (0, 1)]

    class Both(module.MaskedLosses):
        def forward(self, scans, shown):
            step = self.steps = getattr(self, "steps", -1) + 1
            other, draws = sources[1].batch(step)
            found = [super().forward(scans, shown)]
            found.append(super().forward(other, draw_shown(other, SIZE.patch, draws)))
            return {name: (found[0][name] + found[1][name]) / 2 for name in found[0]}

    monkeypatch.setattr(module, "MaskedLosses", Both)
    one = tmp_path / "one.encoder.safetensors"
    assert pretrain_frames(TWO_STEPS, ProcessGroup(CPU), one)["steps"] == 2
    pair = [load_frame_model(path) for path in (out, one)]
    assert pair[0].record["processes"] == 2 and pair[0].record["frames_seen"] == 2 * pair[1].record["frames_seen"]
    torch.manual_seed(CONFIG.seed)
    first, moved = MaskedFrameModel(SIZE).state_dict(), 0.0
    for name, value in pair[1].model.state_dict().items():
        torch.testing.assert_close(pair[0].model.state_dict()[name], value, rtol=1e-3, atol=2e-6)
        moved += float((value - first[name]).abs().max())
    assert moved > 1e-4
