"""Where passes begin in training."""

import copy
import math

import pytest
import torch

from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.training import starts as module
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.losses import relative_error, worsening
from bluesky_cdi.training.pretrain import PretrainConfig, scene_losses
from bluesky_cdi.training.starts import after_passes, after_rpie, after_steps, draw_start, near_truth
from bluesky_cdi.training.stream import SceneShape, SceneStream

SHAPE = SceneShape(16, 36, (9, 9), 3, 1.0)
CONFIG = PretrainConfig(model=UnrolledConfig(stages=2, channels=8, levels=2))


@pytest.fixture
def stream(monkeypatch):
    # A few steps of the physics do nothing for objects of several turns.
    monkeypatch.setattr("bluesky_cdi.training.objects.THICK_SHARE", 0.0)
    return SceneStream(torch.device("cpu"), 31, (1e5, 1e6), pool=8, object_px=48)


@pytest.fixture
def batch(stream):
    return stream.draw(SHAPE, exact=True)


@pytest.fixture
def net():
    torch.manual_seed(7)
    return UnrolledNet(CONFIG.model)


def errors(obj, batch):
    illumination = summed_illumination(batch.probe, batch.data)
    illuminated = (illumination > MEASURED_SHARE * peak_intensity(batch.probe)).to(illumination.dtype)
    return relative_error(obj, batch.truth, illuminated)


def test_physics_begins_at_vacuum_and_comes_nearer_to_the_truth(batch):
    vacuum = torch.ones_like(batch.truth)
    assert torch.equal(after_steps(batch, 0), vacuum)
    assert torch.equal(after_rpie(batch, 0), vacuum)
    assert errors(after_steps(batch, 10), batch).mean() < errors(vacuum, batch).mean()
    assert errors(after_rpie(batch, 10), batch).mean() < errors(vacuum, batch).mean()


def test_passes_in_a_row_begin_each_where_the_last_ended(net, batch):
    with torch.no_grad():
        first = net(batch.probe, batch.data)[-1]
        second = net(batch.probe, batch.data, first)[-1]
        assert torch.equal(after_passes(net, batch, 1), first)
        assert torch.equal(after_passes(net, batch, 2), second)
    assert not torch.equal(first, second)


def test_errors_of_the_truth_have_all_sizes(stream, batch, monkeypatch):
    monkeypatch.setattr(stream.draws, "uniform", lambda *shape, low, high: torch.full(shape, 0.5 * (low + high)))
    # No vacuum is mixed in then, and the size is the geometric mean of the least and the most.
    error = near_truth(batch, stream.draws) - batch.truth
    rms = error.abs().square().mean(dim=(1, 2)).sqrt()
    expected = math.sqrt(module.ERROR_SIZES[0] * module.ERROR_SIZES[1])
    torch.testing.assert_close(rms, torch.full((3,), expected), rtol=1e-4, atol=0)


def test_every_kind_is_drawn_and_none_asks_for_gradients(net, stream, batch, monkeypatch):
    seen = set()
    for name in ("after_steps", "after_rpie", "after_passes", "near_truth"):

        def noted(*args, name=name):
            seen.add(name)
            return torch.full_like(batch.truth, 3.0)

        monkeypatch.setattr(module, name, noted)
    starts = [draw_start(net, batch, stream.draws) for _ in range(60)]
    assert seen == {"after_steps", "after_rpie", "after_passes", "near_truth"}
    assert any(torch.equal(start, torch.ones_like(start)) for start in starts)
    # What an engine left beyond any transmission is cut.
    assert max(float(start.abs().max()) for start in starts) == pytest.approx(module.MOST_TRANSMISSION)
    seen.clear()
    for _ in range(60):
        draw_start(net, batch, stream.draws, labels=False)
    assert seen == {"after_steps", "after_rpie", "after_passes"}


def test_processes_that_train_together_draw_the_same_kind(net, batch, monkeypatch):
    for name in ("after_steps", "after_rpie", "after_passes", "near_truth"):
        monkeypatch.setattr(module, name, lambda *_, name=name: torch.full_like(batch.truth, len(name) / 100))
    one, other = (Draws(torch.device("cpu"), seed, decisions=5) for seed in (1, 2))
    for _ in range(20):
        assert torch.equal(draw_start(net, batch, one), draw_start(net, batch, other))


def test_the_loss_of_worse_objects_is_none_where_they_are_better():
    before = torch.tensor([0.1, 0.1, 0.4])
    after = torch.tensor([0.05, 0.1, 0.8], requires_grad=True)
    found = worsening(after, before)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, math.log(2)]))
    found.sum().backward()
    assert after.grad[0] == 0
    assert float(after.grad[2]) == pytest.approx(1 / 0.8)


def test_a_worse_object_than_the_start_costs_more(net, stream, batch, monkeypatch):
    def loss(start):
        monkeypatch.setattr("bluesky_cdi.training.pretrain.draw_start", lambda *_, **__: start)
        passed = [0.9 * torch.ones_like(batch.truth)], [batch.probe]
        monkeypatch.setattr(UnrolledNet, "solve", lambda *_: passed)
        return float(scene_losses(net, batch, CONFIG, copy.deepcopy(stream.draws))["truth"])

    assert loss(batch.truth) > loss(torch.ones_like(batch.truth)) + 0.1


def test_the_physics_loss_is_least_at_the_truth_whatever_is_assumed(net, stream, monkeypatch):
    # A probe far from the true one and positions beside the true ones are assumed.
    monkeypatch.setattr(stream.draws, "error", lambda most: most)
    batch = stream.draw(SHAPE)
    assert not torch.allclose(batch.probe, batch.true_probe)
    assert not torch.equal(batch.data.shift_px, batch.true_data.shift_px)
    reported, true = (probe.abs().square().sum(dim=(1, 2, 3)) for probe in (batch.probe, batch.true_probe))
    torch.testing.assert_close(reported, true)

    def loss(obj):
        monkeypatch.setattr(UnrolledNet, "solve", lambda *_: ([obj], [batch.probe]))
        monkeypatch.setattr("bluesky_cdi.training.pretrain.draw_start", lambda *_, **__: obj)
        return float(scene_losses(net, batch, CONFIG, copy.deepcopy(stream.draws))["physics"])

    of_assumed_probe = after_rpie(batch, 20)
    assert loss(batch.truth) < loss(of_assumed_probe)


def test_no_start_is_vacuum_bit_for_bit(net, batch):
    with torch.no_grad():
        none, vacuum = net(batch.probe, batch.data), net(batch.probe, batch.data, torch.ones_like(batch.truth))
    assert all(torch.equal(a, b) for a, b in zip(none, vacuum, strict=True))
