"""The one comparison of an image with a truth: what it removes, what it measures, what it says of predicted errors."""

import numpy as np
import pytest

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation import compare, compare_estimate
from bluesky_cdi.protocols import Estimate

SIDE = 96


def smooth(seed, cutoff=0.1):
    """A real periodic noise of unit variance without frequencies above `cutoff`, cycles per pixel."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij"))
    image = np.fft.ifft2(np.fft.fft2(noise) * (frequency <= cutoff)).real
    return image / image.std()


@pytest.fixture(scope="module")
def truth():
    return (1 - 0.1 * smooth(1)) * np.exp(0.2j * smooth(2))


@pytest.fixture
def mask():
    inside = np.zeros((SIDE, SIDE), bool)
    inside[8:-8, 12:-12] = True
    return inside


def displaced(image, shift_px):
    turn = [np.exp(-2j * np.pi * s * np.fft.fftfreq(n)) for s, n in zip(shift_px, image.shape, strict=True)]
    return np.fft.ifft2(np.fft.fft2(image) * turn[0][:, None] * turn[1])


def test_what_no_measurement_fixes_is_removed(truth, mask):
    y, x = np.indices(truth.shape)
    estimate = np.where(mask, displaced(truth, (0.4, -0.2)) * np.exp(1j * (0.05 * y + 0.02 * x)) * 2j, 1.0)
    found = compare(estimate, truth, 1e3 * mask)
    assert found.numbers["complex_nrmse"] < 0.001 and found.numbers["phase_mae_rad"] < 0.001
    assert found.aligned.shift_px == pytest.approx((0.4, -0.2), abs=0.0051)
    np.testing.assert_allclose(found.object[mask], found.truth[mask], atol=2e-3)


def test_a_mask_and_its_illumination_are_the_same(truth, mask):
    estimate = truth + 0.05 * smooth(3)
    by_mask, by_illumination = (compare(estimate, truth, weight) for weight in (mask, np.where(mask, 700.0, 13.9)))
    np.testing.assert_array_equal(by_mask.mask, mask)
    np.testing.assert_array_equal(by_illumination.mask, mask)
    assert by_mask.numbers == by_illumination.numbers


def test_errors_that_are_predicted_rightly(truth, mask):
    rng = np.random.default_rng(4)
    std = rng.uniform(0.01, 0.05, truth.shape)
    estimate = truth * np.exp(1j * std * rng.normal(size=truth.shape))
    right, half = (compare(estimate, truth, mask, std_phase_rad=share * std).numbers for share in (1.0, 0.5))
    # 5,760 pixels: a share of 0.9 is known to 0.004.
    assert right["inside_90_percent_interval"] == pytest.approx(0.9, abs=0.016)
    # Half of the 90 % interval, 0.82 standard deviations, holds 59 %.
    assert half["inside_90_percent_interval"] == pytest.approx(0.589, abs=0.026)
    assert 0.3 < right["uncertainty_rank_correlation"] == half["uncertainty_rank_correlation"]
    assert "inside_90_percent_interval" not in compare(estimate, truth, mask).numbers


def test_a_truth_without_contrast_has_no_measure(truth, mask):
    numbers = compare(truth, np.ones_like(truth), mask).numbers
    names = ("complex_nrmse", "ssim_amplitude", "ssim_phase", "psnr_phase_db")
    assert np.isnan([numbers[name] for name in names]).all()
    assert numbers["phase_mae_rad"] == pytest.approx(np.abs(np.angle(truth))[mask].mean(), rel=0.5)


def test_images_below_the_window_have_no_ssim(truth):
    small = truth[:10, :10]
    numbers = compare(small, small, np.ones((10, 10), bool)).numbers
    assert np.isnan(numbers["ssim_phase"]) and numbers["psnr_phase_db"] > 100


def estimate_of(image, origin_m, pixel_m=2e-8):
    none = np.zeros((0,))
    return Estimate(
        n_frames=1, object=image, origin_m=origin_m, pixel_m=pixel_m, probe=np.ones((1, 8, 8), complex),
        std_amplitude=np.ones(image.shape), std_phase_rad=np.full(image.shape, 0.1), coverage=np.ones(image.shape),
        frame_seq_nums=none, positions_m=none, embedding=none, frame_uncertainty=none, residual=none, novelty=none,
    )  # fmt: skip


def test_an_estimate_is_compared_with_what_lies_under_it(truth):
    estimate = estimate_of(truth[20:70, 30:90], (1e-6 + 20 * 2e-8, -2e-6 + 30 * 2e-8))
    found = compare_estimate(estimate, truth, (1e-6, -2e-6))
    np.testing.assert_allclose(found.truth, truth[20:70, 30:90])
    assert found.numbers["complex_nrmse"] < 1e-9 and found.numbers["inside_90_percent_interval"] == 1
    with pytest.raises(GeometryError, match="must lie inside the truth"):
        compare_estimate(estimate, truth, (2e-6, -2e-6))
