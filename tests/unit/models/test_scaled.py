"""Stages that see the physics step in units of its local size, and change nothing where the frames ask for nothing."""

import math
from dataclasses import replace

import pytest
import torch

from bluesky_cdi.models.unrolled import HALVED_AT, LEAST_SIZE, SIZE_WINDOW, UnrolledConfig, UnrolledNet, local_size
from bluesky_cdi.training.stream import SceneShape, SceneStream

PLAIN = UnrolledConfig(stages=2, channels=16, levels=2)
SCALED = replace(PLAIN, scaled=True)


@pytest.fixture
def batch():
    stream = SceneStream(torch.device("cpu"), 5, (1e4, 1e5), pool=8, object_px=48)
    return stream.draw(SceneShape(16, 36, (6, 6), 2, 1.0), exact=True)


def learned(config, seed=2):
    """Give a network each of whose last layers has learned something."""
    torch.manual_seed(seed)
    net = UnrolledNet(config)
    for stage in net.stages:
        torch.nn.init.normal_(stage.exit.weight, std=0.1)
        torch.nn.init.normal_(stage.exit.bias, std=0.1)
    return net


class TestLocalSize:
    def test_of_a_step_under_full_light_is_its_root_mean_square(self):
        step = torch.full((1, 40, 40), 0.3 + 0.4j)
        inside = slice(SIZE_WINDOW // 2, -(SIZE_WINDOW // 2))
        size = local_size(step, torch.ones(1, 40, 40))[:, inside, inside]
        torch.testing.assert_close(size, torch.full_like(size, 0.5), rtol=1e-4, atol=0)

    def test_does_not_depend_on_how_much_of_the_step_the_light_supports(self):
        torch.manual_seed(0)
        step = torch.randn(1, 60, 60, dtype=torch.complex64)
        full = local_size(step, torch.ones(1, 60, 60))
        half = local_size(0.5 * step, torch.full((1, 60, 60), 0.5))
        torch.testing.assert_close(half, full, rtol=1e-3, atol=0)

    def test_where_no_light_fell_is_the_least(self):
        size = local_size(torch.zeros(1, 20, 20, dtype=torch.complex64), torch.zeros(1, 20, 20))
        torch.testing.assert_close(size, torch.full_like(size, LEAST_SIZE))

    def test_sees_no_further_than_its_window(self):
        step = torch.zeros(1, 60, 60, dtype=torch.complex64)
        step[0, 30, 30] = 1
        far = torch.ones(60, 60, dtype=torch.bool)
        near = slice(30 - SIZE_WINDOW // 2, 31 + SIZE_WINDOW // 2)
        far[near, near] = False
        size = local_size(step, torch.ones(1, 60, 60))[0]
        assert size[far].max() < 1.001 * LEAST_SIZE and size[~far].min() > 10 * LEAST_SIZE


def test_a_network_goes_on_into_a_scaled_one(batch):
    plain, scaled = learned(PLAIN), UnrolledNet(SCALED)
    scaled.go_on_from(plain)
    with torch.no_grad():
        stages = zip(plain(batch.probe, batch.data), scaled(batch.probe, batch.data), strict=True)
    for before, after in stages:
        assert float((after - before).abs().mean()) < 0.02 * float((before - 1).abs().mean())
    with pytest.raises(ValueError, match="attention, scaled may be more"):
        plain.go_on_from(scaled)


def test_a_scaled_network_goes_on_bit_for_bit(batch):
    earlier, later = learned(SCALED), learned(SCALED, seed=3)
    with torch.no_grad():
        earlier.log_halved_at.copy_(torch.tensor([-4.0, -3.0]))
    later.go_on_from(earlier)
    assert torch.equal(later(batch.probe, batch.data)[-1], earlier(batch.probe, batch.data)[-1])


def test_an_object_that_the_frames_are_content_with_stays(batch):
    """Frames without noise of the object itself: the physics asks for nothing, whatever the layers have learned."""
    patches = batch.true_data.patches(batch.truth)
    rate = batch.true_data.rate(batch.true_data.probes(batch.true_probe), patches)
    data = replace(batch.true_data, counts=rate)
    with torch.no_grad():
        plain = learned(PLAIN)(batch.true_probe, data, batch.truth)[-1]
        scaled = learned(SCALED)(batch.true_probe, data, batch.truth)[-1]
    assert float((plain - batch.truth).abs().max()) > 0.3
    assert float((scaled - batch.truth).abs().max()) < 0.01


def test_what_halves_a_change_is_learned(batch):
    net = learned(SCALED)
    net(batch.probe, batch.data)[-1].abs().sum().backward()
    assert float(net.log_halved_at.grad.abs().min()) > 0
    assert net.log_halved_at.tolist() == pytest.approx(2 * [math.log(HALVED_AT)])
