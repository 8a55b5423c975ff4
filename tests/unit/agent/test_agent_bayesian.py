import logging
import re

import numpy as np
import pytest
import torch

from bluesky_cdi.agent import make_agent
from bluesky_cdi.agent.audit import GainAudit
from bluesky_cdi.agent.bayesian import BayesianAgent
from bluesky_cdi.agent.field import FILL_GAP
from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.agent.route import path_length_m
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.static import StaticAgent
from bluesky_cdi.agent.stopping import StoppingRule
from bluesky_cdi.agent.surrogate import Hyperparameters
from bluesky_cdi.config import AgentConfig
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import Agent

torch.set_num_threads(1)
WIDTH, STEP, HALF = 0.54e-6, 0.18e-6, 1.8e-6  # 67 % overlap


@pytest.fixture
def space():
    return SearchSpace.grid((-HALF, -HALF), (HALF, HALF), STEP)


def on_sample(positions):
    """A square sample on a fifth of the field, in one corner."""
    return ((positions > -1.7e-6) & (positions < -0.05e-6)).all(axis=-1)


def is_noisy(positions):
    """An empty strip with few photons, opposite the sample."""
    return positions[..., 1] > 0.9e-6


class World:
    """Synthetic outcomes: structure on the sample, noise everywhere, most of it in the empty strip."""

    def __init__(self, sample=on_sample, noisy=is_noisy, seed=0):
        self.sample, self.noisy, self.rng = sample, noisy, np.random.default_rng(seed)
        self.points = []

    def measure(self, positions):
        for position in positions:
            read_back = position + 3e-9 * self.rng.standard_normal(2)
            self.points.append({"seq_num": len(self.points) + 1, "y": read_back[0], "x": read_back[1]})
        for point in self.points:
            point.update(self.outcome(np.array([point["y"], point["x"]])))
        return [dict(point) for point in self.points]

    def outcome(self, position):
        spread = np.exp(0.1 * self.rng.standard_normal(3))
        uncertainty = (0.3 if self.noisy(position) else 0.05) * spread[0]
        sample = 0.4 * spread[1] if self.sample(position) else 0.0
        structure = np.hypot(np.sqrt(2) * uncertainty * spread[2], sample)
        latent = np.r_[5 * structure, 4 * uncertainty, 3 * sample, np.zeros(5)] + 0.1 * self.rng.standard_normal(8)
        return {
            "uncertainty": uncertainty,
            "structure": structure,
            "embedding": latent,
            "novelty": float(spread[0]),
            "residual": 1.0,
        }


def closed_loop(agent, world, batch=16):
    """Two batches in flight, as in a scan; returns proposals in order."""
    proposals, queue = [], [agent.propose(batch)]
    while queue:
        following = agent.propose(batch)
        if len(following.positions_m):
            queue.append(following)
        proposals.append(queue.pop(0))
        agent.ingest(world.measure(proposals[-1].positions_m))
    return proposals, following


def positions_of(proposals, reason=None):
    return np.concatenate([p.positions_m for p in proposals if reason in (None, p.reason)] or [np.empty((0, 2))])


def gap(space, positions):
    return np.linalg.norm(space.candidates_m[:, None] - positions[None], axis=2).min(axis=1).max()


def agent_for(space, **changes):
    return BayesianAgent(space, **{"probe_width_m": WIDTH, "budget": 140, "seed": 1, **changes})


@pytest.fixture(scope="module")
def sparse_run():
    space = SearchSpace.grid((-HALF, -HALF), (HALF, HALF), STEP)
    agent = agent_for(space)
    return space, agent, *closed_loop(agent, World())


def test_adaptive_points_go_to_the_sample_and_not_to_noise(sparse_run):
    space, _, proposals, _ = sparse_run
    adaptive = positions_of(proposals, "adapt")
    assert on_sample(space.candidates_m).mean() == pytest.approx(0.2, abs=0.03)
    assert on_sample(adaptive).mean() > 0.35
    assert is_noisy(adaptive).mean() < is_noisy(space.candidates_m).mean()


def test_fill_covers_the_field_with_an_eighth_of_the_frames(sparse_run):
    space, _, proposals, _ = sparse_run
    reasons = [p.reason for p in proposals]
    assert reasons == sorted(reasons, key=["fill", "adapt"].index)
    filled = positions_of(proposals, "fill")
    assert 0.09 < len(filled) / len(space) < 0.15
    assert gap(space, filled) <= FILL_GAP * WIDTH * (1 + 1e-9)


def test_proposals_are_distinct_candidates_within_budget(sparse_run):
    space, _, proposals, last = sparse_run
    chosen = positions_of(proposals)
    assert len(chosen) == 140 and last.reason == "budget of 140 frames used" and len(last.positions_m) == 0
    index = space.nearest(chosen)
    np.testing.assert_array_equal(space.candidates_m[index], chosen)
    assert len(set(index.tolist())) == len(chosen)


def test_proposals_account_for_themselves(sparse_run):
    _, agent, proposals, _ = sparse_run
    assert [p.pending for p in proposals[:3]] == [0, len(proposals[0].positions_m), len(proposals[1].positions_m)]
    assert proposals[2].n_ingested == len(proposals[0].positions_m)
    for p in proposals:
        assert p.expected_gain.shape == (len(p.positions_m),) and np.isfinite(p.expected_gain).all()
        assert (p.expected_gain >= 0).all() and p.decision_s > 0 and p.acquisition
    gains = [p.expected_gain.mean() for p in proposals if p.reason == "adapt"]
    assert 0.1 < gains[0] <= 1.0 and gains[-1] < 0.3 * gains[0]
    assert agent.propose(4).pending == 0


def test_batches_come_in_travel_order(sparse_run):
    _, _, proposals, _ = sparse_run
    rng = np.random.default_rng(0)
    ordered = sum(path_length_m(p.positions_m) for p in proposals)
    shuffled = sum(path_length_m(rng.permutation(p.positions_m)) for p in proposals)
    assert ordered < 0.6 * shuffled


def test_best_points_are_the_most_novel(sparse_run):
    _, agent, _, _ = sparse_run
    best = agent.get_best_points()
    novelty = [outcomes["novelty"] for _, _, outcomes in best]
    assert len(best) == 10 and novelty == sorted(novelty, reverse=True)
    assert all(set(parameters) == {"y", "x"} for _, parameters, _ in best)
    assert all(isinstance(key, int) for key, _, _ in best)


def test_same_seed_same_decisions(space):
    runs = [positions_of(closed_loop(agent_for(space, budget=90), World())[0]) for _ in range(2)]
    np.testing.assert_array_equal(*runs)


def test_empty_noisy_field_is_covered_evenly(space):
    world = World(sample=lambda p: False, noisy=lambda p: p[..., 1] > 0)
    proposals, _ = closed_loop(agent_for(space), world)
    noisy = (positions_of(proposals, "adapt")[:, 1] > 0).mean()
    assert 0.35 < noisy < 0.65
    assert {p.reason for p in proposals} == {"fill", "adapt"}


def test_shuffled_outcomes_give_an_even_scan(space):
    world = World()
    honest = world.outcome
    world.outcome = lambda position: honest(world.rng.permutation(space.candidates_m)[0])
    proposals, _ = closed_loop(agent_for(space), world)
    after_fill = positions_of(proposals)[len(positions_of(proposals, "fill")) :]
    assert on_sample(after_fill).mean() == pytest.approx(on_sample(space.candidates_m).mean(), abs=0.12)


def test_audit_falls_back_to_coverage_when_predictions_fail(space, caplog):
    world, honest = World(), World()
    agent = agent_for(space, budget=200, refit=False)

    def outcome(position):
        # What adaptively chosen frames show is vacuum, wherever structure was predicted.
        found = honest.outcome(position)
        return found if len(world.points) < 60 else {**found, "structure": 1e-4}

    old = {}
    world.outcome = lambda position: old.setdefault(tuple(position), outcome(position))
    with caplog.at_level(logging.WARNING):
        proposals, _ = closed_loop(agent, world)
    reasons = [p.reason for p in proposals]
    assert reasons[-1] == "coverage (audit)" and "adapt" in reasons
    assert "uniform coverage" in caplog.text
    covered = positions_of(proposals, "coverage (audit)")
    assert on_sample(covered).mean() < 0.35


def test_audit_counts_bad_groups_in_a_row():
    audit = GainAudit()
    good, bad, calm = np.full(10, 0.5), np.full(10, 0.01), np.ones((10, 3))
    assert not audit.compare(good[:4], good[:4], calm[:4])  # too few to judge
    for predicted, realised, residual in ((good, bad, calm), (good, good, calm), (good, good, 9 * calm)):
        assert audit.compare(predicted, realised, residual)
        assert not audit.failed
    assert audit.compare(good, good, 0.1 * calm)
    assert audit.failed


def test_agents_follow_the_protocol_and_the_id_rule(space):
    for name in ("bayesian", "raster", "spiral", "random"):
        agent = make_agent(AgentConfig(name=name), space, probe_width_m=WIDTH, budget=60, seed=0, step_m=STEP)
        assert isinstance(agent, Agent)
        suggestions = [*agent.suggest(), *agent.suggest(5)]
        assert len(suggestions) == 6 and all(set(s) == {"_id", "y", "x"} for s in suggestions)
        assert len({s["_id"] for s in suggestions}) == 6
        # Outcomes under bluesky-adaptive carry the id alone.
        agent.ingest([{"_id": s["_id"], "uncertainty": 0.1, "structure": 0.1, "novelty": 1.0} for s in suggestions])
        assert agent.propose(3).pending == 0
        assert {key for key, _, _ in agent.get_best_points()} == {s["_id"] for s in suggestions}
        assert agent.should_stop() == (False, None)


def test_suggest_and_propose_share_their_decisions(space):
    first, second = agent_for(space), agent_for(space)
    suggested = np.array([[s["y"], s["x"]] for s in first.suggest(12)])
    np.testing.assert_array_equal(suggested, second.propose(12).positions_m)


def test_known_points_are_replaced_and_external_points_count(space):
    agent = agent_for(space)
    point = {"seq_num": 1, "y": 0.0, "x": 0.0, "uncertainty": 0.1, "structure": 0.1, "embedding": np.zeros(3)}
    agent.ingest([point])
    agent.ingest([{**point, "novelty": 3.0}])
    agent.ingest([{"y": STEP, "x": 0.0}, {"y": STEP, "x": 0.0}])
    proposal = agent.propose(16)
    assert proposal.n_ingested == 2 and proposal.pending == 0
    assert np.linalg.norm(proposal.positions_m, axis=1).min() > FILL_GAP * WIDTH  # the centre is covered already
    assert agent.get_best_points()[0][2]["novelty"] == 3.0


def test_a_point_taken_again_elsewhere_moves(space):
    agent, world = agent_for(space), World()
    agent.ingest(world.measure(raster((-HALF, -HALF), (HALF, HALF), 0.36e-6)))
    assert agent.propose(4).reason == "adapt"
    moved = [{**p, "y": p["y"] + 20e-9} for p in world.points]
    agent.ingest(moved)
    fresh = agent_for(space)
    fresh.ingest(moved)
    assert agent.propose(4).reason == fresh.propose(4).reason == "adapt"


def test_outcomes_that_are_not_finite_count_as_positions(space, caplog):
    agent, world = agent_for(space), World()
    points = world.measure(raster((-HALF, -HALF), (HALF, HALF), 0.36e-6))
    for k in range(0, len(points), 5):
        points[k]["uncertainty"] = np.nan
    with caplog.at_level(logging.WARNING):
        agent.ingest(points)
        first = agent.propose(8)
        agent.ingest(points)
        agent.propose(8)
    assert first.reason == "adapt" and first.n_ingested == len(points)
    assert len([r for r in caplog.records if "not finite" in r.message]) == 1
    measured = {tuple(p) for p in space.candidates_m[space.nearest([[p["y"], p["x"]] for p in points])]}
    assert not measured & {tuple(p) for p in first.positions_m}


def test_without_outcomes_the_agent_goes_on_covering(space):
    agent = agent_for(space)
    for _ in range(6):
        proposal = agent.propose(16)
    assert proposal.reason == "fill" and proposal.pending >= 48


@pytest.mark.parametrize("name", ["y", "x"])
def test_positions_must_be_finite(space, name):
    for agent in (agent_for(space), StaticAgent(space, space.candidates_m, "all")):
        with pytest.raises(SearchSpaceError, match="finite y and x in metres"):
            agent.ingest([{"y": 0.0, "x": 0.0, name: np.nan}])


def test_agent_refuses_unusable_settings(space):
    with pytest.raises(SearchSpaceError, match="probe's width"):
        agent_for(space, probe_width_m=0.0)
    with pytest.raises(SearchSpaceError, match="at most 20000 candidates"):
        agent_for(SearchSpace.grid((0.0, 0.0), (1.0, 1.0), 1 / 150))
    with pytest.raises(SearchSpaceError, match="leave none"):
        agent_for(space, keep_out_m=[((-HALF, -HALF), (HALF, HALF))])


def test_keep_out_is_kept_out(space):
    box = ((-HALF, -HALF), (0.0, HALF))
    agent, world = agent_for(space, keep_out_m=[box]), World()
    proposals, _ = closed_loop(agent, world)
    assert (positions_of(proposals)[:, 0] > 0.0).all()
    assert (agent.coverage_path()[:, 0] > 0.0).all()


def test_recorded_islands_are_each_covered():
    rng = np.random.default_rng(0)
    islands = np.concatenate([rng.uniform(-0.6e-6, 0.6e-6, (60, 2)), rng.uniform(-0.6e-6, 0.6e-6, (60, 2)) + 20e-6])
    space = SearchSpace.from_positions(np.concatenate([islands, islands[:10]]))  # some positions twice
    agent = agent_for(space, budget=1000)
    proposals, last = closed_loop(agent, World(sample=lambda p: p[..., 0] > 10e-6))
    assert gap(space, positions_of(proposals, "fill")) <= FILL_GAP * WIDTH * (1 + 1e-9)
    assert last.reason == "every position was visited"
    assert len(positions_of(proposals)) == len(space)


def test_target_uncertainty_stops_once_the_field_is_covered(space):
    agent = agent_for(space, target_std_rad=0.2, budget=441)
    proposals, last = closed_loop(agent, World())
    assert re.match(r"median uncertainty of 0.0\d+ rad reached the target of 0.2 rad", last.reason)
    assert {p.reason for p in proposals} <= {"fill", "adapt"} and 40 < len(positions_of(proposals)) < 100


def test_a_resolution_stops_once_the_field_is_covered(space):
    agent = agent_for(space, target_resolution_m=1e-7, budget=441)
    proposal = agent.propose(40)
    agent.ingest([{**point, "resolution_m": 9e-8} for point in World().measure(proposal.positions_m)])
    assert not agent.should_stop()[0]  # not covered yet
    while agent.propose(40).reason == "fill":
        pass
    assert agent.should_stop() == (
        True,
        "resolution of 90 nm reached the target of 100 nm (half-bit ring correlation of two halves of the frames, "
        "twice in a row)",
    )
    agent.ingest([{"y": 0.0, "x": 0.0, "resolution_m": np.inf}])
    assert not agent.should_stop()[0]


def test_small_gain_stops(space):
    agent = agent_for(space, stop_gain=0.3, budget=441)
    _, last = closed_loop(agent, World())
    assert last.reason == "expected gain below 0.3 of the first batch's for 3 batches"
    assert agent.should_stop() == (True, last.reason)


def test_stopping_rule_one_by_one():
    rule = StoppingRule(budget=10, stop_gain=0.1, target_std_rad=0.05)
    assert rule.reason(9, 5) is None
    assert rule.reason(10, 5) == "budget of 10 frames used"
    assert rule.reason(9, 0) == "every position was visited"
    assert rule.reason(9, 5, [1.0, 0.05, 0.05]) is None
    assert rule.reason(9, 5, [1.0, 0.05, 0.2, 0.05]) is None
    assert "3 batches" in rule.reason(9, 5, [1.0, 0.05, 0.09, 0.05])
    assert rule.reason(9, 5, [], np.array([0.1, 0.06, 0.01])) is None
    assert "reached the target" in rule.reason(9, 5, [], np.array([0.1, 0.04, 0.01, np.nan]))
    assert rule.reason(9, 5, [], np.array([np.nan])) is None
    assert StoppingRule(budget=10).reason(9, 5, [1.0, 0.0, 0.0, 0.0], np.zeros(3), 1e-9) is None
    rule = StoppingRule(budget=10, target_resolution_m=5e-8)
    assert [rule.reason(9, 5, resolution_m=value) for value in (None, np.inf, np.nan, 5.1e-8)] == [None] * 4
    assert "resolution of 50 nm reached the target of 50 nm" in rule.reason(9, 5, resolution_m=5e-8)


def test_static_agents_keep_their_order_and_end(space):
    agent = make_agent(AgentConfig(name="raster"), space, probe_width_m=WIDTH, budget=441, seed=0, step_m=STEP)
    parts = []
    while len((proposal := agent.propose(50)).positions_m):
        parts.append(proposal.positions_m)
    np.testing.assert_allclose(np.concatenate(parts), raster((-HALF, -HALF), (HALF, HALF), STEP), atol=1e-15)
    assert proposal.reason == "budget of 441 frames used"
    assert sorted(map(tuple, agent.coverage_path())) == sorted(map(tuple, np.concatenate(parts)))


def test_static_agent_on_a_recorded_scan_takes_each_position_once():
    space = SearchSpace.from_positions(np.random.default_rng(0).uniform(-HALF, HALF, (300, 2)))
    for name in ("raster", "spiral", "random"):
        agent = make_agent(AgentConfig(name=name), space, probe_width_m=WIDTH, budget=200, seed=0, step_m=STEP)
        chosen = agent.propose(1000).positions_m
        index = space.nearest(chosen)
        np.testing.assert_array_equal(space.candidates_m[index], chosen)
        assert 80 < len(chosen) == len(set(index.tolist())) <= 200
        assert agent.should_stop()[1] == "every position was visited"


def test_given_hyperparameters_stay_without_refit(space):
    kernel = Hyperparameters((1.1, 0.9), 1.0, 0.1)
    agent = agent_for(space, refit=False, hyperparameters=kernel)
    agent.ingest(World().measure(raster((-HALF, -HALF), (HALF, HALF), 0.36e-6)))
    assert agent.propose(8).reason == "adapt" and agent.hyperparameters == kernel
