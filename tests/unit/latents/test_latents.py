"""Projections, groups and maps of frames, on clouds and frames whose structure is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, WeightsError
from bluesky_cdi.latents import (
    cluster_frames,
    find_projection,
    known_of_runs,
    latent_columns,
    latents_of,
    load_projection,
    paint_frames,
    projection_of_run,
    representatives,
    save_projection,
    store,
)
from bluesky_cdi.latents.fitting import SceneEmbeddings, fit_projection, stability
from bluesky_cdi.latents.store import CRITIC
from bluesky_cdi.protocols import Estimate

D, PER_SCENE = 12, 30
SPREADS = np.array([1.0, 0.6, 0.4, *[0.1] * (D - 3)])
SOURCE = {"weights_sha256": "of the weights", "embedding": CRITIC}


def scenes(seed, number=60, shift=0.0, middles=None):
    """Scenes whose middles lie far apart along the last direction, and whose frames differ along the first ones."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(number), PER_SCENE)
    middles = 20 * rng.normal(size=(number, 1)) if middles is None else middles
    embedding = (middles * np.eye(D)[-1])[scene] + SPREADS * rng.normal(size=(len(scene), D)) + shift * np.eye(D)[1]
    return SceneEmbeddings(embedding, embedding + 0.05 * rng.normal(size=embedding.shape), scene)


@pytest.fixture(scope="module")
def projection():
    return fit_projection(scenes(1), scenes(2), "of the weights")


def estimate_of(embedding, **changes):
    n, side = len(embedding), 24
    rng = np.random.default_rng(4)
    return replace(
        Estimate(
            n_frames=n,
            object=np.ones((side, side), np.complex64),
            origin_m=(0.0, 0.0),
            pixel_m=1e-8,
            probe=np.ones((1, 8, 8), np.complex64),
            std_amplitude=np.ones((side, side), np.float32),
            std_phase_rad=np.ones((side, side), np.float32),
            coverage=np.ones((side, side), np.float32),
            frame_seq_nums=np.arange(1, n + 1),
            positions_m=1e-8 * rng.uniform(4, 19, (n, 2)),
            embedding=np.asarray(embedding, np.float32),
            frame_uncertainty=np.ones(n, np.float32),
            residual=np.ones(n, np.float32),
            novelty=np.ones(n, np.float32),
            source=SOURCE,
        ),
        **changes,
    )


@pytest.fixture
def shipped(projection, tmp_path, monkeypatch):
    """The projection, where those of shipped weights lie."""
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    path = tmp_path / "some.latents.npz"
    return path, save_projection(path, projection, {"seed": 1})


class TestProjection:
    def test_is_linear(self, projection):
        a, b = np.random.default_rng(0).normal(size=(2, 5, D))
        of_mean = projection.latents((a + b) / 2)
        assert np.allclose(of_mean, (projection.latents(a) + projection.latents(b)) / 2)

    def test_axes_are_those_along_which_frames_of_a_scene_differ(self, projection):
        unit = projection.axes / np.linalg.norm(projection.axes, axis=0)
        assert np.allclose(abs(unit[:3, :3]), np.eye(3), atol=0.1)
        latents = projection.latents(scenes(3).embedding)
        spread = np.std(latents.reshape(-1, PER_SCENE, latents.shape[1]), axis=1).mean(axis=0)
        # In units of how far they move when they are read again.
        assert spread[:3] == pytest.approx(np.array([1, 0.6, 0.4]) / 0.05, rel=0.1)

    def test_colours_of_a_frame_are_the_same_whatever_else_its_run_holds(self, projection):
        first, second = scenes(5).embedding[:40], scenes(6).embedding[:40]
        together = projection.colours(projection.latents(np.concatenate([first, second])))
        assert np.array_equal(projection.colours(projection.latents(first)), together[:40])
        assert together.min() >= 0
        assert together.max() <= 1
        own = projection_of_run(first)
        both = projection_of_run(np.concatenate([first, second]))
        assert not np.allclose(own.colours(own.latents(first)), both.colours(both.latents(first)))

    def test_other_embeddings_are_refused(self, projection):
        with pytest.raises(WeightsError, match=r"takes embeddings of 12 values; those of shape \(3, 16\)"):
            projection.latents(np.zeros((3, 16)))

    def test_p_values_are_uniform_on_frames_of_known_kinds(self, projection):
        """The middles of these scenes are those of the known ones, so frames are independent: binomial bounds."""
        middles = np.zeros((60, 1))
        known, others, new = (scenes(seed, middles=middles) for seed in (1, 2, 7))
        p = (found := fit_projection(known, others, "of the weights")).p_values(found.latents(new.embedding))
        assert p.min() > 0
        for level in (0.01, 0.05, 0.2, 0.5):
            # Of the new frames, and of the table.
            bound = 4 * np.sqrt(level * (1 - level) * (1 / len(p) + 1 / len(others.scene)))
            assert abs((p <= level).mean() - level) < bound

    def test_frames_of_an_unknown_kind_are_told(self, projection):
        assert (projection.p_values(projection.latents(scenes(8, 20, shift=8.0).embedding)) <= 0.01).mean() > 0.95

    def test_that_of_a_run_says_nothing_of_how_usual_frames_are(self):
        own = projection_of_run(scenes(9).embedding)
        assert not own.is_fixed
        with pytest.raises(WeightsError, match="knows no other frames"):
            own.p_values(own.latents(scenes(9).embedding))

    @pytest.mark.parametrize(("n", "d"), [(0, 6), (1, 6), (2, 6), (5, 2), (4, 1)])
    def test_that_of_a_few_frames(self, n, d):
        embedding = np.random.default_rng(n).normal(size=(n, d))
        own = projection_of_run(embedding)
        latents = own.latents(embedding)
        assert latents.shape == (n, min(8, d))
        assert np.isfinite(own.colours(latents)).all()


class TestKnownRuns:
    """Frames beside those of past runs in place of simulated scenes."""

    def test_another_run_of_the_kind_is_usual_and_one_of_another_kind_is_not(self):
        def run(seed, shift=0.0):
            return np.random.default_rng(seed).normal(size=(400, 3)) + shift

        known = known_of_runs([run(seed) for seed in range(5)])
        p = known.p_values(run(9))
        for level in (0.05, 0.2, 0.5):
            assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level / 400))
        assert (known.p_values(run(9, shift=6.0)) <= 0.01).mean() > 0.99

    def test_two_runs_do_not_say_how_much_runs_differ(self):
        with pytest.raises(FrameError, match="from 3 or more of them; 2 came"):
            known_of_runs([np.zeros((9, 3))] * 2)


def test_stability_is_the_ratio_of_moves_to_differences():
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(40), 50)
    values = rng.normal(size=(len(scene), 3))
    again = values + 0.2 * rng.normal(size=values.shape)
    again[::2] = np.nan
    # Two frames differ by a vector of variance 2 a component (less, as 25 show it), a frame moves by one of 0.04.
    expected = 0.2 / np.sqrt(2 * 24 / 25)
    assert np.sqrt(np.mean(np.square(stability(values, again, scene)))) == pytest.approx(expected, rel=0.05)


class TestStore:
    def test_round_trip(self, projection, shipped):
        path, digest = shipped
        loaded = load_projection(path)
        assert loaded.sha256 == digest
        assert loaded.record["seed"] == 1
        assert loaded.weights_sha256 == "of the weights"
        embedding = scenes(3).embedding
        latents = projection.latents(embedding)
        assert np.allclose(loaded.latents(embedding), latents, atol=1e-4)
        assert np.allclose(loaded.p_values(latents), projection.p_values(latents), atol=0.01)

    @pytest.mark.usefixtures("shipped")
    @pytest.mark.parametrize(
        "source",
        [
            {},
            {**SOURCE, "weights_sha256": "others"},
            {**SOURCE, "embedding": "radial profile"},
            {"weights_sha256": SOURCE["weights_sha256"]},
        ],
        ids=["no network", "other weights", "another embedding", "an earlier version"],
    )
    def test_only_embeddings_of_its_weights_have_it(self, source):
        assert find_projection(SOURCE) is not None
        assert find_projection(source) is None

    def test_of_own_weights_it_lies_beside_them(self, projection, tmp_path, monkeypatch):
        monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
        weights = tmp_path / "mine.safetensors"
        save_projection(store.path_beside(weights), replace(projection, weights_sha256="mine"), {})
        source = {"weights_sha256": "mine", "embedding": CRITIC, "settings": {"weights": str(weights)}}
        assert find_projection(source).weights_sha256 == "mine"

    def test_a_damaged_one_is_refused_and_costs_no_result(self, shipped, caplog):
        path, _ = shipped
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(WeightsError, match="is missing or damaged: its SHA-256"):
            find_projection(SOURCE)
        columns = latent_columns(estimate_of(scenes(1).embedding[:20]))
        assert "written without latents" in caplog.text
        assert np.isnan(columns.map).all()
        assert (columns.of_frames["cluster"] == -1).all()

    def test_embeddings_that_are_not_finite_cost_no_result(self, caplog):
        columns = latent_columns(replace(estimate_of(np.full((20, 16), np.nan)), source={}))
        assert "written without latents" in caplog.text
        assert np.isnan(columns.map).all() and columns.of_frames["latents"].shape == (20, 8)

    def test_without_its_record_it_is_refused(self, shipped):
        shipped[0].with_suffix(".json").write_text(json.dumps([]))
        with pytest.raises(WeightsError, match="travel together"):
            find_projection(SOURCE)


class TestClusters:
    @pytest.mark.parametrize("number", [2, 3])
    def test_groups_are_found(self, number):
        rng = np.random.default_rng(number)
        truth = np.repeat(np.arange(number), 20 + 10 * np.arange(number)[::-1])
        latents = rng.normal(size=(len(truth), 8)) + 8 * np.eye(8)[truth]
        assert np.array_equal(cluster_frames(latents), truth)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_cloud_is_one_group(self, seed):
        assert not cluster_frames(np.random.default_rng(seed).normal(size=(80, 8)) * [3, 2, *[1] * 6]).any()

    def test_as_many_as_are_wanted(self):
        labels = cluster_frames(np.random.default_rng(0).normal(size=(50, 3)), number=4)
        assert np.all(np.diff(np.bincount(labels, minlength=4)) <= 0)
        assert set(labels) == {0, 1, 2, 3}
        assert not cluster_frames(np.zeros((20, 3)), number=4).any()

    def test_the_frame_that_stands_for_a_group_is_in_its_middle(self):
        latents = np.array([[0.0], [1], [2], [10], [14], [12]])
        assert representatives(latents, np.array([0, 0, 0, 1, 1, 1])).tolist() == [1, 5]


def test_frames_are_painted_where_their_light_fell():
    """Two frames of even light, one beside the other with an overlap of half a frame."""
    estimate = estimate_of(np.zeros((2, 3)), positions_m=1e-8 * np.array([[8.0, 8.0], [8.0, 12.0]]))
    painted = paint_frames(estimate, np.array([[1.0], [0.0]]))[..., 0]
    expected = np.full((24, 24), np.nan)
    expected[4:12, 4:8], expected[4:12, 8:12], expected[4:12, 12:16] = 1, 0.5, 0
    assert np.array_equal(painted, expected, equal_nan=True)


def test_what_of_a_frame_lies_beyond_the_grid_is_not_painted():
    """A refined position may have left the grid that was made for the measured ones."""
    estimate = estimate_of(np.zeros((3, 3)), positions_m=1e-8 * np.array([[0.0, 22.0], [40.0, 0.0], [-9.0, 5.0]]))
    painted = paint_frames(estimate, np.ones((3, 1)))[..., 0]
    expected = np.full((24, 24), np.nan)
    expected[:4, 18:] = 1
    assert np.array_equal(painted, expected, equal_nan=True)


class TestOfAResult:
    @pytest.mark.usefixtures("shipped")
    def test_with_the_projection_of_its_weights(self, projection):
        embedding = scenes(3).embedding[:90]
        found = latents_of(estimate_of(embedding), clusters=3)
        assert found.projection.is_fixed
        assert np.allclose(found.values, projection.latents(embedding), atol=1e-3)
        assert set(found.clusters) == {0, 1, 2}
        assert np.all(found.p_values > 0)

    def test_with_its_own(self):
        found = latents_of(estimate_of(scenes(3).embedding[:90], source={"reconstructor": "lsqml"}))
        assert not found.projection.is_fixed
        assert np.isnan(found.p_values).all()

    def test_without_embeddings(self):
        with pytest.raises(FrameError, match="holds no embeddings"):
            latents_of(estimate_of(np.zeros((0, 0))))
