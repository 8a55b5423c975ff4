"""When the kernel is fitted again and to what, and that the posterior is that of all frames, however they came."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from bluesky_cdi.agent import learner as learner_module
from bluesky_cdi.agent.learner import Learner
from bluesky_cdi.agent.observations import Observations
from bluesky_cdi.agent.outcomes import Targets, make_targets
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.surrogate import CandidatePosterior, Hyperparameters, fit_hyperparameters, matern52

torch.set_num_threads(1)
WIDTH, HALF = 0.5e-6, 2.5e-6
KERNEL = Hyperparameters((0.9, 1.2), 0.8, 0.1)
CANDIDATES = SearchSpace.grid((-HALF, -HALF), (HALF, HALF), 0.5e-6).candidates_m
POSITIONS = np.random.default_rng(4).uniform(-HALF, HALF, (600, 2))


@pytest.fixture
def quick_fit(monkeypatch):
    """A fit that gives the kernel it begins at, for tests of when one comes: fits take long."""
    monkeypatch.setattr(learner_module, "fit_hyperparameters", lambda x, y, start, rng: dataclasses.replace(start))


def learner_of(refit=True, seed=0):
    return Learner(CANDIDATES, WIDTH, np.random.default_rng(seed), refit=refit, hyperparameters=KERNEL)


def targets_of(values, valid=None):
    valid = np.ones(len(values), bool) if valid is None else valid
    k = values.shape[1]
    return Targets(np.where(valid[:, None], values, 0.0), valid, np.zeros(len(values)), np.zeros(k), np.ones(k))


def values_with(residuals, kernel):
    """Outcomes at the first positions whose standardised residuals under a kernel are the given ones."""
    scaled = torch.as_tensor(POSITIONS[: len(residuals)] / WIDTH)
    covariance = matern52(scaled, scaled, kernel).numpy() + kernel.noise * np.eye(len(scaled))
    return np.linalg.cholesky(covariance) @ residuals


def tame(n, seed=1):
    """Residuals whose squares have a mean of one over any group."""
    return np.where(np.random.default_rng(seed).random((n, 2)) < 0.5, 1.0, -1.0)


def is_fitted(learner, n, residuals, n_invalid=0):
    """Whether a fit comes with n frames of such residuals, and of others after them whose outcome is unusable."""
    before = learner.hyperparameters
    values = values_with(np.vstack([residuals[:n], np.zeros((n_invalid, residuals.shape[1]))]), before)
    valid = np.arange(len(values)) < n
    learner.posterior(POSITIONS[: len(values)], targets_of(values, valid))
    return learner.hyperparameters is not before


def assert_same(found, wanted):
    torch.testing.assert_close(found.mean, wanted.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.covariance, wanted.covariance, rtol=0, atol=1e-5)


def posterior_of(kernel, n, values, valid):
    posterior = CandidatePosterior(CANDIDATES / WIDTH, kernel)
    posterior.extend(POSITIONS[:n] / WIDTH)
    posterior.set_outcomes(values, valid)
    return posterior


def test_a_fit_rests_on_the_usable_outcomes_at_positions_in_probe_widths():
    values, valid = np.random.default_rng(2).standard_normal((40, 2)), np.arange(40) % 4 > 0
    learner = learner_of(seed=7)
    posterior = learner.posterior(POSITIONS[:40], targets_of(values, valid))
    fitted = fit_hyperparameters(POSITIONS[:40][valid] / WIDTH, values[valid], KERNEL, np.random.default_rng(7))
    assert learner.hyperparameters == fitted != KERNEL
    assert_same(posterior, posterior_of(fitted, 40, values, valid))


def test_a_fit_begins_at_the_kernel_as_it_is_and_draws_on():
    values, rng = np.random.default_rng(2).standard_normal((310, 1)), np.random.default_rng(3)
    learner, kernel = learner_of(seed=3), KERNEL
    for n in (20, 310):  # of more than 300 frames the fit draws some
        learner.posterior(POSITIONS[:n], targets_of(values[:n]))
        kernel = fit_hyperparameters(POSITIONS[:n] / WIDTH, values[:n], kernel, rng)
        assert learner.hyperparameters == kernel


@pytest.mark.usefixtures("quick_fit")
def test_the_kernel_is_fitted_on_a_schedule():
    learner, residuals = learner_of(), tame(600)
    fitted_at = [
        n for n in (8, 9, 63, 64, 65, 127, 128, 255, 256, 383, 384, 575, 576) if is_fitted(learner, n, residuals)
    ]
    assert fitted_at == [8, 64, 128, 256, 384, 576]


@pytest.mark.parametrize(("first", "due"), [(64, 128), (100, 128), (128, 256), (255, 256), (300, 450), (301, 452)])
@pytest.mark.usefixtures("quick_fit")
def test_the_schedule_counts_from_the_last_fit(first, due):
    learner, residuals = learner_of(), tame(600)
    assert is_fitted(learner, first, residuals)
    assert not is_fitted(learner, due - 1, residuals)
    assert is_fitted(learner, due, residuals)


@pytest.mark.usefixtures("quick_fit")
def test_only_usable_outcomes_count_for_the_schedule():
    learner, residuals = learner_of(), tame(100)
    assert not is_fitted(learner, 0, residuals, n_invalid=30)
    assert is_fitted(learner, 40, residuals, n_invalid=30)
    assert not is_fitted(learner, 63, residuals, n_invalid=30)
    assert is_fitted(learner, 64, residuals, n_invalid=30)


@pytest.mark.parametrize(
    ("mean_square", "is_due"), [(0.01, True), (0.49, True), (0.51, False), (1.99, False), (2.01, True), (30.0, True)]
)
@pytest.mark.usefixtures("quick_fit")
def test_residuals_out_of_bounds_bring_a_fit_after_32_frames(mean_square, is_due):
    learner, residuals = learner_of(), tame(200)
    assert is_fitted(learner, 128, residuals)
    residuals *= mean_square**0.5
    assert not is_fitted(learner, 129, residuals)
    assert not is_fitted(learner, 159, residuals)
    assert is_fitted(learner, 160, residuals) == is_due
    # From a fit on, 32 frames are awaited again.
    assert is_fitted(learner, 161, residuals) is False
    assert is_fitted(learner, 192, residuals) == is_due


@pytest.mark.usefixtures("quick_fit")
def test_the_last_64_residuals_decide():
    for square_of_one, is_due in ((1.0, False), (65.0 + 64.0, True)):
        # 64 frames, of which one makes the mean 1 or 3; all before them don't matter.
        residuals = tame(170)
        learner = learner_of()
        assert is_fitted(learner, 128, residuals)
        residuals[:106] *= 20.0
        residuals[106] *= square_of_one**0.5
        assert is_fitted(learner, 170, residuals) == is_due


@pytest.mark.usefixtures("quick_fit")
def test_residuals_of_unusable_outcomes_do_not_count():
    learner, residuals = learner_of(), tame(170)
    assert is_fitted(learner, 128, residuals)
    assert not is_fitted(learner, 170, residuals, n_invalid=60)  # of their own they are zero


@pytest.mark.parametrize("n", [0, 40, 300])
def test_a_kernel_that_is_given_stays(n):
    assert not is_fitted(learner_of(refit=False), n, 5.0 * tame(300))


def test_frames_in_parts_or_at_once_or_after_forgetting_give_one_posterior():
    learner, once = learner_of(refit=False), learner_of(refit=False)
    values, valid = np.random.default_rng(5).standard_normal((90, 3)), np.arange(90) % 7 > 0
    for n in (1, 2, 30, 30, 77, 90):
        # Outcomes change with every estimate; the newest count.
        posterior = learner.posterior(POSITIONS[:n], targets_of(values[:n] * 90 / n, valid[:n]))
        assert len(posterior) == n
    assert_same(posterior, once.posterior(POSITIONS[:90], targets_of(values, valid)))
    assert_same(posterior, posterior_of(KERNEL, 90, values, valid))
    moved = POSITIONS[:90] + 0.3e-6
    learner.forget()
    again = learner.posterior(moved, targets_of(values, valid))
    assert len(again) == 90
    assert_same(again, learner_of(refit=False).posterior(moved, targets_of(values, valid)))
    assert (again.covariance - posterior.covariance).abs().max() > 0.1


@pytest.mark.usefixtures("quick_fit")
def test_forgetting_keeps_the_kernel_and_when_it_was_fitted():
    learner, residuals = learner_of(), tame(64)
    assert is_fitted(learner, 40, residuals)
    kernel = learner.hyperparameters
    learner.forget()
    assert learner.hyperparameters is kernel
    assert not is_fitted(learner, 63, residuals)
    assert is_fitted(learner, 64, residuals)


def test_targets_are_those_of_the_outcomes_and_a_warning_comes_once(caplog):
    rng = np.random.default_rng(0)
    points = [
        {"seq_num": k, "y": 0.0, "x": 0.0, "uncertainty": u, "structure": s, "embedding": e}
        for k, (u, s, e) in enumerate(zip(rng.random(12), rng.random(12), rng.random((12, 4)), strict=True))
    ]
    observations, learner = Observations(1e-7), learner_of()
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        for n_bad in (0, 2, 3):
            for point in points[:n_bad]:
                point["structure"] = np.nan
            observations.take(points)
            found = learner.targets(observations)
            assert (~found.valid).sum() == n_bad
            assert len(caplog.records) == (n_bad > 0)
    assert caplog.records[0].getMessage().startswith("2 frame(s) have outcomes that are not finite")
    wanted = make_targets(*(np.array([p[name] for p in points]) for name in ("uncertainty", "structure", "embedding")))
    for name in ("values", "valid", "not_vacuum", "offset", "scale"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
