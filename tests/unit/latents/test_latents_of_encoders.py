"""The projection of a frame encoder: found by the command, by its own checksum, and stable under half of the frames."""

import json

import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.latents.store import CLASS_TOKENS, find_projection
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import SHIPPED_ENCODER, load_frame_model, save_frame_model
from bluesky_cdi.reconstruction import latent_scenes
from bluesky_cdi.reconstruction.latent_scenes import class_tokens_of, embed_scenes
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(
    patch=8, width=16, depth=2, heads=1, neighbours=2, decoder_width=16, decoder_depth=1, decoder_heads=1
)


def few_scenes(device, number, seed):
    stream = SceneStream(device, seed, (1e4, 1e5), pool=2, object_px=40)
    for _ in range(number):
        batch = stream.draw(SceneShape(16, 40, (9, 9), 1, 1.0))
        yield batch.probe, batch.data


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "mine.encoder.safetensors"
    save_frame_model(MaskedFrameModel(SIZE), path, {})
    return path


def test_the_command_finds_one_and_lays_it_beside(encoder, capsys, monkeypatch):
    monkeypatch.setattr(latent_scenes, "draw_scenes", few_scenes)
    assert main(["fit-latents", str(encoder), "--scenes", "3", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 27 and told["weights"] == "mine.encoder"
    digest = load_frame_model(encoder).sha256
    found = find_projection({"embedding": CLASS_TOKENS, "encoder": str(encoder), "encoder_sha256": digest})
    assert found.weights_sha256 == digest and found.mean.shape == (16,)


def test_frames_of_a_half_are_described_with_their_half_alone(encoder):
    """What half of the scan's frames lack changes their tokens; a scene of one kind of frames is counted whole."""
    trained, scenes = load_frame_model(encoder), list(few_scenes(CPU, 2, 3))
    found = embed_scenes(class_tokens_of(trained), scenes, seed=0)
    assert found.scene.tolist() == [0] * 9 + [1] * 9
    probe, data = scenes[0]
    expected = class_tokens_of(trained)(probe, data, False)
    assert (found.embedding[:9] == expected).all()
    half = torch.isfinite(torch.from_numpy(found.again[:9])).all(dim=1).nonzero()[:, 0]
    assert len(half) == 4
    assert (found.again[:9][half] == class_tokens_of(trained)(probe, data[half], True)).all()
    assert (found.again[:9][half] != found.embedding[:9][half]).any()


def test_the_shipped_encoder_has_one():
    record = json.loads(SHIPPED_ENCODER.with_suffix(".json").read_text(encoding="utf-8"))
    source = {"embedding": CLASS_TOKENS, "encoder": "frames.encoder", "encoder_sha256": record["sha256"]}
    found = find_projection(source)
    assert found.record["weights"] == "frames.encoder" and found.mean.shape == (record["config"]["model"]["width"],)
