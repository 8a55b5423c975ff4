import math

import numpy as np
import pytest
from scipy import stats

from bluesky_cdi import evaluation
from bluesky_cdi.errors import GeometryError

SIZE = 96


def smooth_field(rng, size=SIZE, cut=0.25):
    f = np.fft.fftfreq(size)
    radius = np.hypot(f[:, None], f)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * (radius < cut) / (0.02 + radius)).real
    return field / field.std()


def low_pass(image, cut):
    f = np.fft.fftfreq(image.shape[0])
    return np.fft.ifft2(np.fft.fft2(image) * (np.hypot(f[:, None], f) < cut))


def displaced(image, shift_px):
    f = np.fft.fftfreq(image.shape[0])
    turn = np.exp(-2j * np.pi * (f[:, None] * shift_px[0] + f * shift_px[1]))
    return np.fft.ifft2(np.fft.fft2(image) * turn)


@pytest.fixture
def truth():
    rng = np.random.default_rng(1)
    return low_pass(np.exp(0.6j * smooth_field(rng)) * (1 - 0.05 * smooth_field(rng)), 0.45)


@pytest.fixture
def mask():
    y, x = np.indices((SIZE, SIZE))
    return np.hypot(y - 50, x - 45) < 34


def ramp(slope):
    y, x = np.indices((SIZE, SIZE))
    return np.exp(1j * (slope[0] * y + slope[1] * x))


@pytest.mark.parametrize("shift_px", [(0.0, 0.0), (0.3137, -0.4411), (5.5, -2.13)])
@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.031, -0.047), (0.4, 0.3)])
def test_align_finds_shift_ramp_and_scale(truth, mask, shift_px, slope):
    estimate = np.where(mask, displaced(truth, shift_px) * ramp(slope) / (0.8 - 0.5j), 1.0)
    found = evaluation.align(estimate, truth, mask)
    assert found.shift_px == pytest.approx(shift_px, abs=0.01)
    assert found.ramp_rad_per_px == pytest.approx(slope, abs=1e-4)
    assert found.scale == pytest.approx(0.8 - 0.5j, abs=1e-2)
    assert evaluation.complex_nrmse(found.object, found.truth, mask) < 0.01
    assert evaluation.phase_mae_rad(found.object, found.truth, mask) < 0.01


def test_align_finds_them_under_noise(truth, mask):
    rng = np.random.default_rng(2)
    noise = rng.normal(scale=0.2, size=(2, SIZE, SIZE))
    estimate = np.where(mask, (displaced(truth, (1.3, 0.6)) + noise[0] + 1j * noise[1]) * ramp((-0.1, 0.2)), 1.0)
    found = evaluation.align(estimate, truth, mask)
    assert found.shift_px == pytest.approx((1.3, 0.6), abs=0.03)
    assert found.ramp_rad_per_px == pytest.approx((-0.1, 0.2), abs=1e-3)


def test_align_leaves_what_it_is_told_to_leave(truth, mask):
    estimate = displaced(truth, (1.0, 0.0)) * ramp((0.02, 0.0))
    found = evaluation.align(estimate, truth, mask, shift=False, ramp=False)
    assert found.shift_px == (0.0, 0.0)
    assert found.ramp_rad_per_px == (0.0, 0.0)
    assert np.array_equal(found.truth, truth)
    assert np.allclose(found.object, found.scale * estimate)


def test_align_looks_no_further_than_told(truth, mask):
    found = evaluation.align(displaced(truth, (9.0, 0.0)), truth, mask, max_shift_px=1, ramp=False)
    # Each pass goes at most one pixel and the upsampled neighbourhood further.
    assert abs(found.shift_px[0]) <= 1.75 * evaluation.alignment.PASSES


def test_a_blank_truth_fixes_no_shift(mask):
    noise = np.random.default_rng(3).normal(scale=0.1, size=(SIZE, SIZE))
    found = evaluation.align(np.exp(1j * noise), np.ones((SIZE, SIZE), complex), mask)
    assert found.shift_px == (0.0, 0.0)
    assert math.isnan(evaluation.complex_nrmse(found.object, found.truth, mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, t, w: (o[1:], t, w), "one shape"),
        (lambda o, t, w: (o * np.nan, t, w), "must be finite"),
        (lambda o, t, w: (o, t, w * 0), "somewhere positive"),
        (lambda o, t, w: (o, t, w - 1.0), "nowhere negative"),
    ],
)
def test_align_refuses_what_it_cannot_compare(truth, mask, change, message):
    with pytest.raises(ValueError, match=message):
        evaluation.align(*change(truth, truth, mask.astype(float)))


def test_align_refuses_bad_settings(truth, mask):
    with pytest.raises(ValueError, match="upsampling must be 1 or more"):
        evaluation.align(truth, truth, mask, upsampling=0)


def test_nrmse_by_hand():
    # mean(T) = 0, sum |T|^2 = 4; a = 3 / 3, and one pixel is wrong by 1.
    t = np.array([[1.0, 1.0], [-1.0, -1.0]])
    o = np.array([[1.0, 1.0], [-1.0, 0.0]])
    assert evaluation.complex_nrmse(o, t, np.ones((2, 2))) == pytest.approx(0.5)
    assert evaluation.complex_nrmse(o, t, np.array([[1, 1], [1, 0]])) == pytest.approx(0, abs=1e-12)


def test_nrmse_is_zero_for_truth_and_blind_to_scale(truth, mask):
    rng = np.random.default_rng(4)
    noisy = truth + 0.1 * rng.normal(size=truth.shape)
    assert evaluation.complex_nrmse(truth, truth, mask) == pytest.approx(0, abs=1e-12)
    expected = evaluation.complex_nrmse(noisy, truth, mask)
    assert evaluation.complex_nrmse((-3 + 2j) * noisy, truth, mask) == pytest.approx(expected, rel=1e-12)


def test_phase_error_is_wrapped_and_counts_dark_pixels():
    t, o = np.exp(1j * np.array([[3.1, 1.0]])), np.exp(1j * np.array([[-3.1, 1.0]]))
    weight = np.ones((1, 2))
    assert evaluation.phase_mae_rad(o, t, weight) == pytest.approx((2 * np.pi - 6.2) / 2)
    assert evaluation.phase_mae_rad(o * [[1, 0]], t, weight) == pytest.approx((2 * np.pi - 6.2 + 1.0) / 2)


def test_wrap_rad():
    assert evaluation.wrap_rad(np.array([0.5, 3 * np.pi, -3.5])) == pytest.approx([0.5, -np.pi, 2 * np.pi - 3.5])


def test_illuminated_is_a_share_of_the_maximum():
    coverage = np.array([[0.0, 1.9], [2.0, 100.0]])
    assert evaluation.illuminated_mask(coverage).tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match="somewhere positive"):
        evaluation.illuminated_mask(np.zeros((2, 2)))


def test_ssim_of_equal_images_and_of_an_offset():
    flat = np.full((16, 20), 0.5)
    assert evaluation.ssim(flat, flat, 1.0) == pytest.approx(1.0)
    # No variance: only the luminance term is left.
    by_hand = (2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)
    assert evaluation.ssim(flat + 0.1, flat, 1.0) == pytest.approx(by_hand)


def test_ssim_against_the_definition_in_one_window():
    rng = np.random.default_rng(5)
    x, y = rng.random((2, 13, 13))
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w = np.outer(line, line) / np.outer(line, line).sum()
    a, b = x[1:12, 1:12], y[1:12, 1:12]
    mean_a, mean_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * (a - mean_a) ** 2).sum(), (w * (b - mean_b) ** 2).sum()
    cov = (w * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = (0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2
    by_hand = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    centre = np.zeros((13, 13), bool)
    centre[6, 6] = True
    assert evaluation.ssim(x, y, 2.0, centre) == pytest.approx(by_hand, rel=1e-9)


def test_ssim_and_psnr_refuse():
    flat = np.ones((16, 16))
    with pytest.raises(ValueError, match="a real image is needed"):
        evaluation.ssim(flat * 1j, flat, 1.0)
    with pytest.raises(ValueError, match="11 x 11"):
        evaluation.ssim(flat[:5], flat[:5], 1.0)
    with pytest.raises(ValueError, match="data_range must be"):
        evaluation.ssim(flat, flat, 0.0)
    with pytest.raises(ValueError, match="mask must be"):
        evaluation.ssim(flat, flat, 1.0, np.zeros((16, 16), bool))
    with pytest.raises(ValueError, match="peak must be"):
        evaluation.psnr(flat, flat, -1.0)
    with pytest.raises(ValueError, match="not empty"):
        evaluation.psnr(flat, flat, 1.0, np.zeros((16, 16), bool))
    with pytest.raises(ValueError, match="one shape"):
        evaluation.psnr(flat, flat[1:], 1.0)


def test_psnr_by_hand():
    flat = np.zeros((4, 4))
    assert evaluation.psnr(flat + 0.1, flat, 1.0) == pytest.approx(20.0)
    assert evaluation.psnr(flat + 0.1, flat, 255.0) == pytest.approx(20.0 + 48.13, abs=0.005)
    assert evaluation.psnr(flat, flat, 1.0) == math.inf


def complex_noise(rng, size):
    return rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size))


def test_frc_of_equal_images_is_one():
    image = complex_noise(np.random.default_rng(12), 64)
    same = evaluation.fourier_ring_correlation(image, image, 1e-8)
    assert same.correlation == pytest.approx(1.0)
    assert same.resolution_half_bit_m is None
    # The real part is taken: a constant phase between the images lowers it.
    turned = evaluation.fourier_ring_correlation(image, (2 - 1j) * image, 1e-8)
    assert turned.correlation == pytest.approx(2 / math.sqrt(5))


def test_frc_of_noise_is_zero_within_its_scatter():
    rng = np.random.default_rng(6)
    runs = [
        evaluation.fourier_ring_correlation(complex_noise(rng, 128), complex_noise(rng, 128), 1e-8) for _ in range(10)
    ]
    # Independent pixels would give a scatter of 1. The Hann window correlates neighbours by 2/3 and
    # 1/6, so along one axis the variance grows at most by 1 + 2 (4/9 + 1/36) = 1.944, in both by its square.
    z = np.array([run.correlation * np.sqrt(2 * run.n_pixels) for run in runs])[:, 5:]
    assert 1 < z.std() < 1.944
    assert abs(z.mean()) < 5 * 1.944 / math.sqrt(z.size)
    assert np.abs(z).max() < 5 * 1.944
    assert runs[0].n_pixels[0] == 8
    assert runs[0].frequency_per_m[-1] == pytest.approx(1 / 2e-8)


def test_frc_thresholds_by_hand():
    assert evaluation.frc_threshold(np.array([100]), evaluation.SNR_HALF_BIT) == pytest.approx(
        0.39812 / 1.29812, abs=1e-4
    )
    assert evaluation.frc_threshold(np.array([100]), evaluation.SNR_ONE_BIT) == pytest.approx(
        0.74142 / 1.64142, abs=1e-4
    )
    assert evaluation.frc_threshold(np.array([1e12]), evaluation.SNR_HALF_BIT) == pytest.approx(0.1716, abs=1e-4)
    assert evaluation.frc_threshold(np.array([1e12]), evaluation.SNR_ONE_BIT) == pytest.approx(1 / 3, abs=1e-4)


def test_frc_finds_a_known_resolution():
    rng = np.random.default_rng(7)
    size, pixel, cut = 256, 1e-8, 0.2
    signal = 10 * low_pass(rng.normal(size=(size, size)), cut)
    halves = [signal + rng.normal(size=(size, size)) for _ in range(2)]
    found = evaluation.fourier_ring_correlation(*halves, pixel)
    assert found.resolution_half_bit_m == pytest.approx(pixel / cut, rel=0.03)
    assert found.resolution_one_bit_m == pytest.approx(pixel / cut, rel=0.03)


def test_frc_without_any_resolved_ring():
    rng = np.random.default_rng(8)
    noise = rng.normal(size=(64, 64))
    assert evaluation.fourier_ring_correlation(noise, -noise, 1e-8).resolution_half_bit_m == math.inf


def test_frc_refuses(truth):
    with pytest.raises(GeometryError, match="pixel_m"):
        evaluation.fourier_ring_correlation(truth, truth, 0.0)
    with pytest.raises(ValueError, match="8 x 8"):
        evaluation.fourier_ring_correlation(truth[:4], truth[:4], 1e-8)


def test_dose_by_hand():
    found = evaluation.dose(np.array([[0.0, 10.0], [0.1, 30.0]]), 1e-6)
    assert found.photons == pytest.approx(40.1)
    assert found.photons_per_m2 == pytest.approx(20e12)
    with pytest.raises(GeometryError, match="pixel_m"):
        evaluation.dose(np.ones((2, 2)), -1.0)


def test_calibrated_errors_give_the_nominal_coverage():
    rng = np.random.default_rng(9)
    std = rng.uniform(0.1, 2.0, 100_000)
    error = std * rng.normal(size=std.size)
    for level, share in evaluation.interval_coverage(error, std).items():
        assert share == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / std.size))
    assert evaluation.expected_calibration_error(error, std) < 0.005
    # Overconfident by two: P(|z| < 1.645 / 2).
    half = evaluation.interval_coverage(error, std / 2)[0.9]
    assert half == pytest.approx(2 * stats.norm.cdf(1.6449 / 2) - 1, abs=0.01)


def test_certain_and_wrong_is_the_worst_calibration():
    assert evaluation.expected_calibration_error(np.ones(10), np.zeros(10)) == pytest.approx(0.5)


def test_ause_by_hand():
    error = np.array([1.0, -3.0])
    assert evaluation.ause(error, np.array([0.1, 0.2])) == pytest.approx(0.0)
    # Means of the rest: 3, 2 by std; 1, 2 by error; mean error 2.
    assert evaluation.ause(error, np.array([0.2, 0.1])) == pytest.approx(0.5)
    assert evaluation.ause(error, np.array([0.1, 0.1])) == pytest.approx(0.25)
    assert evaluation.ause(np.zeros(3), np.ones(3)) == 0.0


def test_ause_lies_between_perfect_and_reversed():
    rng = np.random.default_rng(10)
    std = rng.uniform(0.1, 2.0, 5000)
    error = std * rng.normal(size=std.size)
    assert evaluation.ause(error, np.abs(error)) == pytest.approx(0.0, abs=1e-12)
    found, shuffled = evaluation.ause(error, std), evaluation.ause(error, rng.permutation(std))
    assert 0 < found < shuffled < evaluation.ause(error, -np.abs(error) + 10)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(11)
    error, std = rng.normal(size=200), rng.integers(1, 9, 200).astype(float)
    assert evaluation.rank_correlation(error, std) == pytest.approx(stats.spearmanr(np.abs(error), std).statistic)
    assert math.isnan(evaluation.rank_correlation(error, np.ones(200)))


def test_calibration_refuses():
    with pytest.raises(ValueError, match="one shape, not empty"):
        evaluation.ause(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="std not negative"):
        evaluation.rank_correlation(np.ones(2), -np.ones(2))
    with pytest.raises(ValueError, match="levels must lie"):
        evaluation.interval_coverage(np.ones(2), np.ones(2), levels=(0.5, 1.0))


def test_crop_takes_the_nearest_pixels():
    whole = np.arange(20.0 * 30).reshape(20, 30) + 0j
    part = evaluation.crop_to(whole, (-1e-6, 2e-6), (-1e-6 + 3.4e-8, 2e-6 + 6.6e-8), (5, 6), 1e-8)
    assert np.array_equal(part, whole[3:8, 7:13])


@pytest.mark.parametrize("origin_m", [(-1e-8, 0.0), (0.0, 2.5e-7), (float("nan"), 0.0)])
def test_crop_refuses_a_grid_outside_the_truth(origin_m):
    with pytest.raises(GeometryError, match="must lie inside the truth"):
        evaluation.crop_to(np.ones((20, 30), complex), (0.0, 0.0), origin_m, (5, 6), 1e-8)
