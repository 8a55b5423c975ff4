from itertools import pairwise

import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.settings import validate_input_scaling
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.means import ZeroMean

from bluesky_cdi.agent.acquisition import Coverage, VarianceReduction, choose_batch
from bluesky_cdi.agent.outcomes import (
    LOG_UNCERTAINTY,
    NOT_VACUUM,
    candidate_weights,
    make_targets,
    not_vacuum_logit,
    predict_not_vacuum,
    principal_components,
)
from bluesky_cdi.agent.space import SearchSpace
from bluesky_cdi.agent.surrogate import NOISE_MIN, CandidatePosterior, Hyperparameters, fit_hyperparameters

torch.set_num_threads(1)
HYPER = Hyperparameters((0.8, 1.4), 1.3, 0.02)


@pytest.fixture
def candidates():
    return SearchSpace.grid((0.0, 0.0), (6.0, 6.0), 0.3).candidates_m


def measured(n, seed=0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0.0, 6.0, (n, 2))
    outcomes = np.column_stack([np.sin(positions[:, 0]), np.cos(2 * positions.sum(axis=1))])
    return positions, outcomes + 0.1 * rng.standard_normal((n, 2))


def botorch_posterior(positions, outcomes, candidates, hyper):
    """The same posterior from BoTorch, float64, one output at a time."""
    means = []
    for y in outcomes.T:
        kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2))
        with validate_input_scaling(False):
            model = SingleTaskGP(
                torch.tensor(positions),
                torch.tensor(y)[:, None].clone(),
                covar_module=kernel,
                mean_module=ZeroMean(),
                outcome_transform=None,
            )
        kernel.base_kernel.lengthscale = torch.tensor([hyper.lengthscale], dtype=torch.float64)
        kernel.outputscale = hyper.outputscale
        model.likelihood.noise = hyper.noise
        with torch.no_grad():
            posterior = model.posterior(torch.tensor(candidates))
        means.append(posterior.mean[:, 0].numpy())
    return np.column_stack(means), posterior.distribution.covariance_matrix.detach().numpy()


@pytest.mark.parametrize(
    "hyper", [HYPER, Hyperparameters((0.5, 0.5), 1.0, 1e-3), Hyperparameters((4.0, 4.0), 1.0, 5e-3)]
)
def test_posterior_agrees_with_botorch(candidates, hyper):
    positions, outcomes = measured(400)
    posterior = CandidatePosterior(candidates, hyper)
    for first in range(0, 400, 16):
        posterior.extend(positions[first : first + 16])
    posterior.set_outcomes(np.zeros((400, 2)), np.ones(400, bool))
    posterior.set_outcomes(outcomes, np.ones(400, bool))  # the newest outcomes count
    mean, covariance = botorch_posterior(positions, outcomes, candidates, hyper)
    np.testing.assert_allclose(posterior.mean.numpy(), mean, atol=1e-3)
    np.testing.assert_allclose(posterior.covariance.numpy(), covariance, atol=1e-3)
    np.testing.assert_allclose(posterior.variance.numpy(), np.diagonal(covariance), atol=1e-3)


def test_one_large_extension_equals_many_small_ones(candidates):
    positions, outcomes = measured(300)
    at_once, one_by_one = CandidatePosterior(candidates, HYPER), CandidatePosterior(candidates, HYPER)
    at_once.extend(positions)
    for k in range(0, 300, 7):
        one_by_one.extend(positions[k : k + 7])
    for posterior in (at_once, one_by_one):
        posterior.set_outcomes(outcomes, np.ones(300, bool))
    np.testing.assert_allclose(at_once.mean.numpy(), one_by_one.mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(at_once.standardised_residuals, one_by_one.standardised_residuals, atol=1e-8)


def test_points_without_outcome_count_for_the_variance_only(candidates):
    positions, outcomes = measured(120)
    valid = np.random.default_rng(5).random(120) > 0.2
    broken = np.where(valid[:, None], outcomes, np.nan)
    posterior = CandidatePosterior(candidates, HYPER)
    posterior.extend(positions)
    posterior.set_outcomes(broken, valid)
    mean, _ = botorch_posterior(positions[valid], outcomes[valid], candidates, HYPER)
    _, covariance = botorch_posterior(positions, outcomes, candidates, HYPER)
    np.testing.assert_allclose(posterior.mean.numpy(), mean, atol=1e-3)
    np.testing.assert_allclose(posterior.variance.numpy(), np.diagonal(covariance), atol=1e-3)
    posterior.set_outcomes(broken, np.zeros(120, bool))
    assert not posterior.mean.any()


def test_residuals_are_standard_normal_under_the_model():
    rng = np.random.default_rng(3)
    positions = rng.uniform(0, 6, (500, 2))
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = torch.tensor([HYPER.lengthscale]).double(), HYPER.outputscale
    with torch.no_grad():
        covariance = kernel(torch.tensor(positions)).to_dense().numpy() + HYPER.noise * np.eye(500)
    posterior = CandidatePosterior(positions[:10], HYPER)
    posterior.extend(positions)
    posterior.set_outcomes(np.linalg.cholesky(covariance) @ rng.standard_normal((500, 4)), np.ones(500, bool))
    assert np.mean(posterior.standardised_residuals**2) == pytest.approx(1.0, abs=0.1)


def test_fit_finds_scales_within_bounds():
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 8, (150, 2))
    smooth = np.sin(0.8 * positions[:, :1]) + np.cos(2.5 * positions[:, 1:]) + 0.1 * rng.standard_normal((150, 1))
    hyper = fit_hyperparameters(positions, (smooth - smooth.mean()) / smooth.std(), Hyperparameters(), rng)
    assert 0.5 <= hyper.lengthscale[1] < hyper.lengthscale[0] <= 4.0
    assert NOISE_MIN <= hyper.noise < 0.1
    noise = fit_hyperparameters(positions, rng.standard_normal((150, 1)), Hyperparameters(), rng)
    assert noise.noise > 5 * hyper.noise


def test_fit_uses_at_most_300_points_of_several_outputs():
    rng = np.random.default_rng(1)
    positions, outcomes = measured(500)
    hyper = fit_hyperparameters(positions, outcomes / outcomes.std(axis=0), HYPER, rng)
    assert all(0.5 <= scale <= 4.0 for scale in hyper.lengthscale)


def test_learned_gain_is_the_true_drop_of_variance(candidates):
    rng = np.random.default_rng(0)
    weights = rng.random(len(candidates)) + 0.1
    posterior = CandidatePosterior(candidates, HYPER)
    posterior.extend(measured(30)[0])
    pending = np.array([7, 200])
    learning = VarianceReduction(posterior, weights, pending, 4, rng)
    posterior = CandidatePosterior(candidates, HYPER)
    posterior.extend(np.vstack([measured(30)[0], candidates[pending]]))
    for candidate in (100, 101, 350):
        before = posterior.variance.numpy().copy()
        gain = learning.gain()[candidate]
        learning.condition(candidate)
        posterior.extend(candidates[[candidate]])
        drop = np.average(before - posterior.variance.numpy(), weights=weights) / HYPER.outputscale
        assert gain == pytest.approx(drop, rel=1e-3)


def test_representatives_stand_for_many_candidates():
    rng = np.random.default_rng(0)
    many = SearchSpace.grid((0.0, 0.0), (10.0, 10.0), 0.25).candidates_m
    weights = np.exp(-((many - 3.0) ** 2).sum(axis=1)) + 0.03
    posterior = CandidatePosterior(many, HYPER)
    gain = VarianceReduction(posterior, weights, np.empty(0, np.int64), 1, rng).gain()
    prior = posterior.covariance.numpy()
    exact = (weights / weights.sum()) @ prior**2 / (HYPER.outputscale + HYPER.noise) / HYPER.outputscale
    np.testing.assert_allclose(gain, exact, atol=0.05 * exact.max())


def test_coverage_saturates_and_is_consistent():
    space = SearchSpace.grid((0.0, 0.0), (6.0, 6.0), 0.3)
    coverage = Coverage(space, width_m=1.0)
    centre = len(space) // 2
    gains = []
    for _ in range(4):
        gains.append(coverage.gain()[centre])
        coverage.add(centre)
    assert all(later < 0.8 * earlier for earlier, later in pairwise(gains))
    assert coverage.dark[centre] == pytest.approx(np.exp(-4.0))
    other = Coverage(space, width_m=1.0)
    other.add_positions(space.candidates_m[[centre] * 4])
    np.testing.assert_allclose(coverage.dark, other.dark, atol=0.05)  # footprints are cut at three sigma
    twin = other.copy()
    twin.add(0)
    assert other.dark[0] > twin.dark[0]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_batch_is_distinct_allowed_and_ends_with_coverage(candidates, alpha):
    space = SearchSpace(candidates)
    posterior = CandidatePosterior(candidates, HYPER)
    posterior.extend(measured(30)[0])
    allowed = candidates[:, 0] > 2.0
    weights = np.where(candidates[:, 1] < 2.0, 1.0, 0.03)
    rng = np.random.default_rng(0)
    coverage = Coverage(space, 1.0)
    learning = VarianceReduction(posterior, weights, np.empty(0, np.int64), 20, rng)
    batch = choose_batch(learning, coverage, allowed, 20, alpha, n_coverage=2)
    assert len(set(batch.index.tolist())) == 20 and allowed[batch.index].all()
    assert batch.learned.max() <= batch.best_learned and batch.covered.max() <= batch.best_covered
    again = Coverage(space, 1.0)
    for candidate in batch.index[:-2]:
        again.add(int(candidate))
    is_open = allowed & ~np.isin(np.arange(len(candidates)), batch.index[:-2])
    assert batch.index[-2] == np.argmax(np.where(is_open, again.gain(), -1.0))


def test_batch_of_more_than_is_open():
    space = SearchSpace.grid((0.0, 0.0), (1.0, 1.0), 0.5)
    posterior = CandidatePosterior(space.candidates_m, HYPER)
    learning = VarianceReduction(posterior, np.ones(9), np.empty(0, np.int64), 20, np.random.default_rng(0))
    batch = choose_batch(learning, Coverage(space, 1.0), np.ones(9, bool), 20, 0.6, 2)
    assert sorted(batch.index.tolist()) == list(range(9))


def test_targets_undo_their_scale_and_skip_bad_points():
    rng = np.random.default_rng(0)
    u, s = rng.uniform(0.02, 0.5, 50), rng.uniform(0.0, 1.0, 50)
    e = rng.standard_normal((50, 8)) * [9, 5, 3, 1, 1, 1, 1, 1]
    u[3], s[4], e[5, 1] = np.nan, np.inf, np.nan
    targets = make_targets(u, s, e)
    np.testing.assert_array_equal(np.flatnonzero(~targets.valid), [3, 4, 5])
    good = targets.values[targets.valid]
    np.testing.assert_allclose(good.mean(axis=0), 0.0, atol=1e-9)
    assert (good.std(axis=0) <= 1.0 + 1e-9).all() and np.isfinite(targets.values).all()
    undone = good[:, LOG_UNCERTAINTY] * targets.scale[LOG_UNCERTAINTY] + targets.offset[LOG_UNCERTAINTY]
    np.testing.assert_allclose(np.exp(undone), u[targets.valid])
    assert 3 <= good.shape[1] <= 5


def test_targets_of_nothing_usable():
    targets = make_targets(np.full(4, np.nan), np.ones(4), np.empty((4, 0)))
    assert not targets.valid.any() and targets.values.shape == (4, 2)


def test_components_against_singular_values():
    rng = np.random.default_rng(0)
    e = rng.standard_normal((80, 6)) * [10, 8, 0.1, 0.1, 0.1, 0.1]
    components = principal_components(e)
    assert components.shape == (80, 2)  # the rest explains nothing
    scores, singular, axes = np.linalg.svd(e - e.mean(axis=0), full_matrices=False)
    sign = np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(axis=1)])
    np.testing.assert_allclose(components, scores[:, :2] * singular[:2] * sign, rtol=1e-9, atol=1e-9)
    assert principal_components(np.ones((5, 3))).shape == (5, 0)
    assert principal_components(np.empty((5, 0))).shape == (5, 0)
    assert principal_components(rng.standard_normal((3, 64))).shape[0] == 3


def test_noise_is_no_structure():
    u = np.array([0.05] * 40 + [0.3] * 40)
    s = np.sqrt(2) * u  # noise of variance u**2 in phase and in amplitude
    s[:10] = 0.5
    logit = not_vacuum_logit(s, u)
    assert logit[:10].min() > 2.0 and logit[10:].max() < -2.0
    # Uncertainties stated ten times too large hide nothing.
    overstated = not_vacuum_logit(np.array([0.5] * 5 + [0.07] * 5), np.full(10, 0.5))
    assert overstated[:5].min() > 2.0 and overstated[5:].max() < -2.0
    # A field of nothing but noise has no frame that stands out.
    assert np.ptp(not_vacuum_logit(np.full(30, 0.3), np.full(30, 0.3))) == 0.0


def test_weights_follow_structure_and_uncertainty_only_tilts():
    not_vacuum = np.array([0.9, 0.9, 0.05, 0.001])
    weights = candidate_weights(not_vacuum, np.log([0.05, 5.0, 5.0, 0.05]))
    assert weights.max() == 1.0 and weights.min() == pytest.approx(0.03 / 1.8, rel=0.6)
    assert (candidate_weights(np.array([0.0, 0.01]), np.zeros(2)) == 1.0).all()
    assert weights[1] / weights[0] <= 4.0 and weights[0] > 2 * weights[2]


def test_unknown_places_are_undecided():
    targets = make_targets(np.full(20, 0.05), np.r_[np.full(10, 0.01), np.full(10, 0.8)], np.empty((20, 0)))
    logit = np.array([[0.0, (6.0 - targets.offset[NOT_VACUUM]) / targets.scale[NOT_VACUUM]]] * 2)
    known, unknown = predict_not_vacuum(logit, np.array([0.0, 1.0]), targets)
    assert known > 0.99 and 0.5 < unknown < known
