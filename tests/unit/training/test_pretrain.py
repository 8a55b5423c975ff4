"""Losses against what they should measure, and a training run of a few steps."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.cli import MODELS
from bluesky_cdi.cli.train import add_train
from bluesky_cdi.errors import ConfigError, WeightsError
from bluesky_cdi.evaluation import complex_nrmse
from bluesky_cdi.models.ptychonn import PtychoNN, PtychoNNConfig
from bluesky_cdi.models.unrolled import PRESETS, STEP_DAMPING, UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import intensity, peak_intensity
from bluesky_cdi.physics.illuminated_frames import object_step
from bluesky_cdi.physics.propagators import FAR_FIELD
from bluesky_cdi.training import calibration, objects, probes
from bluesky_cdi.training import pretrain as module
from bluesky_cdi.training import stream as stream_module
from bluesky_cdi.training.losses import gauge_fixed, gaussian_nll, relative_deviance, relative_error
from bluesky_cdi.training.pretrain import (
    PretrainConfig,
    pretrain,
    scene_losses,
    validate,
)
from bluesky_cdi.training.process_group import ProcessGroup, joined
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SHAPE = SceneShape(16, 32, (6, 9), 4, 1.0)
TINY = PretrainConfig(seconds=0.5, learning_rate=3e-3, model=UnrolledConfig(stages=2, channels=8, levels=2))


@pytest.fixture
def stream():
    return SceneStream(CPU, 21, (1e4, 1e5), pool=8, object_px=48)


@pytest.fixture
def images():
    rng = np.random.default_rng(22)
    truth = np.exp(1j * rng.normal(0, 0.5, (3, 20, 24))) * rng.uniform(0.6, 1, (3, 20, 24))
    obj = truth + 0.1 * (rng.normal(size=truth.shape) + 1j * rng.normal(size=truth.shape))
    weight = rng.uniform(0, 1, truth.shape)
    return tuple(torch.from_numpy(a) for a in (obj, truth, weight))


def test_a_global_complex_scale_changes_no_error(images):
    obj, truth, weight = images
    error = relative_error(obj, truth, weight)
    assert error.shape == (3,)
    for scale in (1j, -2.5, 0.1 * np.exp(0.4j)):
        torch.testing.assert_close(relative_error(scale * obj, truth, weight), error, rtol=1e-6, atol=0)
        torch.testing.assert_close(gauge_fixed(scale * obj, truth, weight), gauge_fixed(obj, truth, weight))
    assert float(relative_error(3j * truth, truth, weight).max()) < 1e-12


def test_relative_error_is_the_squared_nrmse_but_for_its_floor(images):
    obj, truth, weight = images
    errors = relative_error(obj, truth, weight)
    for found, c, t, w in zip(errors, obj.numpy(), truth.numpy(), weight.numpy(), strict=True):
        variance = np.average(np.abs(t - np.average(t, weights=w)) ** 2, weights=w)
        nrmse = complex_nrmse(c, t, w)
        assert float(found) == pytest.approx(nrmse**2 * variance / (variance + 0.02), rel=1e-6)


def test_the_gauge_is_the_best_scale(images):
    obj, truth, weight = images

    def squared(image):
        return (weight * (image - truth).abs().square()).sum(dim=(1, 2))

    fixed = gauge_fixed(obj, truth, weight)
    for nudge in (1.001, 0.999, np.exp(0.001j), np.exp(-0.001j)):
        assert (squared(fixed) < squared(fixed * nudge)).all()


def test_pixels_without_weight_do_not_count(images):
    obj, truth, weight = images
    weight = weight * (weight > 0.5)
    wild = torch.where(weight > 0, obj, 1e3)
    torch.testing.assert_close(relative_error(wild, truth, weight), relative_error(obj, truth, weight))
    blank = relative_error(obj, truth, torch.zeros_like(weight))
    assert torch.isfinite(blank).all()


def test_gaussian_nll_is_least_at_the_true_deviations():
    rng = np.random.default_rng(23)
    amplitude_std, phase_std = 0.02, 0.15
    truth = np.exp(1j * rng.normal(0, 1, (1, 200, 200)))
    wrong_amplitude = 1 + rng.normal(0, amplitude_std, truth.shape)
    obj = truth * wrong_amplitude * np.exp(1j * rng.normal(0, phase_std, truth.shape))
    obj, truth = torch.from_numpy(obj), torch.from_numpy(truth)
    weight = torch.ones(1, 200, 200, dtype=torch.float64)
    fixed = gauge_fixed(obj, truth, weight)
    errors = torch.stack([fixed.abs() - truth.abs(), torch.angle(fixed * truth.conj())])
    actual = errors.square().mean(dim=(1, 2, 3)).sqrt()
    assert float(actual[1]) == pytest.approx(phase_std, rel=0.03)

    def loss(log_std):
        return gaussian_nll(obj, truth, log_std[None, :, None, None].expand(1, 2, 200, 200), weight)

    best = actual.log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(best), best)
    assert float(gradient.abs().max()) < 1e-9
    # The least value is the mean of log(std) + 1/2.
    least = loss(best.detach())
    assert float(least) == pytest.approx(float(actual.log().mean() + 0.5), abs=1e-6)
    for change in torch.tensor([[0.05, 0], [-0.05, 0], [0, 0.05], [0, -0.05]], dtype=torch.float64):
        assert loss(best.detach() + change) > least


def test_the_deviance_of_the_truth_is_that_of_the_noise(stream):
    batch = stream.draw(SHAPE, exact=True)
    at_truth = relative_deviance(batch.truth, batch.probe, batch.data)
    at_vacuum = relative_deviance(torch.ones_like(batch.truth), batch.probe, batch.data)
    assert at_truth.shape == (len(batch.data),)
    assert float(at_truth.mean()) < float(at_vacuum.mean())
    # At most about one a pixel, over the photons.
    assert float((at_truth * (batch.data.counts.sum(dim=(1, 2)) + 1)).mean()) < 1.2 * 16 * 16


def test_masked_pixels_have_no_deviance(stream):
    batch = stream.draw(SHAPE, exact=True)
    hidden = replace(batch, data=replace(batch.data, mask=torch.zeros(16, 16, dtype=torch.bool)))
    assert not relative_deviance(batch.truth, hidden.probe, hidden.data).any()


def test_losses_are_finite_and_reach_every_parameter(stream):
    torch.manual_seed(1)
    net = UnrolledNet(TINY.model)
    losses = scene_losses(net, stream.draw(SHAPE), TINY, stream.draws)
    assert losses.keys() == {"truth", "physics", "critic"}
    assert all(math.isfinite(v.item()) for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert float(net.step_size.grad.abs().min()) > 0


@pytest.mark.parametrize(("supervised", "physics"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_loss_that_is_not_asked_for_is_zero(stream, supervised, physics):
    torch.manual_seed(1)
    config = replace(TINY, supervised=supervised, physics=physics)
    losses = scene_losses(UnrolledNet(config.model), stream.draw(SHAPE), config, stream.draws)
    assert (losses["truth"].item() > 0) == (supervised > 0)
    assert (losses["physics"].item() > 0) == (physics > 0)


def test_the_loss_of_predicted_errors_teaches_the_stages_nothing(stream):
    torch.manual_seed(1)
    net = UnrolledNet(TINY.model)
    scene_losses(net, stream.draw(SHAPE), TINY, stream.draws)["critic"].backward()
    assert all(p.grad is None or not p.grad.any() for p in net.stages.parameters())
    assert any(p.grad is not None and p.grad.any() for p in net.critic.parameters())


def fit(weights, steps=25):
    """Train a tiny network on one batch; first and last value of the loss."""
    torch.manual_seed(2)
    stream = SceneStream(CPU, 24, (1e5, 1e6), pool=8, object_px=48)
    batch = stream.draw(SHAPE, exact=True)
    config = replace(TINY, **weights)
    net = UnrolledNet(config.model)
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate)
    values = []
    for _ in range(steps):
        losses = scene_losses(net, batch, config, stream.draws)
        values.append(sum(losses[k].item() for k in ("truth", "physics")))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    return values[0], values[-1]


@pytest.mark.parametrize("weights", [{}, {"supervised": 0.0}, {"physics": 0.0}])
def test_some_steps_of_training_lower_the_loss(weights, monkeypatch):
    # From one start, since from others the losses are others.
    monkeypatch.setattr(module, "draw_start", lambda net, batch, *_: torch.ones_like(batch.truth))
    first, last = fit(weights)
    assert last < first - 0.2 * abs(first)


@pytest.fixture
def tiny_shapes(monkeypatch):
    monkeypatch.setattr(stream_module, "SHAPES", (SHAPE,))
    monkeypatch.setattr(module, "VALIDATION_SHAPE", SceneShape(16, 32, (9, 9), 2, 1.0))
    monkeypatch.setattr(calibration, "SHAPE", SHAPE)
    for user in (module, calibration):
        monkeypatch.setattr(
            user,
            "SceneStream",
            lambda device, seed, photons, pool=8, object_px=48, probe=None, decisions=None: SceneStream(
                device, seed, photons, 8, 48, probe, decisions
            ),
        )


@pytest.fixture
def unjudged(monkeypatch):
    """Leave out what follows training, which takes longer than it here."""
    monkeypatch.setattr(module, "validate", lambda net, device, probe, share: {})
    monkeypatch.setattr(module, "calibrate", lambda net, device, batches, probe: net.log_std_offset)


def test_a_run_writes_weights_and_a_record(tiny_shapes, tmp_path):
    out = tmp_path / "tiny.safetensors"
    record = pretrain(replace(TINY, seconds=0.01), ProcessGroup(CPU), out)
    trained = load_weights(out)
    assert trained.net.config == TINY.model
    # A batch has at least six frames.
    assert record["steps"] >= 1 and record["frames_seen"] >= 6 * record["steps"]
    assert record["config"]["model"]["channels"] == 8
    assert {k: trained.record[k] for k in ("steps", "frames_seen", "torch")} == {
        k: record[k] for k in ("steps", "frames_seen", "torch")
    }
    assert set(record["validation"]) == {"1e+04", "1e+05", "1e+06"}
    assert json.loads(out.with_suffix(".json").read_text())["sha256"] == trained.sha256


def test_a_run_goes_on_from_earlier_weights(tiny_shapes, unjudged, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    brief = replace(TINY, seconds=0.01)
    pretrain(brief, ProcessGroup(CPU), first)
    record = pretrain(replace(brief, learning_rate=1e-9), ProcessGroup(CPU), second, [first])
    assert record["earlier"][0]["sha256"] == load_weights(first).sha256
    earlier, later = load_weights(first).net, load_weights(second).net
    for a, b in zip(earlier.parameters(), later.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model", [TINY.model, PtychoNNConfig(channels=4, levels=2)])
def test_a_run_goes_on_from_the_mean_of_several(tiny_shapes, unjudged, tmp_path, model):
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "mean")]
    brief = replace(TINY, seconds=0.01, physics=0.0, model=model)
    for seed, path in enumerate(paths[:2]):
        pretrain(replace(brief, seed=seed), ProcessGroup(CPU), path)
    record = pretrain(replace(brief, learning_rate=1e-9), ProcessGroup(CPU), paths[2], paths[:2])
    one, two, mean = (load_weights(path) for path in paths)
    assert [each["sha256"] for each in record["earlier"]] == [one.sha256, two.sha256]
    states = [trained.net.state_dict() for trained in (one, two, mean)]
    assert max(float((a - b).abs().max()) for a, b in zip(states[0].values(), states[1].values(), strict=True)) > 0.1
    other = tmp_path / "other.safetensors"
    pretrain(replace(brief, model=replace(TINY.model, stages=3)), ProcessGroup(CPU), other)
    with pytest.raises(WeightsError, match="only networks of one size have a mean"):
        pretrain(replace(brief, model=replace(TINY.model, stages=4)), ProcessGroup(CPU), paths[2], [paths[0], other])
    for a, b, middle in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(middle, (a + b) / 2, atol=1e-3, rtol=1e-3)


def test_further_stages_begin_as_steps_of_the_physics(tiny_shapes, unjudged, stream, tmp_path):
    first, longer = tmp_path / "first.safetensors", replace(TINY.model, stages=4)
    pretrain(replace(TINY, seconds=0.01), ProcessGroup(CPU), first)
    earlier, net = load_weights(first).net, UnrolledNet(longer)
    net.go_on_from(earlier)
    batch = stream.draw(SHAPE, exact=True)
    with torch.no_grad():
        before, after = earlier(batch.probe, batch.data), net(batch.probe, batch.data)
        numerator, illumination = object_step(before[-1], batch.probe, batch.data)
    torch.testing.assert_close(after[1], before[-1])
    stepped = before[-1] + numerator / (illumination + STEP_DAMPING * peak_intensity(batch.probe))
    torch.testing.assert_close(after[2], stepped, rtol=1e-5, atol=1e-5)


def test_further_steps_of_a_stage_come_first(stream):
    torch.manual_seed(2)
    earlier, net = UnrolledNet(TINY.model), UnrolledNet(replace(TINY.model, stages=3, steps=2))
    with torch.no_grad():
        earlier.step_size.copy_(torch.tensor([0.3, 0.6]))
    net.go_on_from(earlier)
    assert net.step_size.tolist() == pytest.approx([1, 0.3, 1, 0.6, 1, 1])
    batch, vacuum = stream.draw(SHAPE, exact=True), torch.ones(1, dtype=torch.complex64)
    with torch.no_grad():
        # Where the further steps have no length, the network is what it was.
        net.step_size[::2] = 0
        torch.testing.assert_close(net(batch.probe, batch.data)[1], earlier(batch.probe, batch.data)[1])
        for stage in net.stages:
            for parameter in stage.exit.parameters():
                parameter.zero_()
        net.step_size[0], net.step_size[1:] = 0.7, 0
        numerator, illumination = object_step(vacuum.expand(batch.data.object_shape), batch.probe, batch.data)
        step = 0.7 * numerator / (illumination + STEP_DAMPING * peak_intensity(batch.probe))
        torch.testing.assert_close(net(batch.probe, batch.data)[-1], vacuum + step, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [TINY.model, PtychoNNConfig(channels=4, levels=2)])
def test_a_run_for_one_probe_sees_no_other(tiny_shapes, tmp_path, monkeypatch, model):
    rng = np.random.default_rng(6)
    probe = torch.from_numpy(rng.normal(size=(2, 16, 16)) + 1j * rng.normal(size=(2, 16, 16)))
    drawn, draw = [], SceneStream.draw
    monkeypatch.setattr(SceneStream, "draw", lambda *args, **rest: drawn.append(draw(*args, **rest)) or drawn[-1])
    config = replace(TINY, seconds=0.01, model=model)
    record = pretrain(config, ProcessGroup(CPU), tmp_path / "one.safetensors", probe=probe)
    assert len(record["probe_sha256"]) == 64 and len(drawn) >= 5
    for batch in drawn:
        # The assumed probe has errors, the scenes' own is behind the counts of exact ones.
        assert batch.probe.shape[1:] == (2, 16, 16) and batch.data.propagator is FAR_FIELD
    exact = drawn[-1].probe
    expected = probe.to(torch.complex64) * (exact[0].norm() / probe.norm())
    torch.testing.assert_close(exact, expected.expand_as(exact), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("size", sorted({shape.frame_px for shape in stream_module.SHAPES}))
def test_held_out_scenes_fit_every_size_of_frames(size):
    for shape in (module.VALIDATION_SHAPE.of_frames(size), calibration.SHAPE.of_frames(size)):
        assert shape.frame_px == size and shape.grid_px - size == 82 and shape.scenes >= 1
        assert shape.scenes * size**2 <= max(size**2, 8 * 64**2)


def test_held_out_scenes_are_as_large_as_the_probe():
    probe = torch.ones(1, 256, 256)
    held_out = module.held_out(CPU, 1e5, 8, probe).data
    assert held_out.object_shape == (1, 338, 338) and held_out.counts.shape[1:] == (256, 256)


def test_a_probe_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="frames of 64, 128, 256, 512 pixels a side; the probe has 100"):
        SceneStream(CPU, 1, probe=torch.ones(1, 100, 100))


@pytest.mark.parametrize("model", [replace(TINY.model, stages=1), replace(TINY.model, channels=16), PtychoNNConfig()])
def test_a_network_that_does_not_fit_is_not_gone_on_from(tiny_shapes, unjudged, tmp_path, model):
    first = tmp_path / "first.safetensors"
    pretrain(replace(TINY, seconds=0.01), ProcessGroup(CPU), first)
    with pytest.raises(WeightsError, match="can't go on from first"):
        pretrain(replace(TINY, model=model), ProcessGroup(CPU), tmp_path / "second.safetensors", [first])


def test_calibrated_deviations_hold_nine_in_ten_errors(tiny_shapes, monkeypatch):
    """Of a critic that says the same of every pixel, much too little."""
    torch.manual_seed(5)
    # Of thick objects a pool of eight would be no sample, and of poor probes some batches.
    monkeypatch.setattr(objects, "THICK_SHARE", 0.0)
    monkeypatch.setattr(probes, "POOR_PROBE_SHARE", 0.0)
    stream = SceneStream(CPU, 21, (1e4, 1e6), pool=64, object_px=48)
    net = UnrolledNet(TINY.model).eval().requires_grad_(False)
    for parameter in net.critic.exit.parameters():
        parameter.zero_()
    monkeypatch.setattr(calibration, "SceneStream", lambda *args: SceneStream(*args[:3], 64, 48))
    factors = calibration.calibrate(net, CPU, batches=24)
    assert (factors > 2).all()
    inside = []
    for _ in range(48):
        batch = stream.draw(SHAPE)
        inside += [(scan < calibration.WITHIN).float().mean(dim=1) for scan in calibration._surprise(net, batch)]
    assert torch.stack(inside).mean(dim=0).tolist() == pytest.approx([0.9, 0.9], abs=0.06)


def test_the_baseline_is_trained_by_the_same_run(tiny_shapes, unjudged, stream, tmp_path):
    out = tmp_path / "baseline.safetensors"
    config = replace(TINY, seconds=0.01, physics=0.0, model=PtychoNNConfig(channels=4, levels=2))
    record = pretrain(config, ProcessGroup(CPU), out)
    trained = load_weights(out)
    assert isinstance(trained.net, PtychoNN) and "critic" not in record["curve"][-1]
    with pytest.raises(WeightsError, match="give weights of an unrolled network"):
        _ = trained.unrolled_net
    assert set(scene_losses(PtychoNN(config.model), stream.draw(SHAPE), config, stream.draws)) == {"truth", "physics"}


def state_of(path):
    return torch.load(path, weights_only=True)


def test_an_interrupted_run_goes_on_where_it_was(tiny_shapes, unjudged, tmp_path, monkeypatch):
    out, long = tmp_path / "run.safetensors", replace(TINY, seconds=60.0)
    steps = []

    def interrupted(self, progress, real=module._Run._one_step):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(progress)
        return real(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(long, ProcessGroup(CPU), out)
    assert not out.exists() and state_of(out.with_suffix(".resume"))["step"] == 5
    # Nearly all of its time is over: a few steps end it.
    state = state_of(out.with_suffix(".resume")) | {"seconds": 59.9}
    torch.save(state, out.with_suffix(".resume"))
    record = pretrain(long, ProcessGroup(CPU), out, resume=True)
    assert record["steps"] > 5 and record["curve"][0]["step"] == 1
    assert record["frames_seen"] > state["frames"]
    assert not out.with_suffix(".resume").exists()
    assert load_weights(out).record["steps"] == record["steps"]


def test_what_follows_training_can_be_made_again(tiny_shapes, unjudged, tmp_path, monkeypatch):
    """Interrupted in the validation: nothing is trained again."""

    def interrupted(net, device, probe, share):
        raise KeyboardInterrupt

    out = tmp_path / "run.safetensors"
    brief = replace(TINY, seconds=0.01)
    monkeypatch.setattr(module, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(brief, ProcessGroup(CPU), out)
    state = state_of(out.with_suffix(".resume"))
    monkeypatch.setattr(module, "validate", lambda net, device, probe, share: {})
    record = pretrain(brief, ProcessGroup(CPU), out, resume=True)
    assert record["steps"] == state["step"] and record["curve"] == state["curve"]
    torch.testing.assert_close(
        load_weights(out).net.state_dict()["step_size"], state["net"]["step_size"], rtol=1e-3, atol=0
    )


def test_a_run_that_diverges_ends_and_says_so(tiny_shapes, tmp_path, monkeypatch):
    losses = module.scene_losses

    def diverged(net, batch, config, draws):
        return {name: loss * math.nan for name, loss in losses(net, batch, config, draws).items()}

    monkeypatch.setattr(module, "scene_losses", diverged)
    out = tmp_path / "run.safetensors"
    with pytest.raises(WeightsError, match=r"diverged before step 1 .*lower learning rate than 0\.003"):
        pretrain(TINY, ProcessGroup(CPU), out)
    assert not out.exists()


def test_only_the_same_run_is_resumed(tiny_shapes, tmp_path):
    out = tmp_path / "run.safetensors"
    with pytest.raises(WeightsError, match="can't resume from"):
        pretrain(TINY, ProcessGroup(CPU), out, resume=True)
    torch.save({"config": "another"}, out.with_suffix(".resume"))
    with pytest.raises(WeightsError, match="another run"):
        pretrain(TINY, ProcessGroup(CPU), out, resume=True)
    out.with_suffix(".resume").write_bytes(b"cut short")
    with pytest.raises(WeightsError, match="can't resume from"):
        pretrain(TINY, ProcessGroup(CPU), out, resume=True)


TWO = """
import itertools, json, sys, torch
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from bluesky_cdi.models.unrolled import UnrolledConfig
from bluesky_cdi.training import pretrain as module, stream
from bluesky_cdi.training.stream import SceneShape, SceneStream
from bluesky_cdi.training.process_group import joined
torch.set_num_threads(1)
stream.SHAPES = (SceneShape(16, 32, (6, 9), 8, 0.5), SceneShape(16, 40, (12, 20), 8, 0.5))
module.VALIDATION_SHAPE = SceneShape(16, 32, (9, 9), 2, 1.0)
module.SceneStream = lambda device, seed, photons, pool=8, object_px=48, probe=None, decisions=None: (
    SceneStream(device, seed, photons, 8, 48, probe, decisions)
)
module.validate = lambda net, device, probe, share: {}
module.calibrate = lambda net, device, batches, probe: net.log_std_offset
# A clock that goes on by a twentieth of a second each time that it is looked at: as many steps on any machine.
module.time = SimpleNamespace(monotonic=itertools.count(0.0, 0.05).__next__)
config = module.PretrainConfig(seconds=1.0, model=UnrolledConfig(stages=2, channels=8, levels=2))
out = Path(sys.argv[1])
with joined("cpu") as processes:
    nets = []
    run = module._Run
    class Kept(run):
        def __init__(self, net, *rest):
            super().__init__(net, *rest)
            nets.append(net)
    module._Run = Kept
    sizes, draw = [], SceneStream.draw
    def drawn(*args, **rest):
        batch = draw(*args, **rest)
        sizes.append(list(batch.data.counts.shape))
        return batch
    SceneStream.draw = drawn
    record = module.pretrain(config, processes, out)
    digest = sum(float(p.double().sum()) for p in nets[0].parameters())
    reported = {"digest": digest, "sizes": sizes, "record": bool(record), "size": processes.size}
    Path(f"{out}.{processes.rank}").write_text(json.dumps(reported))
"""


def by_torchrun(script, out):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(out)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stderr


@pytest.fixture(params=["forked", pytest.param("torchrun", marks=pytest.mark.end_to_end)])
def run_two(request):
    """Run a script in two processes that train together; its exit code, and what it said."""
    return by_torchrun if request.param == "torchrun" else request.getfixturevalue("fork_two")


def test_two_processes_train_one_network(tmp_path, run_two):
    script, out = tmp_path / "two.py", tmp_path / "two.safetensors"
    script.write_text(TWO)
    code, said = run_two(script, out)
    assert code == 0, said[-2000:]
    reported = [json.loads((tmp_path / f"two.safetensors.{rank}").read_text()) for rank in (0, 1)]
    # Each drew its own scenes; the weights stayed the same, since the gradients were shared.
    assert reported[0]["digest"] == reported[1]["digest"]
    # Neither waited for a larger batch of the other.
    assert reported[0]["sizes"] == reported[1]["sizes"] and len({size[0] for size in reported[0]["sizes"]}) > 2
    assert [t["record"] for t in reported] == [True, False] and reported[0]["size"] == 2
    record = load_weights(out).record
    assert record["processes"] == 2 and record["steps"] > 1


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as processes:
        assert processes == ProcessGroup(CPU) and processes.leads and processes.agreed(0.3) == 0.3


def test_the_command_line_offers_every_model():
    assert set(MODELS) == {*PRESETS, "ptychonn"}


def test_torchrun_takes_no_option_for_its_own():
    from torch.distributed.run import get_args_parser

    commands = argparse.ArgumentParser().add_subparsers()
    add_train(commands, argparse.ArgumentParser(add_help=False))
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", commands.choices["train"].format_usage())) - {"-h"}
    assert "--initial" in options
    for option in options:
        line = ["--nproc-per-node=2", "-m", "bluesky_cdi", "train", "out.safetensors", option]
        assert get_args_parser().parse_args(line).training_script_args == ["train", "out.safetensors", option]


def test_validation_compares_with_rpie(tiny_shapes):
    torch.manual_seed(3)
    net = UnrolledNet(TINY.model).eval()
    table = validate(net, CPU, photons=(1e5,))
    row = table["1e+05"]
    assert set(row) == {"network", "network, then 5 rPIE", "5 rPIE from vacuum", "50 rPIE from vacuum"}
    assert all(0 < v < 3 for v in row.values())
    assert row["50 rPIE from vacuum"] < row["5 rPIE from vacuum"]
    assert validate(net, CPU, photons=(1e5,)) == table


def test_validation_scenes_keep_their_photons(tiny_shapes):
    batch = module.SceneStream(CPU, seed=10_007, photons=(1e4, 1.001e4)).draw(module.VALIDATION_SHAPE, exact=True)
    assert float(intensity(batch.probe).sum(dim=(1, 2)).mean()) == pytest.approx(1e4, rel=2e-3)


def test_scans_at_several_doses_are_those_of_each_alone(tiny_shapes):
    doses = (1e4, 1e6)
    for dose, batch in zip(doses, module.held_out_at(CPU, doses, 8, None), strict=True):
        alone = module.held_out(CPU, dose, 8, None)
        assert torch.equal(batch.truth, alone.truth) and torch.equal(batch.probe, alone.probe)
        assert torch.equal(batch.data.counts, alone.data.counts)


def test_on_a_cpu_short_runs_are_judged_by_few_scans(monkeypatch):
    assert module.judged_share(20.0, torch.device("cuda")) == 1
    assert module.judged_share(7200.0, CPU) == 1
    share = module.judged_share(20.0, CPU)
    monkeypatch.setattr(module, "VALIDATION_SHAPE", replace(module.VALIDATION_SHAPE, frames=(2, 2)))
    monkeypatch.setattr(module, "OBJECT_PX", 146)
    scenes = [len(module.held_out(CPU, 1e5, 8, None, share=each).truth) for each in (share, 0.5, 1.0)]
    assert scenes == [3, 4, 8]


def test_on_a_cpu_few_objects_are_drawn():
    assert sum(map(len, SceneStream(CPU, 1, object_px=48).pool.parts)) == stream_module.CPU_POOL
