"""Passes of a network in a row."""

import pytest
import torch

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.problem import judge
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.reconstruction.prediction import mean_deviance, predict_object


@pytest.fixture(scope="module")
def problem():
    return simulate(Case(dose=1e5, field=0.5, frame_px=32), 0, torch.device("cpu"))


@pytest.fixture
def passes(problem, monkeypatch):
    """A network that goes a share of the way from where a pass begins to the truth; `passes.begun` tells the starts."""

    class Passes:
        begun, share = [], 0.5

        def net(self, number):
            return UnrolledNet(UnrolledConfig(stages=1, channels=4, levels=1, passes=number))

    ours = Passes()
    ours.begun = []

    def forward(net, probe, data, start=None):
        ours.begun.append(start)
        start = torch.ones(data.object_shape, dtype=probe.dtype) if start is None else start
        return [start + ours.share * (torch.from_numpy(problem.truth)[None] - start)]

    monkeypatch.setattr(UnrolledNet, "forward", forward)
    return ours


def test_each_pass_begins_at_the_object_of_the_one_before(passes, problem):
    start = torch.full(problem.data.object_shape, 0.9 + 0.1j)
    found = predict_object(passes.net(3), problem.probe, problem.data, start)
    truth = torch.from_numpy(problem.truth)[None]
    torch.testing.assert_close(found, start + (1 - 0.5**3) * (truth - start))
    assert [each is start for each in passes.begun] == [True, False, False]


def test_a_network_for_one_pass_begins_in_vacuum_whatever_it_is_given(passes, problem):
    predict_object(passes.net(1), problem.probe, problem.data, torch.zeros(problem.data.object_shape))
    assert passes.begun == [None]


@pytest.mark.parametrize("share", [-0.5, 1e-6, float("nan")])
def test_a_pass_that_explains_the_frames_no_better_does_not_count(passes, problem, monkeypatch, share):
    first = predict_object(passes.net(1), problem.probe, problem.data)
    begun = []

    def forward(net, probe, data, start=None):
        begun.append(start)
        return [first if start is None else first + share * (torch.from_numpy(problem.truth)[None] - first)]

    monkeypatch.setattr(UnrolledNet, "forward", forward)
    found = predict_object(passes.net(3), problem.probe, problem.data)
    assert torch.equal(found, first)
    assert len(begun) == 2


def test_the_shipped_weights_for_several_passes_improve_on_what_is_known():
    torch.set_num_threads(1)
    problem = simulate(Case(dose=1e8, field=0.5), 0, torch.device("cpu"))
    net = load_weights("sweep-large").unrolled_net
    assert net.config.passes == 3

    def error(obj):
        return judge(obj, problem).numbers["complex_nrmse"]

    with torch.no_grad():
        once = net(problem.probe, problem.data)[-1]
        several = predict_object(net, problem.probe, problem.data)
        truth = torch.from_numpy(problem.truth)[None]
        kept = predict_object(net, problem.probe, problem.data, truth)
        anew = load_weights("canvas-large").unrolled_net(problem.probe, problem.data, truth)[-1]
    assert error(several) < 0.9 * error(once)
    assert mean_deviance(several, problem.probe, problem.data) < mean_deviance(once, problem.probe, problem.data)
    # The truth is nearly a fixed point; a network for one pass draws it anew.
    assert error(kept) < 0.5 * error(several)
    assert error(anew) > 1.5 * error(kept)
