"""The agents and the live reconstruction under the plans of bluesky-adaptive."""

import shutil
from concurrent.futures import Future

import numpy as np
import pytest

from bluesky_cdi.adaptive import EMBEDDING, OUTCOMES, LiveEvaluation, Optimizer
from bluesky_cdi.agent import make_agent
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.config import AgentConfig, Config
from bluesky_cdi.errors import ConfigError, WorkerError
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

protocols = pytest.importorskip(
    "bluesky_adaptive.protocols", reason="bluesky-adaptive is not installed: pip install '.[test-beamline]'"
)
AXES = ("stage_y", "stage_x")
FAST = {
    "scan": {"extent_um": (2.0, 2.0), "step_um": 0.2, "exposure_s": 0.0},
    "simulation": {"velocity_m_per_s": 0.02, "frames": "inline"},
    "reconstructor": {
        "name": "rpie", "refine_iterations": 1, "final_steps": 0, "threads": 1, "device": "cpu", "in_process": True
    },
    "catalog": {"in_process": True},
    "probe": {"trust": True},
}  # fmt: skip


@pytest.fixture
def fast_session(empty_catalog, tmp_path, patient):
    config = Config.model_validate(FAST)
    with Session(config, shutil.copytree(empty_catalog, tmp_path / "catalog")) as session:
        yield session, simulated_beamline(config, session.frames_directory)


def optimizer(path=None, name="bayesian", seed=0):
    space = SearchSpace.grid((-1e-6, -1e-6), (1e-6, 1e-6), 0.1e-6)
    agent = make_agent(AgentConfig(name=name), space, probe_width_m=0.4e-6, budget=200, seed=seed, step_m=0.1e-6)
    return Optimizer(agent, AXES, path=path)


def outcomes(suggestions):
    """Structure on one half of the field."""
    rng = np.random.default_rng(len(suggestions))
    return [
        {"_id": s["_id"], "uncertainty": 0.1 + 0.05 * abs(s["stage_x"]), "structure": 0.2 * (s["stage_y"] > 0) + 1e-3,
         "novelty": float("nan"), "embedding": rng.normal(size=3).astype(np.float32)}
        for s in suggestions
    ]  # fmt: skip


def values(suggestions):
    return np.array([[s["_id"], s["stage_y"], s["stage_x"]] for s in suggestions])


@pytest.mark.parametrize("name", ["bayesian", "raster"])
def test_the_protocols_of_bluesky_adaptive(name):
    found = optimizer(name=name)
    for kind in ("Optimizer", "CanRegisterSuggestions", "TrialFaultAware", "SupportsStoppingCriteria",
                 "Checkpointable"):  # fmt: skip
        assert isinstance(found, getattr(protocols, kind)), kind
    assert isinstance(LiveEvaluation(Live(), found), protocols.EvaluationFunction)


class Live:
    """A worker whose answers are given."""

    def __init__(self):
        self.asked = []

    def points_after(self, after):
        raise NotImplementedError


def answered(*points):
    """Answer every question with the same points, as a worker that has dealt with all frames does."""
    live, answer = Live(), Future()
    answer.set_result(points)
    live.points_after = lambda after: live.asked.append(after) or answer
    return live


def point(seq_num, y, x):
    return {"seq_num": seq_num, "y": y, "x": x, "embedding": np.ones(3), **dict.fromkeys(OUTCOMES, float(seq_num))}


def suggestions(*ids):
    return [{"_id": k, "stage_y": 0.1 * k, "stage_x": 0.0} for k in ids]


def test_outcomes_of_a_batch_are_those_of_its_frames_alone():
    """Frames come in the order of the stage's way, not of the suggestions; one was dark; one is of the batch before."""
    live = answered(point(1, 0.2e-6, 0.0), point(2, 0.3e-6, 0.01e-6), point(4, 0.1e-6, 0.0))
    evaluation = LiveEvaluation(live, optimizer())
    evaluation("uid", suggestions(2))
    found = evaluation("uid", suggestions(1, 2, 3))
    assert live.asked == [1, 4]
    np.testing.assert_array_equal([each["residual"] for each in found], [4.0, np.nan, 2.0])
    assert [each["_id"] for each in found] == [1, 2, 3]
    np.testing.assert_array_equal(found[0]["embedding"], [1.0] * 3 + [0.0] * (EMBEDDING - 3))
    assert np.isnan(found[1]["embedding"]).all() and found[1]["embedding"].shape == (EMBEDDING,)


def test_a_batch_of_which_no_frame_can_be_used_gives_no_numbers_and_the_agent_goes_on():
    found = optimizer()
    suggested = found.suggest(8)
    outcomes = LiveEvaluation(answered(), found)("uid", suggested)
    assert all(np.isnan(each[name]).all() for each in outcomes for name in (*OUTCOMES, "embedding"))
    found.ingest(outcomes)
    assert found.agent.propose(0).pending == 0 and len(found.suggest(8)) == 8


def test_frames_that_are_not_dealt_with_in_time():
    live = Live()
    live.points_after = lambda after: live.asked.append(answer := Future()) or answer
    with pytest.raises(WorkerError, match=r"has not dealt with the 2 frames within 0\.01 s.*optimize_in_run"):
        LiveEvaluation(live, optimizer(), timeout_s=0.01)("uid", suggestions(1, 2))
    assert live.asked[0].cancelled()


def test_a_restored_agent_goes_on_as_the_one_that_was_not_interrupted(tmp_path):
    path = tmp_path / "agent.json"
    first = optimizer(path)
    for _ in range(8):
        suggested = first.suggest(8)
        first.ingest(outcomes(suggested[1:]))
        first.register_failures(suggested[:1])
    own = first.register_suggestions([{"stage_y": 0.25, "stage_x": -0.5}])
    first.checkpoint()
    second = optimizer(path)
    second.restore()
    assert second.agent.propose(0).pending == len(own) == 1
    for _ in range(3):
        suggested = first.suggest(8)
        np.testing.assert_array_equal(values(second.suggest(8)), values(suggested))
        for each in (first, second):
            each.ingest(outcomes(suggested))
    other = optimizer(path, seed=1)
    with pytest.raises(ConfigError, match="another agent, seed, window or version"):
        other.restore()
    with pytest.raises(ConfigError, match="only a fresh agent"):
        second.restore()
    with pytest.raises(ConfigError, match="needs a file"):
        optimizer().checkpoint()


@pytest.mark.parametrize("name", ["bayesian", "raster"])
def test_points_that_failed_are_not_waited_for_and_not_chosen_again(name):
    found = optimizer(name=name)
    suggested = found.suggest(10)
    found.register_failures(suggested[:4])
    found.ingest(outcomes(suggested[4:]))
    assert found.agent.propose(0).pending == 0 and found.agent.propose(0).n_ingested == 6
    failed = {tuple(row) for row in values(suggested[:4])[:, 1:]}
    assert not failed & {tuple(row) for row in values(found.suggest(60))[:, 1:]}


def test_a_scan_is_optimized_in_one_run_whose_first_batch_is_dark(fast_session):
    from bluesky_adaptive.plans import optimize_in_run

    session, beamline = fast_session
    found = optimizer()
    evaluation, told = LiveEvaluation(session.live, found, timeout_s=600.0), []

    def evaluate(uid, suggestions):
        told.append(evaluation(uid, suggestions))
        beamline.shutter.put("open")
        return told[-1]

    problem = protocols.OptimizationProblem(
        optimizer=found,
        actuators=[beamline.stage.y, beamline.stage.x],
        sensors=[beamline.detector],
        evaluation_function=evaluate,
    )
    beamline.shutter.put("closed")
    session.RE(optimize_in_run(problem, iterations=3, n_points=8))
    session.wait()
    estimate = session.live.latest
    assert estimate.n_frames == 16 and estimate.source["dark_frames"] == list(range(1, 9))
    known = [[np.isfinite(each["uncertainty"]) for each in batch] for batch in told]
    assert [sum(each) for each in known] == [8, 8, 8]
    # The agent knows of each frame what the image said of it when it was measured.
    assert found.agent.propose(0).n_ingested == 24 and found.agent.propose(0).pending == 0
    (_, place, best), *_ = found.get_best_points()
    assert set(place) == set(AXES) and best["uncertainty"] > 0 and len(best["embedding"]) > 0
    assert len(session.catalog.raw.values().last()["optimization"].read()["embedding"]) == 24
