"""The agents and the live reconstruction under the plans of bluesky-adaptive."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from bluesky_cdi.adaptive import LiveEvaluation, Optimizer
from bluesky_cdi.agent import make_agent
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.config import AgentConfig, Config
from bluesky_cdi.errors import ConfigError
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


def test_a_batch_of_dark_frames_is_not_waited_for_and_gives_no_numbers(monkeypatch):
    """The shutter was closed: such frames are known, and in no image."""
    estimate = SimpleNamespace(
        n_frames=1, frame_seq_nums=np.array([1]), positions_m=np.zeros((1, 2)), embedding=np.zeros((1, 3)),
        source={"dark_frames": [2, 3]},
    )  # fmt: skip
    live = SimpleNamespace(latest=None, check=lambda: None)
    evaluation = LiveEvaluation(live, optimizer(), timeout_s=600.0)
    monkeypatch.setattr("bluesky_cdi.reconstruction.points.points_of", lambda found: [None])
    live.latest, evaluation._n_measured = estimate, 1
    found = evaluation("uid", [{"_id": k, "stage_y": 0.0, "stage_x": 0.0} for k in (7, 8)])
    assert [each["_id"] for each in found] == [7, 8]
    assert all(np.isnan(each["embedding"]).all() for each in found)


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


class Live:
    """A worker whose estimates are given."""

    latest = None

    def check(self):
        pass


def test_a_scan_is_optimized_in_one_run(fast_session):
    from bluesky_adaptive.plans import optimize_in_run

    session, beamline = fast_session
    found = optimizer()
    problem = protocols.OptimizationProblem(
        optimizer=found,
        actuators=[beamline.stage.y, beamline.stage.x],
        sensors=[beamline.detector],
        evaluation_function=LiveEvaluation(session.live, found),
    )
    session.RE(optimize_in_run(problem, iterations=3, n_points=8))
    session.wait()
    estimate = session.live.latest
    assert estimate.n_frames == 24
    # The agent knows of each frame what the image said of it when it was measured.
    assert found.agent.propose(0).n_ingested == 24 and found.agent.propose(0).pending == 0
    (_, place, best), *_ = found.get_best_points()
    assert set(place) == set(AXES) and best["uncertainty"] > 0 and len(best["embedding"]) > 0
