"""What stages share is computed once: the same numbers and gradients as computing it again."""

from importlib.util import find_spec

import pytest
import torch

from bluesky_cdi.models.unrolled import PRESETS, STEP_DAMPING, UnrolledConfig, UnrolledNet, run_unet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics import illuminated_frames
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity, peak_intensity
from bluesky_cdi.physics.illuminated_frames import (
    CPU_KEPT_BYTES,
    CPU_WAVE_BYTES,
    IlluminatedFrames,
    frames_at_once,
    object_step,
    room_for_probes,
)
from bluesky_cdi.training.stream import SceneShape, SceneStream

SIZE, OBJECT_SHAPE, FRAMES = 16, 40, 7
PROBES_BYTES = FRAMES * 2 * SIZE * SIZE * 16


def complex_(generator, *shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


@pytest.fixture
def scan():
    """Two scenes in double precision: probe (2, 2, N, N), three objects to step from, and the frames."""
    generator = torch.Generator().manual_seed(4)
    stream = SceneStream(torch.device("cpu"), 4, (1e3, 1e4), pool=8, object_px=64)
    data = stream.draw(SceneShape(SIZE, OBJECT_SHAPE, (FRAMES, FRAMES), 2, 1.0)).data
    probe = 5 * complex_(generator, 2, 2, SIZE, SIZE)
    return probe, complex_(generator, 3, 2, OBJECT_SHAPE, OBJECT_SHAPE), data


@pytest.mark.parametrize("room", [None, 0, PROBES_BYTES // 2, PROBES_BYTES])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_step_after_step_is_each_step_alone(scan, room, chunk):
    probe, grids, data = scan
    frames = IlluminatedFrames(probe, data, chunk, room)
    for obj in grids:
        for shared, alone in zip(frames.step(obj), object_step(obj, probe, data), strict=True):
            torch.testing.assert_close(shared, alone, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("room", [None, 0, PROBES_BYTES // 2])
@pytest.mark.parametrize("subsets", [2, 3, FRAMES])
def test_subsets_are_every_so_manieth_frame_and_together_all(scan, room, subsets):
    probe, grids, data = scan
    frames = IlluminatedFrames(probe, data, chunk=2, room=room, subsets=subsets)
    assert frames.subsets == subsets
    for obj in grids:
        for subset in reversed(range(subsets)):
            alone = object_step(obj, probe, data[subset::subsets])
            for found, expected in zip(frames.step_of_subset(obj, subset), alone, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-9)
        for found, expected in zip(frames.step(obj), object_step(obj, probe, data), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-9)


def test_the_step_is_the_sum_over_frames(scan):
    """Against the formula, frame by frame, from each frame's own probe."""
    probe, (obj, *_), data = scan
    probes, patches = data.probes(probe), data.patches(obj)
    for mode in range(2):
        shifted = torch.fft.fft2(probe[data.scene, mode])
        frequency = torch.fft.fftfreq(SIZE, dtype=torch.float64)
        shift = data.shift_px.double()
        angle = shift[:, 0, None, None] * frequency[:, None] + shift[:, 1, None, None] * frequency
        expected = torch.fft.ifft2(shifted * torch.exp(-2j * torch.pi * angle)) * data.flux[:, None, None].sqrt()
        torch.testing.assert_close(probes[:, mode], expected, rtol=1e-5, atol=1e-5)
    step, _ = data.exit_wave_step(probes, patches)
    change = (probes.conj() * step).sum(dim=1)
    numerator, illumination = IlluminatedFrames(probe, data).step(obj)
    torch.testing.assert_close(numerator, accumulate(change, data.corner, data.object_shape, data.scene))
    torch.testing.assert_close(illumination, accumulate(intensity(probes), data.corner, data.object_shape, data.scene))


@pytest.mark.parametrize("room", [0, PROBES_BYTES])
def test_probes_are_kept_as_far_as_there_is_room(scan, room, monkeypatch):
    probe, grids, data = scan
    frames = IlluminatedFrames(probe, data, chunk=2 * FRAMES, room=2 * room)
    shifted, original = [], Diffraction.probes
    monkeypatch.setattr(Diffraction, "probes", lambda self, p: shifted.append(1) or original(self, p))
    for obj in grids:
        frames.step(obj)
    assert len(shifted) == (1 if room else 3)


@pytest.mark.parametrize("room", [0, PROBES_BYTES])
def test_gradients_go_through_what_is_shared(scan, room):
    probe, (obj, *_), data = scan

    def gradients(step):
        inputs = obj.clone().requires_grad_(), probe.clone().requires_grad_()
        image = inputs[0]
        for _ in range(3):
            numerator, illumination = step(image, inputs[1])
            image = image + numerator / (illumination + 1)
        return torch.autograd.grad(torch.view_as_real(image).square().sum(), inputs)

    shared = []

    def together(image, p):
        shared[:] = shared or [IlluminatedFrames(p, data, chunk=4, room=room)]
        return shared[0].step(image)

    alone = gradients(lambda image, p: object_step(image, p, data))
    for found, expected in zip(gradients(together), alone, strict=True):
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def separate_stages(net, probe, data):
    """The network's definition, every stage by itself."""
    obj = torch.ones(data.object_shape, dtype=probe.dtype)
    memory = torch.zeros(data.object_shape[0], net.config.memory, *data.object_shape[1:])
    damping, steps = STEP_DAMPING * peak_intensity(probe), net.config.steps
    for number, unet in enumerate(net.stages):
        sizes = net.step_size[number * steps : (number + 1) * steps]
        for size in sizes[:-1]:
            numerator, illumination = object_step(obj, probe, data, chunk=3)
            obj = obj + size * numerator / (illumination + damping)
        numerator, illumination = object_step(obj, probe, data, chunk=3)
        step, support = numerator / (illumination + damping), illumination / (illumination + damping)
        seen = [obj.real - 1, obj.imag, step.real, step.imag, support, torch.log10(1 + illumination) / 3]
        change, _ = run_unet(unet, torch.cat([torch.stack(seen, dim=1), memory], dim=1))
        memory = change[:, 2:]
        obj = obj + sizes[-1] * step + support * torch.complex(change[:, 0], change[:, 1])
    return obj


def small_batch(seed=8):
    stream = SceneStream(torch.device("cpu"), seed, (1e4, 1.001e4), pool=8, object_px=128)
    return stream.draw(SceneShape(32, 64, (9, 9), 2, 1.0))


def test_the_trained_network_gives_the_image_of_separate_stages():
    batch, net = small_batch(), load_weights().net
    torch.testing.assert_close(
        net(batch.probe, batch.data)[-1], separate_stages(net, batch.probe, batch.data), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_training_gets_the_gradients_of_separate_stages(steps):
    torch.manual_seed(1)
    batch, net = small_batch(), UnrolledNet(UnrolledConfig(stages=3, steps=steps, channels=8, levels=2))
    with torch.no_grad():
        net.step_size.copy_(torch.linspace(0.4, 1.2, 3 * steps))
    learning = [net.step_size, *net.stages.parameters()]
    gradients = [
        torch.autograd.grad((image - batch.truth).abs().square().mean(), learning)
        for image in (net(batch.probe, batch.data)[-1], separate_stages(net, batch.probe, batch.data))
    ]
    assert sum(float(g.abs().sum()) for g in gradients[1]) > 0
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize(("modes", "size"), [(1, 64), (3, 64), (1, 512), (8, 1024)])
def test_a_chunk_of_waves_fits_its_bound_or_is_one_frame(modes, size):
    probe = torch.zeros(1, 1, 1, 1, dtype=torch.complex64).expand(5, modes, size, size)
    number = frames_at_once(probe)
    assert number == 1 or number * modes * size**2 * 8 <= CPU_WAVE_BYTES
    assert (number + 1) * modes * size**2 * 8 > CPU_WAVE_BYTES


@pytest.mark.skipif(find_spec("triton") is not None, reason="needs an installation without Triton")
def test_kernels_that_cannot_run_are_left_alone_with_a_warning(monkeypatch, caplog):
    assert not illuminated_frames.has_triton()
    monkeypatch.setattr(illuminated_frames, "find_spec", lambda name: name)
    illuminated_frames.has_triton.cache_clear()
    try:
        assert not illuminated_frames.has_triton()
    finally:
        illuminated_frames.has_triton.cache_clear()
    assert "Triton is installed but doesn't run here" in caplog.text and "triton" in caplog.text


def test_room_for_probes_is_bounded():
    assert room_for_probes(torch.device("cpu")) == CPU_KEPT_BYTES


def test_presets_are_networks_of_their_size():
    sizes = {name: sum(p.numel() for p in UnrolledNet(config).stages.parameters()) for name, config in PRESETS.items()}
    assert load_weights().net.config == PRESETS["small"]
    assert sizes["small"] < sizes["large"]
