import numpy as np
import pytest
import torch
from scipy import special, stats

from bluesky_cdi.physics.likelihood import amplitude_loss, expected_deviance, mean_over_valid, poisson_deviance


def test_deviance_is_zero_where_the_rate_is_the_count():
    counts = torch.tensor([1.0, 3.0, 250.0, 1e6], dtype=torch.float64)
    np.testing.assert_allclose(poisson_deviance(counts, counts), 0, atol=1e-9)
    assert float(poisson_deviance(torch.zeros(1), torch.zeros(1))) == pytest.approx(0, abs=1e-7)


def test_deviance_is_twice_the_log_likelihood_ratio():
    rng = np.random.default_rng(3)
    counts, rate = rng.poisson(5, 200).astype(float), rng.uniform(0.1, 20, 200)
    expected = 2 * (stats.poisson.logpmf(counts, counts) - stats.poisson.logpmf(counts, rate))
    found = poisson_deviance(torch.from_numpy(rate), torch.from_numpy(counts))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found, 2 * special.kl_div(counts, rate), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("count", "rate", "deviance"), [(0, 1.5, 3.0), (2, 1, 4 * np.log(2) - 2), (1, np.e, 2 * np.e - 4)]
)
def test_deviance_of_single_counts_by_hand(count, rate, deviance):
    """McCullagh and Nelder, section 2.3: 2 (y log(y / mu) - (y - mu))."""
    found = poisson_deviance(torch.tensor([rate], dtype=torch.float64), torch.tensor([count], dtype=torch.float64))
    assert float(found) == pytest.approx(deviance)


@pytest.mark.parametrize(("rate", "low", "high"), [(50.0, 0.97, 1.04), (1e4, 0.97, 1.03), (0.01, 0.05, 0.15)])
def test_mean_deviance_of_poisson_samples(rate, low, high):
    counts = torch.from_numpy(np.random.default_rng(4).poisson(rate, 20_000).astype(float))
    assert low < float(poisson_deviance(torch.full_like(counts, rate), counts).mean()) < high


def test_expected_deviance_is_the_mean_over_poisson_s_distribution():
    rates = torch.tensor([1e-6, 0.02, 0.7, 3.3, 42.0, 150.0], dtype=torch.float64)
    counts = np.arange(400.0)
    for rate, found in zip(rates.tolist(), expected_deviance(rates.float()).tolist(), strict=True):
        deviance = 2 * special.kl_div(counts, rate)
        assert found == pytest.approx(float((stats.poisson.pmf(counts, rate) * deviance).sum()), rel=0.01)
    ends = expected_deviance(torch.tensor([torch.nan, 0.0, 1e9, torch.inf]))
    assert (
        ends[0].isnan()
        and ends[1] == pytest.approx(0, abs=1e-6)
        and ends[2:].tolist() == pytest.approx([1, 1], rel=0.01)
    )


def test_deviance_and_its_gradient_stay_finite_at_zero_rate():
    rate = torch.zeros(2, requires_grad=True)
    total = poisson_deviance(rate, torch.tensor([0.0, 7.0])).sum()
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(rate.grad).all()


def test_deviance_has_the_gradient_of_the_likelihood():
    rate = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([0.0, 3.0, 8.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: poisson_deviance(r, counts), rate)
    (gradient,) = torch.autograd.grad(poisson_deviance(rate, counts).sum(), rate)
    np.testing.assert_allclose(gradient, 2 * (1 - counts / rate.detach()))


def test_amplitude_loss_is_a_quarter_of_the_deviance_of_bright_pixels():
    rate = torch.tensor([1e6], dtype=torch.float64)
    for counts in (rate + 1e3, rate - 2e3):
        assert float(4 * amplitude_loss(rate, counts)) == pytest.approx(float(poisson_deviance(rate, counts)), rel=1e-3)


def test_mean_over_valid_leaves_masked_pixels_out():
    values = torch.tensor([[[1.0, 2.0], [3.0, 100.0]], [[5.0, 5.0], [5.0, -100.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert mean_over_valid(values, mask).tolist() == [2.0, 5.0]
    assert mean_over_valid(values, None).tolist() == [26.5, -21.25]
    assert mean_over_valid(values, torch.zeros_like(mask)).tolist() == [0.0, 0.0]


def test_what_a_masked_pixel_holds_is_not_looked_at():
    values = torch.tensor([[[1.0, float("nan")], [3.0, float("inf")]]])
    mask = torch.tensor([[True, False], [True, False]])
    torch.testing.assert_close(mean_over_valid(values, mask), torch.tensor([2.0]))
