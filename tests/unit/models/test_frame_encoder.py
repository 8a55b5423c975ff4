"""The frame encoder: what it sees and what not, any number of frames of any size, and scans that lie elsewhere."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models import frame_encoder as module
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig, Shown, images_of, nearest, patches_of
from bluesky_cdi.models.frame_weights import load_frame_model, save_frame_model
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import save_weights
from bluesky_cdi.physics.propagators import AngularSpectrum
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.scans import simulated
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(
    patch=8, width=32, depth=2, heads=2, neighbours=3, decoder_width=24, decoder_depth=1, decoder_heads=2
)


def make_model():
    torch.manual_seed(1)
    model = MaskedFrameModel(SIZE).eval()
    # As after some training: the last layers begin at 0.
    for layer in (model.patterns.exit, model.objects.exit):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def make_scans(frames=6, scenes=2, size=32, seed=2, exact=True):
    stream = SceneStream(CPU, seed, (1e4, 1e5), pool=2, object_px=size + 32)
    return simulated(stream, SceneShape(size, size + 32, (frames, frames), scenes, 1.0), exact)


def outputs(model, scans, shown=None):
    with torch.no_grad():
        found = model(scans.probe, scans.data, shown)
    return found.encoded.tokens, found.log_rate, found.object


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (2, 32), (9, 32), (5, 20)])
def test_any_number_of_frames_of_any_size(frames, size):
    model, scans = make_model(), make_scans(frames, 2, size)
    tokens, log_rate, obj = outputs(model, scans)
    assert tokens.shape == (2 * frames, 2 + (-(-size // 8)) ** 2, 32)
    assert log_rate.shape == (2 * frames, size, size)
    assert obj.shape == scans.data.object_shape and obj.dtype == torch.complex64
    assert all(torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all() for x in (tokens, log_rate, obj))


def test_near_fields_and_several_modes():
    scans = make_scans()
    data = replace(scans.data, propagator=AngularSpectrum(32, 1e-7, 1e-10, 2e-4))
    tokens, *_ = outputs(make_model(), replace(scans, probe=scans.probe.repeat(1, 2, 1, 1), data=data))
    assert torch.isfinite(tokens).all()


def test_patches_are_cut_row_by_row_and_put_together_again():
    images = torch.randn(3, 2, 20, 20)
    patches = patches_of(images, 8)
    assert patches.shape == (3, 9, 2 * 64)
    assert torch.equal(patches[:, 1, :64].view(3, 8, 8), images[:, 0, :8, 8:16])
    assert torch.equal(images_of(patches, 20, 8), images)
    shown = Shown(torch.arange(2), torch.tensor([[1, 8], [0, 3]]))
    pixels = shown.pixels(20, 8)
    assert pixels.shape == (2, 20, 20) and pixels.sum(dim=(1, 2)).tolist() == [64 + 16, 64 + 64]
    assert pixels[0, :8, 8:16].all() and pixels[0, 16:, 16:].all() and pixels[1, 8:16, :8].all()


@pytest.mark.parametrize("saturation", [None, 50.0])
def test_what_is_hidden_never_leaks_into_the_input(saturation):
    model, scans = make_model(), make_scans(exact=False)
    data = replace(scans.data, saturation=saturation, mask=torch.rand(32, 32) > 0.1)
    scans = replace(scans, data=data)
    shown = draw_shown(scans, 8, Draws(CPU, 3), share=0.5)
    assert len(shown.frames) < len(data)
    visible = torch.zeros(len(data), 32, 32, dtype=torch.bool)
    visible[shown.frames] = data.propagator.to_working(shown.pixels(32, 8))
    assert 0.2 < visible.float().mean() < 0.6
    changed = torch.where(visible & data.mask, data.counts, 1e3 * torch.rand(data.counts.shape))
    other = replace(scans, data=replace(data, counts=changed))
    for before, after in zip(outputs(model, scans, shown), outputs(model, other, shown), strict=True):
        assert torch.equal(before, after)
    # A pixel that is shown does change them.
    place = tuple((visible & data.valid if saturation is None else visible & data.mask).nonzero()[0])
    changed[place] = 40.0 - changed[place].clamp_max(20)
    for before, after in zip(outputs(model, scans, shown), outputs(model, other, shown), strict=True):
        assert not torch.equal(before, after)


def test_a_scan_that_lies_elsewhere_is_the_same():
    model, scans = make_model(), make_scans()
    data, room = scans.data, torch.tensor([5, 3])
    shape = (data.object_shape[0], data.object_shape[1] + 9, data.object_shape[2] + 9)
    moved = replace(scans, data=replace(data, corner=data.corner + room, object_shape=shape))
    tokens, log_rate, obj = outputs(model, scans)
    tokens_there, log_rate_there, obj_there = outputs(model, moved)
    torch.testing.assert_close(tokens_there, tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_rate_there, log_rate, rtol=0, atol=1e-4)
    height, width = data.object_shape[1:]
    torch.testing.assert_close(obj_there[:, 5 : 5 + height, 3 : 3 + width], obj, rtol=0, atol=1e-4)


def test_scans_of_a_batch_know_nothing_of_each_other():
    model, scans = make_model(), make_scans(frames=5, scenes=2)
    alone = replace(
        scans,
        probe=scans.probe[:1],
        data=replace(scans.data[torch.arange(5)], object_shape=(1, *scans.data.object_shape[1:])),
    )
    for both, one in zip(outputs(model, scans), outputs(model, alone), strict=True):
        torch.testing.assert_close(both[: len(one)], one, rtol=0, atol=1e-4)


def test_frames_look_at_their_neighbours():
    model, scans = make_model(), make_scans(frames=8, scenes=1)
    neighbours, _ = nearest(scans.data, torch.zeros(8, dtype=torch.int64), 3)
    counts = scans.data.counts.clone()
    changed = int(neighbours[0, 0])
    counts[changed] = counts[changed].flip(0)
    before, after = outputs(model, scans)[0], outputs(model, replace(scans, data=replace(scans.data, counts=counts)))[0]
    moved = (before - after).abs().amax(dim=(1, 2)) > 0
    looking = (neighbours == changed).any(dim=1)
    assert looking[0] and moved[looking].all() and moved[changed]
    # There is one block in which frames look around.
    looking[changed] = True
    assert not moved[~looking].any()


def test_neighbours_are_the_nearest_of_the_same_scan(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 4)
    scans = make_scans(frames=7, scenes=3)
    place = scans.data.corner + scans.data.shift_px
    neighbours, displacement = nearest(scans.data, scans.data.scene, 3)
    for frame in range(21):
        inside = [other for other in range(21) if scans.data.scene[other] == scans.data.scene[frame] and other != frame]
        inside.sort(key=lambda other: float((place[other] - place[frame]).square().sum()))
        assert neighbours[frame].tolist() == inside[:3]
        torch.testing.assert_close(displacement[frame], place[neighbours[frame]] - place[frame], rtol=0, atol=1e-4)
    # With fewer frames than that the frame itself fills up.
    few, away = nearest(scans.data[torch.arange(2)], scans.data.scene[:2], 3)
    assert few[0, 0] == 1 and few[1, 0] == 0 and all(set(row.tolist()) <= {0, 1} for row in few)
    assert away[0, 1:].abs().sum() == 0 and few[0, 1:].tolist() == [0, 0]


def test_weights_on_disk(tmp_path):
    model, path = make_model(), tmp_path / "frames.encoder.safetensors"
    digest = save_frame_model(model, path, {"steps": 3})
    trained = load_frame_model(path)
    assert (trained.sha256, trained.record["steps"], trained.model.config) == (digest, 3, SIZE)
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.model.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    with pytest.raises(WeightsError, match=r"no frame encoder at .*bluesky-cdi pretrain"):
        load_frame_model(tmp_path / "none.encoder.safetensors")
    other = tmp_path / "net.safetensors"
    save_weights(UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=1)), other, {})
    with pytest.raises(WeightsError, match=r"holds no frame encoder .*of something else"):
        load_frame_model(other)


def test_the_shipped_size_fits_into_its_file():
    model = MaskedFrameModel()
    assert 3e6 < sum(each.numel() for each in model.encoder.parameters()) < 6e6
    assert 2 * sum(each.numel() for each in model.parameters()) < 16 * 2**20


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="a multiple of its heads"):
        FrameEncoderConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="positive whole numbers"):
        FrameEncoderConfig(depth=0)
