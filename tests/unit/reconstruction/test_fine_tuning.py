"""Tuning on the frames of one run: what it gains, what it leaves alone, and how it ends."""

import copy
import logging
import math
from dataclasses import replace

import pytest
import torch

from bluesky_cdi.engines.ptychography import deviance_of
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.physics.likelihood import poisson_deviance
from bluesky_cdi.physics.propagators import AngularSpectrum
from bluesky_cdi.reconstruction import fine_tuning as module
from bluesky_cdi.reconstruction.fine_tuning import FineTuneConfig, FineTuner, moved_probe
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.windows import ScanWindows
from bluesky_cdi.training import losses
from bluesky_cdi.training.losses import relative_deviance
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SHAPE = SceneShape(16, 36, (40, 40), 1, 1.0)
QUICK = FineTuneConfig(learning_rate=3e-3, warm_up=3, window_frames=12, probe_epochs=3, probe_share=0.2)
NET_ALONE = replace(QUICK, probe_share=0.0, probe_step=0.0)


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def net():
    torch.manual_seed(31)
    return UnrolledNet(UnrolledConfig(stages=2, channels=8, levels=2)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch():
    return SceneStream(CPU, 32, (1e4, 1.001e4), pool=8, object_px=48).draw(SHAPE, exact=True)


def tuner(net, config=QUICK, seed=0):
    return FineTuner(net, config, seed=seed, clock=Ticks())


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_frames_that_no_step_sees_are_explained_better(net, batch):
    reported = []
    found = tuner(net, NET_ALONE).tune(batch.probe, batch.data, 120.0, lambda *news: reported.append(news))
    assert found.kept and found.ended == "time" and found.steps > 10
    assert found.after < 0.95 * found.before
    assert not same(found.net, net) and torch.equal(found.probe, batch.probe)
    assert reported[0][1] == found.before and min(value for _, value in reported) == found.after
    assert [seconds for seconds, _ in reported] == sorted(seconds for seconds, _ in reported)
    assert not found.net.training and not any(p.requires_grad for p in found.net.parameters())


def test_several_passes_are_tuned_and_judged_as_they_are_used(batch, monkeypatch):
    torch.manual_seed(31)
    net = UnrolledNet(UnrolledConfig(stages=2, channels=8, levels=2, passes=3)).eval().requires_grad_(False)
    reported, starts = [], []
    one = tuner(net, replace(NET_ALONE, judge_share=1.0))
    real = one._net.forward
    monkeypatch.setattr(
        one._net, "forward", lambda *args: starts.append(args[2:] != () and args[2] is not None) or real(*args)
    )
    one.tune(batch.probe, batch.data, 20.0, lambda *news: reported.append(news[1]))
    windows = ScanWindows(batch.data).judging(8, NET_ALONE.window_frames, module.JUDGED_FRAMES)
    wanted, once = (
        torch.cat([deviance_of(predict(each.given), batch.probe, each.judged) for each in windows]).mean()
        for predict in (lambda data: predict_object(net, batch.probe, data), lambda data: net(batch.probe, data)[-1])
    )
    assert reported[0] == pytest.approx(float(wanted), rel=1e-6)
    assert float(once) > 1.1 * float(wanted)
    # Steps begin in vacuum, and where a pass has ended.
    assert len(set(starts)) == 2


def test_the_given_network_stays_as_it_is(net, batch):
    before = copy.deepcopy(net)
    found = tuner(net).tune(batch.probe, batch.data, 60.0)
    assert same(net, before) and not any(p.requires_grad for p in net.parameters())
    # The critic judges any object: it isn't tuned.
    assert all(torch.equal(a, b) for a, b in zip(found.net.critic.parameters(), net.critic.parameters(), strict=True))


def test_the_budget_is_kept(net, batch):
    short, long = (tuner(net, NET_ALONE).tune(batch.probe, batch.data, s) for s in (60.0, 120.0))
    assert 0 < short.steps < long.steps
    # What is over the time is the last step's and the last judgement's share of the clock's readings.
    assert short.seconds <= 60 + 12 and long.seconds <= 120 + 12


@pytest.mark.parametrize("config", [QUICK, NET_ALONE])
def test_a_step_is_made_in_no_time(net, batch, config):
    assert tuner(net, config).tune(batch.probe, batch.data, 0.0).steps == 1


def test_judging_takes_its_share(net, batch):
    def judgements(share):
        reported = []
        one = tuner(net, replace(NET_ALONE, judge_share=share))
        one.tune(batch.probe, batch.data, 120.0, lambda *news: reported.append(news))
        return len(reported)

    # First and last are always judged; each takes a second here, or more.
    assert judgements(0.0) == 2
    assert 2 < judgements(0.1) <= 2 + 0.1 * 132
    assert judgements(0.1) < judgements(0.3)


def test_little_time_is_judged_with_few_windows(net, batch, monkeypatch):
    judged = []
    real = module.held_out_deviance
    monkeypatch.setattr(module, "held_out_deviance", lambda *args: judged.append(args[2]) or real(*args))
    tuner(net, NET_ALONE).tune(batch.probe, batch.data, 5.0)
    assert len(set(judged)) == 1
    judged.clear()
    tuner(net, NET_ALONE).tune(batch.probe, batch.data, 150.0)
    assert len(set(judged)) == 4


def test_a_seed_names_a_result(net, batch):
    first, again, other = (tuner(net, seed=s).tune(batch.probe, batch.data, 50.0) for s in (5, 5, 6))
    assert same(first.net, again.net) and torch.equal(first.probe, again.probe) and first.after == again.after
    assert not same(first.net, other.net)


def test_held_out_frames_enter_no_step(net, batch):
    windows = ScanWindows(batch.data)
    assert windows.held_out.tolist() == [9, 19, 29, 39] and len(windows.training) == 36
    counts = batch.data.counts.clone()
    counts[windows.held_out] = counts[windows.held_out].flip(-1) * 3
    # Without an engine, whose probe the held-out frames would accept or not.
    made = [tuner(net, replace(QUICK, probe_share=0.0)) for _ in range(2)]
    for one, data in zip(made, (batch.data, replace(batch.data, counts=counts)), strict=True):
        for _ in range(3):
            one.tune(batch.probe, data, 0.0)
    assert same(made[0]._net, made[1]._net) and not same(made[0]._net, net)


@pytest.mark.parametrize("where", [9, 12])
def test_what_is_no_number_ends_it(net, batch, where, caplog):
    counts = batch.data.counts.clone()
    counts[where, 3, 3] = math.nan
    with caplog.at_level(logging.WARNING):
        found = tuner(net, NET_ALONE).tune(batch.probe, replace(batch.data, counts=counts), 200.0)
    assert found.ended == "not finite" and "finite" in caplog.text
    assert all(torch.isfinite(p).all() for p in found.net.parameters())
    assert torch.isfinite(found.probe).all()
    if where == 9:  # held out
        assert found.net is net and found.probe is batch.probe and not found.kept and found.steps == 0


def test_frames_of_no_number_at_all_give_the_start_back(net, batch):
    counts = torch.full_like(batch.data.counts, math.nan)
    counts[ScanWindows(batch.data).held_out] = 1.0
    found = tuner(net).tune(batch.probe, replace(batch.data, counts=counts), 50.0)
    assert found.net is net and found.probe is batch.probe and not found.kept and found.ended == "not finite"
    assert found.steps == 0 and math.isnan(found.after)


def test_it_goes_on_after_a_bad_call(net, batch):
    counts = torch.full_like(batch.data.counts, math.nan)
    counts[ScanWindows(batch.data).held_out] = 1.0
    one = tuner(net, NET_ALONE)
    one.tune(batch.probe, replace(batch.data, counts=counts), 50.0)
    assert one.tune(batch.probe, batch.data, 160.0).kept


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_few_frames_do(net, batch, count):
    found = tuner(net).tune(batch.probe, batch.data[:count], 30.0)
    assert found.steps > 0 and found.after <= found.before and math.isfinite(found.after)
    windows = ScanWindows(batch.data[:count])
    assert len(windows.held_out) == (1 if count == 10 else count) and windows.independent == (count == 10)
    if not windows.independent:
        assert torch.equal(found.probe, batch.probe)


def test_a_second_call_goes_on_with_new_frames(net, batch):
    one = tuner(net, NET_ALONE)
    first = one.tune(batch.probe, batch.data[:25], 120.0)
    second = one.tune(first.probe, batch.data, 120.0)
    assert first.kept and second.kept
    # On the second call's held-out frames, the given network is where it was, and the first call's is left behind.
    anew = tuner(net, NET_ALONE).tune(batch.probe, batch.data, 120.0)
    assert second.before == pytest.approx(anew.before) and second.after < anew.after


@pytest.mark.parametrize("learning_rate", [1e-3, 10.0])
def test_nothing_gets_worse(net, batch, learning_rate):
    found = tuner(net, replace(QUICK, learning_rate=learning_rate)).tune(batch.probe, batch.data, 60.0)
    assert found.after <= found.before
    assert found.kept == (found.after < found.before)
    assert all(torch.isfinite(p).all() for p in found.net.parameters())


def test_a_wrong_probe_is_refined_and_keeps_its_photons(net):
    bright = SceneStream(CPU, 33, (1e5, 1.001e5), pool=8, object_px=80).draw(SHAPE, exact=True)
    wrong = bright.probe * torch.linspace(0.4, 1.6, 16)
    # The network stands still, so what is gained is the probe's.
    config = replace(QUICK, learning_rate=0.0, probe_epochs=15, probe_share=0.5)
    found = tuner(net, config).tune(wrong, bright.data, 40.0)
    assert same(found.net, net) and found.kept and found.after < 0.95 * found.before
    torch.testing.assert_close(found.probe.abs().square().sum(), wrong.abs().square().sum())


def test_tuning_works_under_no_grad(net, batch):
    with torch.no_grad():
        assert tuner(net, NET_ALONE).tune(batch.probe, batch.data, 60.0).kept


def test_near_field_frames(net, batch):
    propagator = AngularSpectrum(16, 1e-6, 1e-10, 0.05)
    data = replace(batch.data, propagator=propagator)
    rate = data.rate(data.probes(batch.probe), data.patches(batch.truth))
    data = replace(data, counts=torch.poisson(rate, generator=torch.Generator().manual_seed(3)))
    found = tuner(net).tune(batch.probe, data, 160.0)
    assert found.kept and found.after < found.before


def test_the_loss_is_the_deviance_of_valid_pixels(batch):
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[2:5] = False
    data = replace(batch.data, mask=mask, background=0.1, saturation=60.0)
    loss = relative_deviance(batch.truth, batch.probe, data)
    rate = data.rate(data.probes(batch.probe), data.patches(batch.truth)) + losses.DARK_PHOTONS
    valid = mask & (data.counts < 60)
    for found, r, k, v in zip(loss, rate, data.counts, valid, strict=True):
        assert float(found) == pytest.approx(float(poisson_deviance(r[v], k[v]).sum() / (k[v].sum() + 1)), rel=1e-5)


def test_the_probe_moves_towards_the_true_one(batch):
    wrong = batch.probe * torch.linspace(0.5, 1.5, 16)
    moved = moved_probe(batch.truth, wrong, batch.data, 0.5)
    before, after = (float(deviance_of(batch.truth, p, batch.data).mean()) for p in (wrong, moved))
    assert after < before
    assert moved_probe(batch.truth, wrong, batch.data, 0.0) is wrong


def test_windows_hold_the_nearest_frames_on_a_small_grid(batch):
    windows = ScanWindows(batch.data)
    part = windows.around(7, 5)
    place = batch.data.corner + batch.data.shift_px
    distance = (place[windows.training] - place[7]).norm(dim=1)
    nearest = windows.training[distance.argsort()[:5]]
    assert torch.equal(part.counts, batch.data.counts[nearest])
    assert part.corner.amin(dim=0).tolist() == [0, 0]
    far = part.corner.amax(dim=0) + 16
    assert part.object_shape == (1, *far.tolist())
    moved = part.corner - batch.data.corner[nearest]
    assert (moved == moved[0]).all()
