"""Which proposal a measured point settles, which point it is again, and what is known of all."""

import numpy as np
import pytest

from bluesky_cdi.agent.observations import Observations, as_suggestions
from bluesky_cdi.errors import SearchSpaceError

MATCH = 1.0
LINE = np.array([[0.0, 0.0], [0.0, 10.0], [0.0, 20.0], [0.0, 21.5]])


@pytest.fixture
def observations():
    """Four proposals on a line are on their way."""
    found = Observations(MATCH)
    assert found.issue(LINE[:3]) == [0, 1, 2] and found.issue(LINE[3:]) == [3]
    return found


def test_what_is_proposed_is_pending_until_it_came(observations):
    np.testing.assert_array_equal(observations.pending_m, LINE)
    assert observations.pending_ids == [0, 1, 2, 3] and len(observations) == 0 and observations.ids == []
    assert observations.positions_m.shape == (0, 2) and observations.embedding.shape == (0, 0)
    observations.take([{"seq_num": 1, "y": 0.0, "x": 10.0}])
    np.testing.assert_array_equal(observations.pending_m, LINE[[0, 2, 3]])
    # Ids are given once, also after their points came.
    assert observations.issue(LINE[:1]) == [4] and observations.pending_ids == [0, 2, 3, 4]
    for key in (0, 2, 3, 4):
        observations.take([{"_id": key}])
    assert observations.pending_m.shape == (0, 2)
    assert observations.ids == [1, 0, 2, 3, 4]


@pytest.mark.parametrize(
    ("x", "settled"),
    [(20.7, 2), (20.8, 3), (19.0, 2), (18.99, None), (22.5, 3), (22.51, None), (5.0, None), (-1.0, 0)],
)
def test_a_point_settles_the_nearest_pending_proposal_within_reach(observations, x, settled):
    assert observations.take([{"seq_num": 9, "y": 0.0, "x": x}]) is False
    assert observations.ids == [settled]
    assert observations.pending_ids == [key for key in range(4) if key != settled]
    np.testing.assert_array_equal(observations.positions_m, [[0.0, x]])


def test_an_id_settles_its_proposal_wherever_the_point_lies(observations):
    observations.take([{"seq_num": 1, "_id": 3, "y": 0.0, "x": 0.1}])
    assert observations.ids == [3] and observations.pending_ids == [0, 1, 2]


def test_a_proposal_is_settled_once(observations):
    # The same id under another number, and another point at its place: neither takes a neighbour's.
    observations.take([{"seq_num": 1, "_id": 2}, {"seq_num": 2, "_id": 2, "y": 0.0, "x": 21.4}])
    observations.take([{"seq_num": 3, "y": 0.0, "x": 20.4}])
    assert observations.ids == [2, None, None] and observations.pending_ids == [0, 1, 3]


def test_an_id_of_someone_else_is_none_of_the_proposals(observations):
    observations.take([{"_id": "theirs", "y": 0.0, "x": 9.5}, {"_id": "theirs", "y": 5.0, "x": 5.0}])
    assert observations.ids == [1, None] and len(observations) == 2
    assert [key for key, _, _ in observations.best()] == [1, "theirs"]


def test_a_point_is_known_by_its_number_then_its_id_then_its_position(observations):
    first = [
        {"seq_num": 7, "_id": 0, "y": 0.0, "x": 0.1, "novelty": 1.0},
        {"_id": 1, "novelty": 2.0},
        {"y": 3.0, "x": 3.0, "novelty": 3.0},
    ]
    again = [
        {"y": 3.0, "x": 3.0, "novelty": 6.0},
        {"seq_num": 7, "y": 0.0, "x": 0.1, "novelty": 4.0},
        {"_id": 1, "novelty": 5.0},
    ]
    assert observations.take(first) is False and observations.take(again) is False
    assert len(observations) == 3 and observations.ids == [0, 1, None]
    np.testing.assert_array_equal(observations.outcome("novelty"), [4.0, 5.0, 6.0])
    np.testing.assert_array_equal(observations.positions_m, [[0.0, 0.1], [0.0, 10.0], [3.0, 3.0]])
    # Another number at a known place is another point; so is a place that differs in one axis.
    observations.take([{"seq_num": 8, "_id": 0, "y": 0.0, "x": 0.1}, {"y": 3.0, "x": 3.1}, {"y": 3.1, "x": 3.0}])
    assert len(observations) == 6


def test_a_known_point_at_another_place_has_moved(observations):
    points = [{"seq_num": k, "y": 0.0, "x": 10.0 * k} for k in range(3)]
    assert observations.take(points) is False and observations.take(points) is False
    assert observations.take([{**points[0], "x": 1.0}, points[2]]) is True
    np.testing.assert_array_equal(observations.positions_m, [[0.0, 1.0], [0.0, 10.0], [0.0, 20.0]])
    assert observations.ids == [0, 1, 2] and len(observations) == 3
    assert observations.take([{**points[0], "x": 1.0}]) is False


@pytest.mark.parametrize("point", [{}, {"y": 1.0}, {"x": 1.0}, {"_id": 9, "y": 1.0}, {"_id": 1, "x": np.inf}])
def test_a_point_needs_a_place(observations, point):
    with pytest.raises(SearchSpaceError, match="finite y and x in metres; they are y="):
        observations.take([point])
    assert len(observations) == 0 and len(observations.pending_ids) == 4


def test_half_of_a_place_comes_from_the_proposal(observations):
    observations.take([{"_id": 1, "x": 10.2}])
    np.testing.assert_array_equal(observations.positions_m, [[0.0, 10.2]])


def test_outcomes_are_absent_where_none_came(observations):
    observations.take([{"_id": 0, "residual": 2}, {"_id": 1}, {"_id": 2, "embedding": [[1.0, 2.0]]}])
    np.testing.assert_array_equal(observations.outcome("residual"), [2.0, np.nan, np.nan])
    np.testing.assert_array_equal(observations.embedding, [[np.nan, np.nan], [np.nan, np.nan], [1.0, 2.0]])
    # Of another length than the last they can't be compared with it.
    observations.take([{"_id": 0, "embedding": np.ones(3)}, {"_id": 3, "embedding": np.zeros(3)}])
    np.testing.assert_array_equal(observations.embedding, [[1.0] * 3, [np.nan] * 3, [np.nan] * 3, [0.0] * 3])


def test_the_best_points_are_ten_of_the_largest_novelty_first_come_first():
    observations = Observations(MATCH)
    novelty = [1.0, 5.0, np.nan, 5.0, 3.0, 0.5, 2.0, 2.5, 4.0, 0.1, 0.2, 0.3]
    observations.issue(np.array([[0.0, 11.0]]))
    points = [{"seq_num": k, "y": 0.0, "x": 10.0 * k, "novelty": v, "uncertainty": k} for k, v in enumerate(novelty)]
    observations.take([{**point, "_id": f"point {k}"} for k, point in enumerate(points)])
    best = observations.best()
    assert [outcomes["uncertainty"] for _, _, outcomes in best] == [1, 3, 8, 4, 7, 6, 0, 5, 11, 10]
    assert best[0] == (0, {"y": 0.0, "x": 10.0}, {"novelty": 5.0, "uncertainty": 1})  # the id of what it settled
    assert best[1][0] == "point 3"


def test_suggestions_are_mappings_of_id_and_place():
    assert as_suggestions([4, 7], LINE[1:3]) == [{"_id": 4, "y": 0.0, "x": 10.0}, {"_id": 7, "y": 0.0, "x": 20.0}]


def test_of_equal_novelty_the_first_come_first():
    observations = Observations(MATCH)
    observations.take([{"seq_num": k, "y": 0.0, "x": float(k), "novelty": k % 2, "n": k} for k in range(60)])
    assert [outcomes["n"] for _, _, outcomes in observations.best()] == list(range(1, 21, 2))
