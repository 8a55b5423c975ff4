"""From metadata and configuration to reconstructor and agent; what does not fit is named."""

import numpy as np
import pytest
import torch

from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.errors import GeometryError, WeightsError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Agent, Frame, Reconstructor, RunInfo, ScanArea
from bluesky_cdi.reconstruction.build import build_agent, build_reconstructor, device_of

GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}
WINDOW = [[-5e-7, -4e-7], [5e-7, 4e-7]]
AREA = ScanArea((-5e-7, -4e-7), (5e-7, 4e-7), 1e-7, 20)


@pytest.fixture
def config():
    return Config.model_validate({"reconstructor": {"name": "rpie", "threads": 1}})


def info(shape=(64, 64), **changes):
    metadata = {"geometry": GEOMETRY, "window_m": WINDOW, **changes}
    return RunInfo("uid", 1, {k: v for k, v in metadata.items() if v is not None}, shape)


def test_grid_holds_the_window_and_no_network_is_needed(config, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.models.weights.load_weights", lambda *_: pytest.fail("no network is asked for"))
    reconstructor = build_reconstructor(info(), config)
    assert isinstance(reconstructor, Reconstructor)
    corners = [[y, x] for y in (-5e-7, 5e-7) for x in (-4e-7, 4e-7)]
    reconstructor.add([Frame(k, np.array(p), np.ones((64, 64))) for k, p in enumerate(corners, 1)])
    estimate = reconstructor.step(10.0)
    assert estimate.n_frames == 4
    assert estimate.pixel_m == Geometry(**GEOMETRY, frame_px=64).pixel_m


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry": None}, "missing: energy_ev, distance_m, detector_pixel_m"),
        ({"geometry": {"energy_ev": 8000.0, "distance_m": 2.0}}, "missing: detector_pixel_m"),
        ({"geometry": {**GEOMETRY, "distance_m": -1}}, "distance_m must be a finite positive number"),
        ({"geometry": {**GEOMETRY, "energy_ev": "many"}}, "must hold numbers"),
        ({"shape": (64, 48)}, "frames must be square; they are 64 x 48"),
        ({"window_m": None}, "must hold window_m"),
        ({"window_m": [1, 2, 3]}, "must hold window_m"),
        ({"window_m": "here"}, "must hold window_m"),
        ({"window_m": [[5e-7, 0], [-5e-7, 0]]}, "low <= high"),
        ({"window_m": [[float("nan"), 0], [5e-7, 0]]}, "finite corners"),
        ({"window_m": [[-5.0, -5.0], [5.0, 5.0]]}, "Are the positions and the detector's pixel in metres"),
    ],
)
def test_metadata_that_does_not_fit(config, changes, message):
    with pytest.raises(GeometryError, match=message):
        build_reconstructor(info(**changes), config)


@pytest.mark.parametrize("shape", [(64, 64), (1, 32, 32), (2, 64, 32)])
def test_probe_that_does_not_fit(config, shape):
    with pytest.raises(GeometryError, match=r"a probe must be \(modes, 64, 64\)"):
        build_reconstructor(info(), config, probe=np.ones(shape, np.complex64))


def test_mask_that_does_not_fit(config):
    with pytest.raises(GeometryError, match=r"a mask must have the shape of the frames, \(64, 64\); it is \(32, 32\)"):
        build_reconstructor(info(), config, mask=np.ones((32, 32), dtype=bool))


def test_unknown_weights():
    config = Config.model_validate({"reconstructor": {"weights": "no-such"}})
    with pytest.raises(WeightsError, match="no weights at"):
        build_reconstructor(info(), config)


@pytest.mark.parametrize("name", ["bayesian", "raster", "spiral", "random"])
def test_agents_stay_in_the_area(name):
    agent = build_agent(AREA, Config.model_validate({"agent": {"name": name}}))
    assert isinstance(agent, Agent)
    proposal = agent.propose(8)
    assert 1 <= len(proposal.positions_m) <= 8
    for positions in (proposal.positions_m, agent.coverage_path()):
        assert (positions >= np.array(AREA.low_m) - 1e-12).all()
        assert (positions <= np.array(AREA.high_m) + 1e-12).all()


def test_given_space_is_used():
    space = SearchSpace.from_positions(np.array([[0.0, 0.0], [1e-7, 0.0], [3e-7, 2e-7]]))
    agent = build_agent(AREA, Config(), space=space, probe_width_m=1e-7)
    assert {tuple(p) for p in agent.coverage_path()} == {tuple(p) for p in space.candidates_m}


@pytest.mark.parametrize(
    ("stated", "there", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_the_device_is_the_stated_one_or_a_gpu_that_is_there(monkeypatch, stated, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_of(ReconstructorConfig(device=stated)) == expected
