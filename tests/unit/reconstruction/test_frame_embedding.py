"""Class tokens and radial profiles as embeddings: the same whatever the order and place, once a frame, by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import Config, LatentsConfig, ReconstructorConfig
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.latents import store
from bluesky_cdi.latents.fitting import SceneEmbeddings, fit_projection
from bluesky_cdi.latents.store import CLASS_TOKENS, RADIAL_PROFILE, made_by
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import TrainedFrameModel, load_frame_model, save_frame_model
from bluesky_cdi.reconstruction.frame_embedding import ClassTokens, frame_embedding
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_guess import first_probe
from bluesky_cdi.reconstruction.uncertainty import UncertaintyEstimate, radial_profile
from bluesky_cdi.training.pretraining.scans import simulated
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SIZE = FrameEncoderConfig(
    patch=8, width=16, depth=2, heads=2, neighbours=3, decoder_width=8, decoder_depth=1, decoder_heads=1
)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    return TrainedFrameModel(MaskedFrameModel(SIZE).eval().requires_grad_(False), "some.encoder", "its checksum", {})


@pytest.fixture(scope="module")
def scan():
    """Frames of one scan; places on a grid, so that some have neighbours that are equally far."""
    stream = SceneStream(CPU, 2, (1e4, 1e5), pool=2, object_px=64)
    made = simulated(stream, SceneShape(32, 64, (9, 9), 1, 1.0), True)
    corner = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), dim=-1).reshape(9, 2) * 10
    data = replace(made.data, corner=corner.to(made.data.corner), shift_px=torch.zeros(9, 2))
    return made.probe, data


def everyone(data):
    return torch.arange(len(data))


class TestClassTokens:
    def test_they_are_those_of_the_encoder(self, trained, scan):
        probe, data = scan
        expected = trained.model.encoder(probe, data).class_tokens
        assert torch.equal(ClassTokens(trained)(probe, data, everyone(data)), expected)

    def test_the_order_of_frames_changes_nothing(self, trained, scan):
        probe, data = scan
        tokens, order = ClassTokens(trained), torch.randperm(9, generator=torch.Generator().manual_seed(4))
        expected = tokens(probe, data, everyone(data))
        assert torch.equal(tokens(probe, data[order], everyone(data)), expected[order])
        # Ties are there: the encoder alone takes whichever of equal neighbours comes first.
        assert not torch.equal(trained.model.encoder(probe, data[order]).class_tokens, expected[order])

    def test_a_scan_that_lies_elsewhere_is_the_same(self, trained, scan):
        probe, data = scan
        moved = replace(data, corner=data.corner + torch.tensor([7, 40]), object_shape=(1, 200, 200))
        tokens = ClassTokens(trained)
        assert torch.equal(tokens(probe, moved, everyone(data)), tokens(probe, data, everyone(data)))

    def test_of_frames_that_are_not_wanted_only_neighbours_matter(self, trained, scan):
        probe, data = scan
        tokens, corner = ClassTokens(trained), torch.tensor([0])
        expected = tokens(probe, data, corner)
        counts = data.counts.clone()
        counts[8] += 100  # at the far corner
        assert torch.equal(tokens(probe, replace(data, counts=counts), corner), expected)
        counts[1] += 100
        assert not torch.allclose(tokens(probe, replace(data, counts=counts), corner), expected)

    def test_few_at_a_time_are_as_all_at_once(self, trained, scan, monkeypatch):
        from bluesky_cdi.models import frame_encoder

        probe, data = scan
        expected = ClassTokens(trained)(probe, data, everyone(data))
        monkeypatch.setattr(frame_encoder, "AROUND", 2)
        torch.testing.assert_close(ClassTokens(trained)(probe, data, everyone(data)), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("frames", [1, 2])
    def test_fewer_frames_than_neighbours(self, trained, scan, frames):
        probe, data = scan
        found = ClassTokens(trained)(probe, data[torch.arange(frames)], torch.arange(frames))
        assert found.shape == (frames, 16) and torch.isfinite(found).all()


class TestByName:
    def test_of_the_configuration(self, trained, scan, tmp_path):
        probe, data = scan
        path = tmp_path / "mine.encoder.safetensors"
        save_frame_model(trained.model, path, {})
        made = frame_embedding(LatentsConfig(embedding="class tokens", encoder=str(path)), "cpu")
        assert made.source["embedding"] == CLASS_TOKENS and made.source["encoder"] == str(path)
        assert made.source["encoder_sha256"] == load_frame_model(path).sha256
        profile = frame_embedding(LatentsConfig(embedding="radial profile"), "cpu")
        assert profile.source == {"embedding": RADIAL_PROFILE}
        assert torch.equal(profile(probe, data, torch.tensor([3, 1])), radial_profile(data.counts)[[3, 1]])
        assert frame_embedding(LatentsConfig(), "cpu") is None

    def test_an_encoder_that_is_not_there(self):
        with pytest.raises(WeightsError, match="no weights at"):
            frame_embedding(LatentsConfig(embedding="class tokens", encoder="none.safetensors"), "cpu")

    @pytest.mark.parametrize("reconstructor", [{"name": "lsqml"}, {"uncertainty": "photon noise"}])
    def test_a_critic_that_is_not_there(self, reconstructor):
        with pytest.raises(ValueError, match="only the reconstructor pinn has one"):
            Config.model_validate({"latents": {"embedding": "critic"}, "reconstructor": reconstructor})


class Counting:
    """Counts how often each frame was described, and tells the probe's first number."""

    def __init__(self):
        self.source, self.asked = {"embedding": "counting"}, []

    def __call__(self, probe, data, wanted):
        self.asked.append(wanted.tolist())
        return probe.real.flatten()[:1].expand(len(wanted), 2)


class TestOnceAFrame:
    @pytest.fixture
    def known(self, scan):
        counting = Counting()
        metrics = FrameMetrics(CPU, counting)
        metrics.make_room(20)
        probe, data = scan

        def describe(rows, value):
            own = torch.zeros(9, dtype=torch.bool)
            own[: len(rows)] = True
            found = UncertaintyEstimate(torch.ones(64, 64), torch.ones(64, 64), torch.zeros(9, 3))
            metrics.describe(np.asarray(rows), found, torch.full_like(probe, value), data, own)

        return metrics, counting, describe

    def test_with_the_probe_of_the_first(self, known):
        metrics, counting, describe = known
        describe([0, 1, 2], 1.0)
        describe([0, 1, 2, 5], 2.0)
        assert counting.asked == [[0, 1, 2], [3]]
        assert metrics.embedding[[0, 1, 2, 5], 0].tolist() == [1.0] * 4
        assert metrics.known[[0, 1, 2, 5]].all() and not metrics.known[3]

    def test_again_where_a_frame_is_replaced(self, known):
        metrics, counting, describe = known
        describe([0, 1, 2], 1.0)
        metrics.forget(np.array([1]))
        describe([0, 1, 2], 1.0)
        assert counting.asked[1] == [1]

    def test_again_under_another_assumed_probe(self, known):
        metrics, counting, describe = known
        describe([0, 1, 2], 1.0)
        metrics.assume_other_probe(np.array([1, 2]))
        describe([0, 1, 2], 3.0)
        assert counting.asked[1] == [1, 2]
        assert metrics.embedding[:3, 0].tolist() == [1.0, 3.0, 3.0]
        describe([0, 1, 2], 4.0)
        assert len(counting.asked) == 2

    def test_what_predicts_errors_describes_each_time(self, scan):
        metrics, (probe, data) = FrameMetrics(CPU), scan
        metrics.make_room(9)
        own = torch.tensor([True, False, True] + [False] * 6)
        for value in (1.0, 2.0):
            found = UncertaintyEstimate(torch.ones(64, 64), torch.ones(64, 64), torch.full((9, 3), value))
            metrics.describe(np.array([4, 6]), found, probe, data, own)
        assert metrics.embedding[[4, 6]].tolist() == [[2.0] * 3] * 2


class TestInARun:
    def test_a_reconstructor_describes_its_frames_by_class_tokens(self, trained, scene, frames):
        """Frames of several steps keep what they had; the source says whose they are, for the projection."""
        reconstructor = PtychoReconstructor(
            scene.grid,
            first_probe(scene.geometry, scene.config),
            ReconstructorConfig(name="rpie", refine_iterations=1),
            embedding=ClassTokens(trained),
        )
        reconstructor.add(frames[:12])
        first = reconstructor.step(60.0)
        reconstructor.add(frames[12:16])
        second = reconstructor.step(60.0)
        assert first.embedding.shape == (12, 16) and second.embedding.shape == (16, 16)
        np.testing.assert_array_equal(second.embedding[:12], first.embedding)
        assert np.ptp(second.embedding, axis=0).all() and np.isfinite(second.novelty).all()
        assert made_by(second.source) == ("its checksum", CLASS_TOKENS)


class TestProjection:
    def test_it_is_found_beside_an_encoder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
        rng, path = np.random.default_rng(0), tmp_path / "mine.encoder.safetensors"
        embedding = rng.normal(size=(400, 12))
        made = SceneEmbeddings(embedding, embedding + 0.1 * rng.normal(size=(400, 12)), np.repeat(np.arange(8), 50))
        store.save_projection(store.path_beside(path), fit_projection(made, made, "of the encoder"), {})
        source = {"embedding": CLASS_TOKENS, "encoder": str(path), "encoder_sha256": "of the encoder"}
        # The network's own checksum has no part in it.
        assert store.find_projection({**source, "weights_sha256": "a network"}).weights_sha256 == "of the encoder"
        assert store.find_projection({**source, "encoder_sha256": "another"}) is None
        assert store.find_projection({**source, "weights_sha256": "of the encoder", "embedding": "critic"}) is None
