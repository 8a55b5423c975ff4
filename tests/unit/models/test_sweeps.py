"""Stages that go through the frames in parts before their U-Net."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.problem import judge
from bluesky_cdi.models import unrolled
from bluesky_cdi.models.unrolled import MOMENTUM, NOISE_PHOTONS, STEP_DAMPING, UnrolledConfig, UnrolledNet
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.illuminated_frames import IlluminatedFrames, object_step
from bluesky_cdi.training.stream import SceneShape, SceneStream

TOGETHER = UnrolledConfig(stages=2, steps=2, channels=8, levels=2)
IN_PARTS = replace(TOGETHER, subsets=3)


@pytest.fixture
def batch():
    stream = SceneStream(torch.device("cpu"), 5, (1e4, 1e5), pool=8, object_px=48)
    return stream.draw(SceneShape(16, 36, (14, 14), 1, 1.0), exact=True)


def physics_alone(config):
    """Give a network whose U-Nets change nothing."""
    net = UnrolledNet(config)
    with torch.no_grad():
        for parameter in net.stages.parameters():
            parameter.zero_()
    return net


@torch.no_grad()
def test_without_its_network_a_stage_is_a_sweep_and_a_step(batch):
    """Against the definition: part after part with Nesterov's momentum, then all frames together."""
    obj, peak = torch.ones_like(batch.truth), peak_intensity(batch.probe)
    found = physics_alone(IN_PARTS)(batch.probe, batch.data)
    for stage, noise in enumerate(NOISE_PHOTONS):
        velocity = torch.zeros_like(obj)
        for part in range(3):
            numerator, illumination = object_step(obj, batch.probe, batch.data[part::3])
            change = numerator / (illumination + STEP_DAMPING * peak + noise)
            velocity = MOMENTUM * velocity + change
            obj = obj + change + MOMENTUM * velocity
        numerator, illumination = object_step(obj, batch.probe, batch.data)
        obj = obj + numerator / (illumination + STEP_DAMPING * peak)
        torch.testing.assert_close(found[stage], obj)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "parts"), [(3, 1), (8, 2), (11, 2), (12, 3), (14, 3)])
def test_a_part_has_four_frames_at_least(batch, frames, parts, monkeypatch):
    made = []

    class Counted(IlluminatedFrames):
        def __init__(self, probe, data, subsets=1):
            made.append(subsets)
            super().__init__(probe, data, subsets=subsets)

    monkeypatch.setattr(unrolled, "IlluminatedFrames", Counted)
    physics_alone(IN_PARTS)(batch.probe, batch.data[:frames])
    assert made == [parts]


@torch.no_grad()
def test_a_thick_object_comes_in_fewer_steps():
    """Physics alone: eight stages of a sweep and a step beside eight of two steps, which cost the same transforms."""
    torch.set_num_threads(1)
    problem = simulate(Case(sample="gold", dose=1e6), 0, torch.device("cpu"))

    def error(subsets):
        config = UnrolledConfig(stages=8, steps=2, subsets=subsets, channels=8, levels=2)
        return judge(physics_alone(config)(problem.probe, problem.data)[-1], problem).numbers["complex_nrmse"]

    # 0.078 and 0.443 on one machine.
    assert error(4) < 0.15
    assert error(1) > 0.3


def test_a_network_goes_on_into_one_in_parts(batch):
    earlier, grown = UnrolledNet(IN_PARTS), UnrolledNet(replace(IN_PARTS, stages=3))
    with torch.no_grad():
        earlier.momentum_logit.fill_(0.3)
        earlier.log_noise_photons.fill_(4.0)
    grown.go_on_from(earlier)
    torch.testing.assert_close(grown.momentum_logit[:2], earlier.momentum_logit)
    torch.testing.assert_close(grown.log_noise_photons[:2], earlier.log_noise_photons)
    UnrolledNet(IN_PARTS).go_on_from(UnrolledNet(TOGETHER))
    with pytest.raises(ValueError, match="subsets"):
        UnrolledNet(TOGETHER).go_on_from(earlier)


def test_a_sweep_needs_a_step_of_its_own():
    with pytest.raises(ValueError, match="2 steps or more; got 1"):
        UnrolledConfig(steps=1, subsets=4)
