"""The resolution that two halves agree on, where theory says what it is."""

import json
import math

import numpy as np
import pytest

from bluesky_cdi import evaluation
from bluesky_cdi.evaluation.frc import SNR_HALF_BIT, resolution_at, soft_window
from bluesky_cdi.evaluation.resolution import (
    KEY,
    check_halves,
    confirmed_resolution_m,
    noted_frc,
    resolution_notes,
)

SIZE, PIXEL_M = 160, 1e-8
FREQUENCY = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
EVERYWHERE = np.ones((SIZE, SIZE), bool)


def noise(rng):
    return rng.normal(size=(SIZE, SIZE)) + 1j * rng.normal(size=(SIZE, SIZE))


def scene(seed, falls=0.1):
    """A signal whose power over that of one half's noise falls as ``20 exp(-f / falls)``, and two noises."""
    rng = np.random.default_rng(seed)
    signal = np.fft.ifft2(np.fft.fft2(noise(rng)) * np.sqrt(20 * np.exp(-FREQUENCY / falls)))
    return signal, noise(rng), noise(rng)


def with_gaps():
    """A disc with holes."""
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    mask = np.hypot(y, x) < 72
    for row, column in ((-30, 10), (20, -35), (30, 30)):
        mask &= np.hypot(y - row, x - column) > 6
    return mask


@pytest.mark.parametrize("mask", [EVERYWHERE, with_gaps()], ids=["everywhere", "with gaps"])
def test_crosses_where_the_signal_falls_to_the_ratio_of_half_a_bit(mask):
    found, wanted = [], []
    for seed in range(6):
        signal, a, b = scene(seed)
        check = check_halves(signal + a, signal + b, mask, mask, PIXEL_M, 9)
        ratio = 20 * np.exp(-check.frc.frequency_per_m * PIXEL_M / 0.1)
        wanted.append(resolution_at(check.frc.frequency_per_m, ratio / (1 + ratio) - check.frc.half_bit))
        found.append(check.resolution_m)
    # A little coarser than the ratio of half a bit itself: few Fourier pixels ask for more.
    assert 1 < wanted[0] / (PIXEL_M / (0.1 * math.log(20 / SNR_HALF_BIT))) < 1.3
    # Scatter makes the first crossing come early, if anything.
    assert np.median(found) == pytest.approx(wanted[0], rel=0.12)
    assert np.ptp(found) < 0.35 * wanted[0]


def test_the_truth_says_what_the_halves_say():
    ratios = []
    for seed in range(6):
        signal, a, b = scene(seed)
        halves = check_halves(signal + a, signal + b, with_gaps(), with_gaps(), PIXEL_M, 9)
        window = soft_window(with_gaps())
        frc = evaluation.fourier_ring_correlation(signal + (a + b) / 2, signal, PIXEL_M, window)
        true_m = resolution_at(frc.frequency_per_m, frc.correlation - np.sqrt(2 * frc.half_bit / (1 + frc.half_bit)))
        ratios.append(halves.resolution_m / true_m)
    assert np.median(ratios) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("mask", [EVERYWHERE, with_gaps()], ids=["everywhere", "with gaps"])
def test_white_noise_is_never_resolved(mask):
    """Nor under one mask, nor beside the same vacuum: what the halves have in common there is no image."""
    rng = np.random.default_rng(5)
    found = [check_halves(1 + noise(rng), 1 + noise(rng), mask, mask, PIXEL_M, 9).resolution_m for _ in range(20)]
    # A period of a fifth of the field is no resolution; a first ring or two may be above by luck.
    assert min(found) > SIZE * PIXEL_M / 5
    assert np.isinf(found).mean() > 0.5


def test_a_window_leaves_fewer_independent_pixels():
    rng = np.random.default_rng(6)
    window = soft_window(with_gaps())
    curves = [evaluation.fourier_ring_correlation(noise(rng), noise(rng), PIXEL_M, window) for _ in range(30)]
    outer = curves[0].n_pixels > 30
    scatter = np.std([curve.correlation[outer] for curve in curves], axis=0) * np.sqrt(2 * curves[0].n_pixels[outer])
    # The real part of the correlation of n independent complex pairs has a variance of 1 / 2 n; of a thin ring's pixels
    # a few more are independent than of a whole area's.
    assert 0.75 < np.mean(scatter) < 1


def test_soft_edges():
    window = soft_window(with_gaps())
    assert window[~with_gaps()].max() == 0 and window.max() == 1
    assert np.abs(np.diff(window, axis=0)).max() < 0.35
    assert (window[with_gaps()] > 0).all()


def test_too_little_for_rings():
    mask = np.zeros((SIZE, SIZE), bool)
    assert check_halves(mask + 0j, mask + 0j, mask, mask, PIXEL_M, 2) is None
    some = np.zeros_like(mask)
    some[:70] = True
    assert check_halves(mask + 0j, mask + 0j, some, EVERYWHERE, PIXEL_M, 2) is None
    mask[40:55, 20:100] = True
    assert check_halves(mask + 0j, mask + 0j, mask, mask, PIXEL_M, 2) is None


def test_notes_and_what_confirms_a_resolution():
    signal, a, b = scene(0)
    check = check_halves(signal + a, signal + b, EVERYWHERE, EVERYWHERE, PIXEL_M, 9)
    unresolved = check_halves(a, b, EVERYWHERE, EVERYWHERE, PIXEL_M, 8)
    alike = check_halves(signal, signal, EVERYWHERE, EVERYWHERE, PIXEL_M, 7)
    assert alike.resolution_m == 2 * PIXEL_M and unresolved.resolution_m == math.inf

    def confirmed(*checks):
        return confirmed_resolution_m({KEY: json.loads(json.dumps(resolution_notes(checks, 5e-8), allow_nan=False))})

    assert confirmed_resolution_m({}) is None
    assert confirmed(alike) == math.inf  # one may be luck
    assert confirmed(alike, unresolved) == confirmed(alike, unresolved, alike) == math.inf
    assert confirmed(unresolved, alike, check) == confirmed(check, alike) == check.resolution_m
    assert noted_frc(resolution_notes([alike, check], 5e-8)).resolution_half_bit_m == check.resolution_m
