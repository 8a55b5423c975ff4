"""The supervised baseline: what it sees, and how its patches become an object."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.models.ptychonn import PtychoNN, PtychoNNConfig
from bluesky_cdi.training.stream import SceneShape, SceneStream


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return PtychoNN(PtychoNNConfig(channels=4)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch():
    stream = SceneStream(torch.device("cpu"), 4, (1e5, 1.1e5), pool=8, object_px=128)
    return stream.draw(SceneShape(32, 80, (9, 9), 2, 1.0), exact=True)


def test_it_has_the_published_size():
    """Three levels of two convolutions, and two decoders: 1.2 million parameters."""
    assert sum(p.numel() for p in PtychoNN().parameters()) == pytest.approx(1.2e6, rel=0.05)


def test_equal_patches_are_stitched_to_themselves(net, batch, monkeypatch):
    patch = torch.polar(torch.tensor(0.8), torch.tensor(-0.4))
    monkeypatch.setattr(PtychoNN, "patches", lambda self, probe, data: patch.expand(data.counts.shape))
    (obj,) = net(batch.probe, batch.data)
    assert obj.shape == (2, 80, 80)
    stitched = (obj - 1).abs() > 1e-6
    assert stitched.any() and not stitched.all()
    torch.testing.assert_close(obj[stitched], patch.expand(int(stitched.sum())))


def test_a_detector_that_counts_in_other_units_changes_nothing(net, batch):
    scaled = replace(batch.data, counts=40 * batch.data.counts)
    torch.testing.assert_close(net(40**0.5 * batch.probe, scaled)[0], net(batch.probe, batch.data)[0])


def test_each_frame_is_read_alone(net, batch):
    patches = net.patches(batch.probe, batch.data)
    assert patches.shape == batch.data.counts.shape
    alone = net.patches(batch.probe, batch.data[4:5])
    torch.testing.assert_close(alone[0], patches[4], rtol=1e-4, atol=1e-5)
    assert float(patches.abs().max()) <= 1


@pytest.mark.parametrize("size", [30, 32])
def test_any_size_of_frames(net, size):
    stream = SceneStream(torch.device("cpu"), 5, (1e3, 1e4), pool=8, object_px=96)
    odd = stream.draw(SceneShape(size, 64, (4, 4), 1, 1.0))
    (obj,) = net(odd.probe, odd.data)
    assert obj.shape == (1, 64, 64) and torch.isfinite(torch.view_as_real(obj)).all()


def test_masked_pixels_are_not_seen(net, batch):
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[3:9] = False
    wild = batch.data.counts.clone()
    wild[:, 3:9] = 1e6
    for counts in (batch.data.counts, wild):
        found = net(batch.probe, replace(batch.data, counts=counts, mask=mask))[0]
        expected = net(batch.probe, replace(batch.data, counts=batch.data.counts * mask))[0]
        torch.testing.assert_close(found, expected)
