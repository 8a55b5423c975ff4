"""Frames that are like one, in a catalog where one is planted, and what `bluesky-cdi latents` says of a result."""

import contextlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.catalog import ResultPublisher
from bluesky_cdi.catalog.similar import find_like
from bluesky_cdi.cli import latents as command
from bluesky_cdi.cli import main
from bluesky_cdi.errors import CatalogError, WeightsError
from bluesky_cdi.latents import save_projection, store
from bluesky_cdi.latents.fitting import SceneEmbeddings, fit_projection
from bluesky_cdi.latents.store import CRITIC

D, FRAMES = 6, 40
SOURCE = {"weights_sha256": "of the weights", "network": "some", "embedding": CRITIC, "reconstructor": "pinn"}
OTHERS = {
    "other weights": {**SOURCE, "weights_sha256": "others"},
    "earlier version": {"weights_sha256": "of the weights", "network": "some"},
    "engine": {"reconstructor": "lsqml", "embedding": "radial profile"},
}


@pytest.fixture(scope="module")
def projections(tmp_path_factory):
    rng = np.random.default_rng(3)
    embedding = rng.random((300, D)).astype(np.float32)
    scenes = SceneEmbeddings(embedding, embedding + 0.01 * rng.normal(size=embedding.shape), np.repeat(range(10), 30))
    folder = tmp_path_factory.mktemp("projections")
    save_projection(folder / "some.latents.npz", fit_projection(scenes, scenes, "of the weights"), {})
    return folder


@pytest.fixture(scope="module")
def catalog(session, journals, empty_catalog, tmp_path_factory, info, make_estimate, projections):
    """The newest result, one of the same weights in which its frame 8 is planted as 42, and three of other making."""
    directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("similar") / "catalog")
    wanted = replace(make_estimate(0, n=FRAMES, d=D), source=SOURCE)
    past = replace(make_estimate(1, n=FRAMES, d=D), source=SOURCE)
    past.embedding[20] = wanted.embedding[3] + 1e-4
    with pytest.MonkeyPatch.context() as patch, session(directory) as opened, journals(opened, directory) as written:
        patch.setattr(store, "SHIPPED", projections)

        def publish(uid, estimate):
            ResultPublisher(info, directory / "results", written.processed, derived_uid=uid).close(estimate)

        for name, source in OTHERS.items():
            publish(name.replace(" ", "-"), replace(past, source=source))
        publish("eeee-past", past)
        publish("ffff-wanted", wanted)
        written.feed()
        yield opened


@pytest.fixture(autouse=True)
def at_hand(catalog, projections, monkeypatch):
    """The projection where shipped ones lie, and the catalog for commands."""
    monkeypatch.setattr(store, "SHIPPED", projections)
    monkeypatch.setattr(command, "reached_catalog", lambda *_, **__: contextlib.nullcontext((catalog, None)))


def test_the_planted_frame_is_found_and_other_weights_are_counted(catalog):
    found = find_like(catalog, "ffff", 8)
    assert (found.frames[0].uid, found.frames[0].seq_num) == ("eeee-past", 42)
    assert found.frames[0].distance < 0.1 < 0.1 * found.typical
    assert found.searched == 2
    assert found.left_out == {"other weights": 3}
    assert all(a.distance <= b.distance for a, b in zip(found.frames, found.frames[1:], strict=False))
    assert ("ffff-wanted", 8) not in {(frame.uid, frame.seq_num) for frame in found.frames}


def test_the_result_alone(catalog):
    found = find_like(catalog, "ffff", 8, everywhere=False, number=3)
    assert {frame.uid for frame in found.frames} == {"ffff-wanted"}
    assert len(found.frames) == 3
    assert (found.searched, found.left_out) == (1, {})


@pytest.mark.parametrize(
    ("which", "match"),
    [
        ("other-weights", "made with the weights some"),
        ("earlier-version", "that of an earlier version"),
        ("engine", "without a network"),
    ],
)
def test_without_a_projection_nothing_is_compared(catalog, which, match):
    with pytest.raises(WeightsError, match=match):
        find_like(catalog, which, 8)


def test_a_frame_that_is_not_there(catalog):
    with pytest.raises(CatalogError, match="holds no frame 7; it holds 2 to 80"):
        find_like(catalog, "ffff", 7)


def test_what_is_stored_is_what_the_command_says(catalog, tmp_path, capsys):
    figure = tmp_path / "new" / "latents.png"
    assert main(["latents", "ffff", "--clusters", "3", "--out", str(figure), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert figure.stat().st_size > 10_000
    assert said["projection"] == "weights"
    assert sum(group["frames"] for group in said["groups"]) == FRAMES
    run = catalog.processed["ffff-wanted"]
    assert run.metadata["stop"]["latents"] == {"projection_sha256": said["projection_sha256"]}
    stored = {name: array.read() for name, array in run["frames"].base.items()}
    projection = store.load_projection(store.SHIPPED / "some.latents.npz")
    latents = projection.latents(stored["embedding"])
    np.testing.assert_allclose(stored["latents"], latents, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stored["colour"], projection.colours(latents), atol=1e-5)
    assert (stored["novelty_p"] <= 0.01).sum() == said["frames_unusual"]
    assert run["maps"].base["latent_map"].read().shape == (1, 16, 16, 3)


def test_the_command_says_that_maps_of_engines_can_not_be_compared(tmp_path, capsys):
    assert main(["latents", "engine", "--out", str(tmp_path / "latents.png")]) == 0
    said = capsys.readouterr().out
    assert "that of this run alone" in said
    assert "maps of several runs can't be compared" in said
    assert np.isfinite(float(said.splitlines()[-1].split()[1]))


def test_the_command_lists_like_frames(capsys):
    assert main(["latents", "ffff", "--like", "8", "--in", "all"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("searched 2 result(s); left out: 3 with other weights")
    assert said.splitlines()[4].split()[1:3] == ["7", "42"]


def test_what_the_command_can_not_do_is_refused(capsys):
    assert main(["latents", "ffff", "--like", "8", "--clusters", "2"]) == 1
    assert "leave out --out and --clusters" in capsys.readouterr().err
    assert main(["latents", "result.npz", "--like", "8"]) == 1
    assert "searches a catalog" in capsys.readouterr().err
