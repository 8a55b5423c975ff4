"""The nearest neighbour of each embedding, kept up, against a search of all."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from bluesky_cdi.reconstruction import nearest_neighbours
from bluesky_cdi.reconstruction.nearest_neighbours import NearestNeighbours


def put_all(embedding):
    neighbours = NearestNeighbours(torch.device("cpu"))
    neighbours.put(np.arange(len(embedding)), torch.from_numpy(np.asarray(embedding, np.float32)))
    return neighbours.novelty(np.arange(len(embedding)))


def searched(embedding):
    """Distance to the nearest neighbour over the median, by a library."""
    distance = NearestNeighbors(n_neighbors=2).fit(embedding).kneighbors(embedding)[0][:, 1]
    return distance / np.median(distance)


def test_outlier_is_most_novel():
    embedding = np.random.default_rng(0).normal(size=(40, 5))
    embedding[17] += 30
    scores = put_all(embedding)
    assert scores.argmax() == 17
    assert scores[17] > 10
    assert np.median(scores) == pytest.approx(1.0, rel=1e-5)
    assert scores.dtype == np.float32


def test_few_or_equal_frames():
    np.testing.assert_array_equal(put_all(np.zeros((0, 3))), np.ones(0))
    np.testing.assert_array_equal(put_all(np.zeros((2, 3))), np.ones(2))
    assert np.isfinite(put_all(np.zeros((6, 3)))).all()


def test_changes_are_kept_up(monkeypatch):
    """Embeddings that come, change and go in any order: as if all were searched each time."""
    monkeypatch.setattr(nearest_neighbours, "CHUNK_DISTANCES", 100)
    rng = np.random.default_rng(1)
    neighbours, points = NearestNeighbours(torch.device("cpu")), np.full((60, 4), np.nan, np.float32)
    for turn in range(25):
        rows = rng.choice(60, size=rng.integers(1, 12), replace=False)
        if turn % 5 == 4:
            neighbours.drop(rows)
            points[rows] = np.nan
        else:
            points[rows] = rng.normal(size=(len(rows), 4))
            neighbours.put(rows, torch.from_numpy(points[rows]))
        known = rng.permutation(np.flatnonzero(np.isfinite(points[:, 0])))
        if len(known) >= 3 and turn % 3:
            np.testing.assert_allclose(neighbours.novelty(known), searched(points[known]), rtol=1e-5)


def test_only_changes_are_searched(monkeypatch):
    """One more frame among many costs a few rows of distances, not all."""
    embedding = np.random.default_rng(2).normal(size=(501, 3)).astype(np.float32)
    neighbours = NearestNeighbours(torch.device("cpu"))
    neighbours.put(np.arange(500), torch.from_numpy(embedding[:500]))
    neighbours.novelty(np.arange(500))
    rows, split = [], torch.split
    monkeypatch.setattr(torch, "split", lambda index, size: [rows.append(len(index)), *split(index, size)][1:])
    neighbours.put(np.array([500]), torch.from_numpy(embedding[500:]))
    neighbours.novelty(np.arange(501))
    assert rows == [1]
