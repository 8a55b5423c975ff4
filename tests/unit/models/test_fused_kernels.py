"""The kernels that a GPU with Triton runs, against the same formulas with tensors. Skipped elsewhere."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.models.unrolled import ResidualBlock
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics import illuminated_frames
from bluesky_cdi.training.stream import SceneShape, SceneStream

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and illuminated_frames.has_triton()), reason="needs a GPU with Triton"
)


def draw(size=64, frames=9, scenes=3, seed=5):
    stream = SceneStream(torch.device("cuda"), seed, (1e4, 1e5), pool=8, object_px=256)
    return stream.draw(SceneShape(size, size + 37, (frames, frames), scenes, 1.0))


def both(monkeypatch, run):
    """With the kernels and without."""
    calls = []
    from bluesky_cdi.physics import fused

    original = fused.add_step
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(fused, "add_step", lambda *args: calls.append(1) or original(*args))
        quick = run()
    assert calls, "the kernels were not used"
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(illuminated_frames, "_fuses", lambda *args: False)
        patch.setattr("bluesky_cdi.models.unrolled.has_triton", lambda: False)
        slow = run()
    return quick, slow


@pytest.mark.parametrize("kind", ["plain", "one scene", "masked", "saturated", "background", "odd size", "views"])
@pytest.mark.parametrize("modes", [1, 3])
def test_steps_agree(monkeypatch, kind, modes):
    batch = draw(size=50 if kind == "odd size" else 64)
    data, size = batch.data, batch.probe.shape[-1]
    first = batch.probe[:, :1]
    probe = torch.cat([first, 0.3j * first.roll(5, -1), 0.2 * first.flip(-1)], dim=1)[:, :modes]
    data = replace(data, mask=None)
    obj = batch.truth
    if kind == "one scene":
        own = data[data.scene == 1]
        data = replace(own, scene=None, flux=None, object_shape=(1, *own.object_shape[1:]))
        probe, obj = probe[1:2], obj[1:2]
    elif kind == "masked":
        data = replace(data, mask=torch.rand(size, size, device="cuda") > 0.3)
    elif kind == "saturated":
        data = replace(data, saturation=float(data.counts.max()) / 2, mask=torch.rand(size, size, device="cuda") > 0.3)
    elif kind == "background":
        data = replace(data, background=0.7)
    elif kind == "views":
        obj = obj.conj().transpose(-1, -2)
        data = replace(data, counts=data.counts.transpose(-1, -2))
    for quick, slow in zip(
        *both(monkeypatch, lambda: illuminated_frames.object_step(obj, probe, data, 10)), strict=True
    ):
        assert float((quick - slow).abs().max()) < 2e-5 * float(slow.abs().max())


def test_images_of_the_trained_network_agree(monkeypatch):
    batch, net = draw(frames=49), load_weights(device="cuda").net
    quick, slow = both(monkeypatch, lambda: net(batch.probe, batch.data)[-1])
    # The U-Nets compute in bf16, whose rounding five stages carry on.
    assert float((quick - slow).norm() / (slow - 1).norm()) < 0.02


@pytest.mark.parametrize("channels", [8, 32, 48, 96])
def test_channels_are_normalised_alike(monkeypatch, channels):
    torch.manual_seed(2)
    block = ResidualBlock(channels).cuda()
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    image = (3 + 2 * torch.randn(2, channels, 231, 117, device="cuda")).requires_grad_()
    asked = torch.randn_like(image)

    def normalised():
        found = block._normalised(image)
        return found.detach(), *torch.autograd.grad(found, (image, block.norm.weight, block.norm.bias), asked)

    quick = normalised()
    monkeypatch.setattr("bluesky_cdi.models.unrolled.has_triton", lambda: False)
    for found, expected in zip(quick, normalised(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_gradients_take_the_way_through_tensors():
    batch = draw()
    obj = batch.truth.clone().requires_grad_()
    numerator, _ = illuminated_frames.object_step(obj, batch.probe, batch.data)
    (gradient,) = torch.autograd.grad(numerator.abs().square().sum(), obj)
    assert float(gradient.abs().sum()) > 0
