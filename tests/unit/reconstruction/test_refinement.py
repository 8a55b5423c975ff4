"""Refining with the network's prediction as the prior: its limits, and what it is for."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings, Prior
from bluesky_cdi.engines.ptychography import Refine, Schedule, Solution, iterate
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.reconstruction.refinement import prior_of, refiner
from bluesky_cdi.training.losses import gauge_fixed
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
FIXED = Schedule(5, probe_from=-1)


@pytest.fixture(scope="module")
def net():
    return load_weights().unrolled_net


def draw(photons, seed=77):
    stream = SceneStream(CPU, seed, (photons, 1.001 * photons), pool=8, object_px=160)
    batch = stream.draw(SceneShape(64, 120, (49, 49), 1, 1.0), exact=True)
    return replace(batch, data=replace(batch.data, scene=None))


def error(obj, batch):
    illumination = summed_illumination(batch.probe, batch.data)
    illuminated = (illumination > MEASURED_SHARE * illumination.max()).float()
    mean = (illuminated * batch.truth).sum() / illuminated.sum()
    wrong = (illuminated * (gauge_fixed(obj, batch.truth, illuminated) - batch.truth).abs().square()).sum()
    return float((wrong / (illuminated * (batch.truth - mean).abs().square()).sum()).sqrt())


def epochs(engine, obj, batch, number=4):
    solution = Solution.start(obj, batch.probe, batch.data)
    for _ in range(number):
        solution = engine.epoch(solution, Refine(probe=False))
    return solution.object


@torch.no_grad()
def test_a_prior_that_knows_nothing_changes_nothing():
    batch = draw(1e5)
    flat = torch.ones_like(batch.truth)
    settings = LsqmlSettings(batch=8, together_from=2)
    ignorant = Prior(2 * flat, torch.zeros_like(flat.real))
    plain, same = (epochs(Lsqml(settings, prior=prior), flat, batch) for prior in (None, ignorant))
    torch.testing.assert_close(same, plain, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [8, 49])
def test_a_prior_that_is_sure_is_the_answer(batch_size):
    """However the frames are batched, each of which brings its share of it."""
    batch = draw(1e4)
    flat = torch.ones_like(batch.truth)
    sure = Prior(batch.truth, torch.full_like(flat.real, 1e9))
    found = epochs(Lsqml(LsqmlSettings(batch=batch_size), prior=sure), flat, batch)
    assert float((found - batch.truth).abs().max()) < 1e-3


@torch.no_grad()
def test_light_and_prior_are_weighed_as_photons():
    """Where frames and prior ask for opposite things, the one with more photons wins.

    The frames hold a uniform object of transmission 1; the prior says 0.5, as sure as ten times fewer and ten
    times more photons would be.
    """
    batch = draw(1e5)
    flat = torch.ones_like(batch.truth)
    data = batch.data
    counts = data.rate(data.probes(batch.probe), data.patches(flat))
    illumination = summed_illumination(batch.probe, data)
    middle = illumination > 0.3 * illumination.max()
    found = []
    for sureness in (0.1, 10.0):
        prior = Prior(0.5 * flat, sureness * illumination.clamp_min(1e-3))
        engine = Lsqml(LsqmlSettings(together_from=0), prior=prior)
        scan = replace(batch, data=replace(data, counts=counts))
        found.append(float(epochs(engine, 0.7 * flat, scan, 12).abs()[middle].mean()))
    assert 0.5 < found[1] < 0.65 < 0.85 < found[0] < 1


@torch.no_grad()
@pytest.mark.parametrize("photons", [1e3, 1e4, 1e5])
def test_the_network_as_the_prior_is_better_than_none(net, photons):
    prior_wins, refining_pays = [], []
    for seed in (77, 78, 79):
        batch = draw(photons, seed)
        prediction = net(batch.probe, batch.data)[-1]
        start = Solution.start(prediction, batch.probe, batch.data)
        prior = prior_of(net, prediction, batch.probe, batch.data)
        with_it, without = (
            iterate(engine, start, FIXED).solution.object
            for engine in (refiner(prior, 49, 5), Lsqml(LsqmlSettings(batch=8, together_from=3, step=1.3)))
        )
        prior_wins.append(error(with_it, batch) / error(without, batch))
        refining_pays.append(error(with_it, batch) / error(prediction, batch))
    # Many photons need no prior, and it hardly spoils what they say.
    assert sum(prior_wins) / 3 < (1 if photons < 1e5 else 1.05)
    # Few photons can't improve on the network, but they hardly spoil it.
    assert sum(refining_pays) / 3 < (1.1 if photons < 1e5 else 0.95)


def test_the_prior_is_as_sure_as_the_predicted_errors(net):
    batch = draw(1e5)
    with torch.no_grad():
        prediction = net(batch.probe, batch.data)[-1]
        log_std, _ = net.judge(prediction, batch.probe, batch.data)
        prior = prior_of(net, prediction, batch.probe, batch.data)
    amplitude, phase = log_std[0].exp()
    torch.testing.assert_close(prior.photons[0], 1 / (2 * (amplitude**2 + phase**2)))
    assert prior.object is prediction


@pytest.mark.parametrize(
    ("frames", "iterations", "batch", "together"), [(200, 5, 20, 3), (30, 3, 8, 1), (30, 100, 8, 3)]
)
def test_most_of_few_iterations_go_in_batches(frames, iterations, batch, together):
    prior = Prior(torch.ones(1, 4, 4, dtype=torch.complex64), torch.ones(1, 4, 4))
    settings = refiner(prior, frames, iterations).settings
    assert (settings.batch, settings.together_from) == (batch, together)
