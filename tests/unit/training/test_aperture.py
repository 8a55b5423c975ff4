"""Decoders beyond the aperture: what they are given, what they may change, and that a seed repeats a training."""

import json
from dataclasses import replace

import pytest
import torch

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.aperture_decoder import ApertureDecoder, DecoderConfig, Discriminator, discriminator_loss
from bluesky_cdi.physics.forward import to_corner
from bluesky_cdi.physics.measured_aperture import inner_pixels, supported
from bluesky_cdi.training import aperture as module
from bluesky_cdi.training.aperture import ApertureTraining, load_decoders, make_example, train_decoders
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SIZE = DecoderConfig(channels=8, levels=2)
CONFIG = ApertureTraining(steps=3, photons=(1e5, 1e6), model=SIZE)


@pytest.fixture(autouse=True)
def tiny_scans(monkeypatch):
    monkeypatch.setattr(module, "CPU_SHAPE", SceneShape(16, 32, (4, 6), 2, 1.0))
    monkeypatch.setattr(module, "CPU_OBJECTS", 8)
    monkeypatch.setattr(module, "EPOCHS", (1, 2))
    monkeypatch.setattr(module, "WARM_UP", 1)


@pytest.fixture
def batch():
    return SceneStream(CPU, 3, (1e6, 1.1e6), 8, 32).draw(SceneShape(16, 32, (9, 9), 2, 1.0), exact=True)


def woken(seed=1):
    """Give a decoder that changes something."""
    torch.manual_seed(seed)
    decoder = ApertureDecoder(SIZE)
    torch.nn.init.normal_(decoder.net.exit.weight, std=0.1)
    return decoder


def test_no_hidden_pixel_reaches_the_decoder(batch):
    outside = ~to_corner(inner_pixels(16, 0.6))
    other = replace(batch, data=replace(batch.data, counts=torch.where(outside, 1e4, batch.data.counts)))
    assert not torch.equal(other.data.counts, batch.data.counts)
    one, same = make_example(batch, 0.6, 2), make_example(other, 0.6, 2)
    for name in ("object", "illumination", "support", "weight"):
        assert torch.equal(getattr(one, name), getattr(same, name)), name
    decoder = woken()
    assert torch.equal(one.decoded(decoder), same.decoded(decoder))
    inner = replace(batch, data=replace(batch.data, counts=torch.where(outside, batch.data.counts, 1e2)))
    assert not torch.equal(make_example(inner, 0.6, 2).object, one.object)


def test_a_decoder_adds_at_unsupported_frequencies_alone(batch):
    example, decoder = make_example(batch, 0.6, 2), woken()
    added = torch.fft.fft2(decoder(example.object, example.illumination, example.support))
    assert added.abs().max() > 0.1
    assert (added.abs() * (example.support > 1 - 1e-6)).max() < 1e-3 * added.abs().max()
    nothing = decoder(example.object, example.illumination, torch.ones_like(example.support))
    assert nothing.abs().max() < 1e-5


def test_an_untrained_decoder_adds_nothing(batch):
    example = make_example(batch, 0.6, 2)
    torch.testing.assert_close(example.decoded(ApertureDecoder(SIZE)), supported(example.object, example.support))


def test_a_discriminator_learns_to_tell_objects_apart():
    torch.manual_seed(2)
    net = Discriminator(SIZE)
    optimiser, light = torch.optim.Adam(net.parameters(), 2e-3), torch.ones(4, 32, 32)
    axis = torch.arange(32)
    waves = 1 + 0.3 * torch.exp(2j * torch.pi * axis / 8).expand(4, 32, 32)
    for _ in range(30):
        noise = 1 + 0.3 * torch.randn(4, 32, 32, dtype=torch.complex64)
        loss = discriminator_loss(net(waves, light), net(noise, light))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3 and net(waves, light).min() > 0 > net(noise, light).mean()


def test_the_same_seed_repeats_a_training_and_both_decoders_learn(tmp_path):
    first, again, other = (
        train_decoders(replace(CONFIG, seed=seed), CPU, tmp_path / f"{number}.safetensors")
        for number, seed in enumerate((1, 1, 2))
    )
    for name in (module.REGRESSION, module.ADVERSARIAL):
        states = [each[name].state_dict() for each in (first, again, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
        assert states[0]["net.exit.weight"].any()
    one, theirs = (first[name].state_dict() for name in (module.REGRESSION, module.ADVERSARIAL))
    assert any(not torch.equal(one[key], theirs[key]) for key in one)
    record = json.loads((tmp_path / "0.json").read_text())
    assert record["steps"] == 3 and record["curve"][-1]["step"] == 3


def test_files_that_hold_no_decoders_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no decoders at"):
        load_decoders(tmp_path / "absent.safetensors", CPU)
    path = tmp_path / "net.safetensors"
    module.save_tensors(woken().state_dict(), {"architecture": "canvas"}, path, {})
    with pytest.raises(WeightsError, match="holds no decoders"):
        load_decoders(path, CPU)


def test_a_training_that_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_losses", lambda found, _: {"object": found.abs().mean() * torch.nan})
    with pytest.raises(WeightsError, match="diverged before step 1 "):
        train_decoders(CONFIG, CPU, tmp_path / "no.safetensors")
