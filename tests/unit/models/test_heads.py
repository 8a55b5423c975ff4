"""Heads beside a network: how far they differ, and what their distributions are."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bluesky_cdi.models.heads import ErrorHeads, HeadsConfig, Predicted, VariationalConv
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet, encoded, look, without_mean_phase
from bluesky_cdi.physics.illuminated_frames import IlluminatedFrames
from bluesky_cdi.training.stream import SceneShape, SceneStream

SIZE = UnrolledConfig(stages=2, channels=8, levels=2)
SHAPE = (30, 33)


@pytest.fixture(scope="module")
def batch():
    stream = SceneStream(torch.device("cpu"), 2, (1e4, 1e5), pool=2, object_px=48)
    return stream.draw(SceneShape(16, 30, (5, 5), 2, 1.0))


def heads_of(members=3, dropout=0.2):
    """Heads with weights everywhere, also in the last layers."""
    torch.manual_seed(1)
    heads = ErrorHeads(HeadsConfig(members, dropout, SIZE)).requires_grad_(False)
    for name, parameter in heads.named_parameters():
        if "exit" in name and name.endswith("weight"):
            parameter.normal_(0, 0.05)
    return heads.eval()


def predicted(means, log_std=-3.0):
    """Say `means`, (K, 2), of a single pixel."""
    mean = torch.as_tensor(means)[:, None, :, None, None]
    return Predicted(mean, torch.full_like(mean, log_std))


@pytest.mark.parametrize("members", [1, 2, 3, 7])
def test_members_that_say_the_same_have_no_epistemic_part(members):
    said = torch.rand(2, generator=torch.Generator().manual_seed(3)) + 0.1
    epistemic, aleatoric = predicted(said.expand(members, 2)).variances()
    assert not epistemic.any()
    torch.testing.assert_close(aleatoric, torch.full_like(aleatoric, math.exp(-6)))


def test_the_spread_of_members_is_that_of_a_sample():
    rng = torch.Generator().manual_seed(4)
    said = torch.tensor([0.3, 0.05]) * torch.randn(2000, 2, generator=rng) + 1
    epistemic, _ = predicted(said).variances()
    torch.testing.assert_close(epistemic.flatten(), said.var(dim=0))
    torch.testing.assert_close(epistemic.flatten().sqrt(), torch.tensor([0.3, 0.05]), rtol=0.05, atol=0)


def test_phases_differ_on_the_circle():
    """At pi - 0.04 and 0.06 - pi members are 0.1 apart, and what they say is around pi."""
    found = predicted([[0.0, math.pi - 0.04], [0.0, 0.06 - math.pi]])
    epistemic, _ = found.variances()
    assert float(epistemic[0, 1]) == pytest.approx(0.1**2 / 2, rel=1e-4)
    assert float(found.bias()[0, 1]) == pytest.approx(0.01 - math.pi, abs=1e-5)
    # Turned by any angle they differ as much.
    turned, _ = predicted([[0.0, 0.96], [0.0, 1.06]]).variances()
    torch.testing.assert_close(turned, epistemic, rtol=1e-4, atol=1e-9)


def test_heads_begin_with_what_the_critic_sees(batch):
    torch.manual_seed(5)
    net, heads = UnrolledNet(SIZE).requires_grad_(False), heads_of()
    heads.begin_from(net.critic)
    levels, channels = heads.encode(batch.truth, batch.probe, batch.data)
    seen, _, support = look(batch.truth, batch.probe, IlluminatedFrames(batch.probe, batch.data, room=0))
    seen = without_mean_phase(seen, support)
    torch.testing.assert_close(channels, seen)
    padded = torch.nn.functional.pad(seen, (0, 2, 0, 2))
    critic = net.critic
    wanted = encoded(critic.entry, critic.encoder, critic.down, torch.nn.functional.pixel_unshuffle(padded, 2))
    for found, level in zip(levels, wanted, strict=True):
        # What they see besides has no weight.
        torch.testing.assert_close(found, level)
    found = heads.predict("ensemble", levels, (30, 30))
    assert found.mean.shape == found.log_std.shape == (3, 2, 2, 30, 30)


def test_the_mean_phase_of_an_object_changes_nothing(batch):
    heads = heads_of()
    (levels, _), (turned, _) = (heads.encode(obj, batch.probe, batch.data) for obj in (batch.truth, batch.truth * 1j))
    for level, other in zip(levels, turned, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-4)


def test_untrained_heads_foresee_no_error_of_any_size(batch):
    heads = ErrorHeads(HeadsConfig(2, 0.1, SIZE)).requires_grad_(False).eval()
    levels, _ = heads.encode(batch.truth, batch.probe, batch.data)
    for kind in ("ensemble", "dropout", "variational"):
        found = heads.predict(kind, levels, (30, 30))
        assert not found.mean.any()
        assert float(found.log_std.min()) == float(found.log_std.max()) == pytest.approx(-1.5, abs=0.1)


def test_dropout_repeats_with_its_seed(batch):
    heads = heads_of()
    levels, _ = heads.encode(batch.truth, batch.probe, batch.data)

    def means(seed):
        heads.reseed(seed)
        return heads.predict("dropout", levels, (30, 30)).mean

    assert torch.equal(means(1), means(1))
    assert not torch.equal(means(1), means(2))
    # The same weights each time: without channels switched off nothing differs.
    epistemic, _ = heads.predict("dropout", levels, (30, 30)).variances()
    assert epistemic.max() > 0
    plain = heads_of(dropout=0.0)
    epistemic, _ = plain.predict("dropout", levels, (30, 30)).variances()
    assert not epistemic.any()


def test_a_variational_layer_has_the_variance_of_its_weights():
    """Many draws of the weights, each used on all pixels, beside the variance that is told."""
    torch.manual_seed(6)
    conv = torch.nn.Conv2d(4, 3, 3, padding=1).requires_grad_(False)
    layer = VariationalConv(conv).requires_grad_(False)
    layer.log_std.normal_(-1.5, 0.5)
    image = torch.randn(1, 4, 6, 5)
    draws = []
    for _ in range(4000):
        weight = conv.weight + layer.log_std.exp() * torch.randn_like(conv.weight)
        draws.append(torch.nn.functional.conv2d(image, weight, conv.bias, padding=1))
    actual = torch.cat(draws).var(dim=0)
    torch.testing.assert_close(layer.variance(image)[0], actual, rtol=0.12, atol=0)
    assert torch.equal(layer.eval()(image), conv(image))
    in_training = torch.cat([layer.train()(image) for _ in range(4000)])
    torch.testing.assert_close(in_training.var(dim=0), actual, rtol=0.15, atol=0)
    torch.testing.assert_close(in_training.mean(dim=0), conv(image)[0], rtol=0, atol=0.15)


def test_a_variational_layer_tells_its_divergence():
    layer = VariationalConv(torch.nn.Conv2d(4, 3, 3, padding=1)).requires_grad_(False)
    wanted = kl_divergence(Normal(layer.mean.weight, layer.log_std.exp()), Normal(0.0, 1 / 6))
    torch.testing.assert_close(layer.divergence(), wanted.sum())


def test_sizes_that_no_heads_have_are_refused():
    for size in ({"members": 0}, {"dropout": 1.0}, {"dropout": -0.1}):
        with pytest.raises(ValueError, match="1 member or more and a dropout from 0 to below 1; got"):
            HeadsConfig(**size)
