"""Translation, twin and scale between reconstructions of one frame."""

import math

import numpy as np
import pytest

from bluesky_cdi.evaluation import complex_nrmse
from bluesky_cdi.evaluation.single_shot import (
    conjugate_twin,
    phase_retrieval_transfer,
    resolve_ambiguities,
    transfer_resolution_px,
    translate,
)


def sample(seed=1, size=32):
    """Gaussian spots of random phase near the middle: band-limited, isolated, without symmetry."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size)) - size // 2
    spots = [
        rng.uniform(0.4, 1) * np.exp(1j * rng.uniform(-3, 3) - ((y - a) ** 2 + (x - b) ** 2) / 6)
        for a, b in rng.uniform(-5, 5, (7, 2))
    ]
    return np.sum(spots, axis=0)


def nrmse(found, truth):
    return complex_nrmse(found, truth, np.ones(truth.shape))


@pytest.mark.parametrize("size", [7, 8])
def test_the_twin_has_the_same_far_field_and_is_its_own_inverse(size):
    rng = np.random.default_rng(2)
    image = rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size))
    twin = conjugate_twin(image)
    np.testing.assert_allclose(np.abs(np.fft.fft2(twin)), np.abs(np.fft.fft2(image)), atol=1e-10)
    np.testing.assert_allclose(conjugate_twin(twin), image)
    assert twin[size // 2, size // 2] == np.conj(image[size // 2, size // 2])


def test_the_twin_of_a_hand_made_image():
    image = np.zeros((6, 6), complex)
    image[3, 4], image[2, 3] = 1 + 2j, 3
    expected = np.zeros((6, 6), complex)
    expected[3, 2], expected[4, 3] = 1 - 2j, 3
    np.testing.assert_array_equal(conjugate_twin(image), expected)
    np.testing.assert_array_equal(conjugate_twin(image[None])[0], expected)


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("shift_px", [(0.0, 0.0), (3.0, -5.0), (0.37, -0.81), (-13.25, 14.5)])
@pytest.mark.parametrize("size", [31, 32])
def test_translation_twin_and_scale_are_found_and_removed(twin, shift_px, size):
    truth = sample(size=size)
    estimate = conjugate_twin(truth) if twin else truth
    # Twins are displaced in their own frame: undoing the twin turns the shift around.
    estimate = translate(estimate, [-s for s in shift_px] if twin else shift_px) * (0.5 - 0.3j)
    found = resolve_ambiguities(estimate, truth)
    assert found.twin is twin
    assert found.shift_px == pytest.approx(shift_px, abs=0.01)
    expected = 1 / ((0.5 + 0.3j) if twin else (0.5 - 0.3j))
    assert found.scale == pytest.approx(expected, abs=0.02)
    assert nrmse(found.object, truth) < 0.01


def test_between_reconstructions_only_the_phase_is_removed():
    truth = sample()
    found = resolve_ambiguities(truth * 2j, truth, scale="phase")
    assert abs(found.scale) == pytest.approx(1)
    np.testing.assert_allclose(found.object, 2 * truth, atol=1e-9)


def test_another_object_stays_another_object():
    assert nrmse(resolve_ambiguities(sample(seed=3), sample(seed=4)).object, sample(seed=4)) > 0.5


def test_translate_by_whole_pixels_is_a_roll():
    truth = sample()
    np.testing.assert_allclose(translate(truth, (3, -2)), np.roll(truth, (3, -2), (0, 1)), atol=1e-12)


@pytest.mark.parametrize(
    ("estimate", "reference", "message"),
    [
        (np.ones((4, 4)), np.ones((4, 5)), "images of one shape; they are"),
        (np.ones(4), np.ones(4), "images of one shape"),
        (np.full((4, 4), np.nan), np.ones((4, 4)), "finite everywhere"),
        (np.zeros((4, 4)), np.ones((4, 4)), "zero everywhere"),
        (np.ones((4, 4)), np.zeros((4, 4)), "zero everywhere"),
    ],
)
def test_what_can_not_be_compared_is_refused(estimate, reference, message):
    with pytest.raises(ValueError, match=message):
        resolve_ambiguities(estimate, reference)


def test_no_steps_per_pixel_are_refused():
    with pytest.raises(ValueError, match="upsampling must be 1 or more; it is 0"):
        resolve_ambiguities(sample(), sample(), upsampling=0)


def test_transfer_is_one_where_all_agree_and_falls_where_they_do_not():
    rng = np.random.default_rng(5)
    size, starts = 64, 25
    counts = rng.uniform(1, 4, (size, size))
    radius = np.hypot(*(np.indices((size, size)) - size // 2))
    phase = rng.uniform(-np.pi, np.pi, (size, size))
    lost = rng.uniform(-np.pi, np.pi, (starts, size, size)) * (radius > 16)
    found = phase_retrieval_transfer(np.sqrt(counts) * np.exp(1j * (phase + lost)), counts)
    assert found.shape == (33,)
    np.testing.assert_allclose(found[:16], 1)
    # The mean of s random unit phasors has a mean modulus of sqrt(pi / s) / 2.
    assert found[18:].mean() == pytest.approx(math.sqrt(math.pi / starts) / 2, rel=0.03)


def test_transfer_leaves_masked_pixels_out():
    counts = np.full((16, 16), 4.0)
    waves = np.full((3, 16, 16), 2.0 + 0j)
    mask = np.ones((16, 16), bool)
    mask[8, 8] = False
    waves[:, 8, 8] = 1e6
    mask[6:11, 4:7] = False
    waves[:, 6:11, 4:7] = 0
    found = phase_retrieval_transfer(waves, counts, mask)
    assert math.isnan(found[0])
    np.testing.assert_allclose(found[1:], 1)
    wild = np.where(mask, counts, math.nan)
    np.testing.assert_array_equal(phase_retrieval_transfer(waves, wild, mask), found)


def test_the_resolution_is_where_the_transfer_first_falls_below():
    # A straight line from 1 at ring 0 to 0 at ring 32 crosses 1/e at ring 32 (1 - 1/e).
    line = np.linspace(1, 0, 33)
    assert transfer_resolution_px(line, 64) == pytest.approx(64 / (32 * (1 - 1 / math.e)))
    assert transfer_resolution_px(line, 64, threshold=0.5) == pytest.approx(4.0)
    stopped = np.where(np.arange(33) < 4, math.nan, line)
    assert transfer_resolution_px(stopped, 64, threshold=0.5) == pytest.approx(4.0)
    rises_again = np.where(np.arange(33) == 30, 1.0, line)
    assert transfer_resolution_px(rises_again, 64, threshold=0.5) == pytest.approx(4.0)


def test_a_transfer_that_never_falls_or_never_rises():
    assert transfer_resolution_px(np.ones(33), 64) is None
    assert transfer_resolution_px(np.full(33, 0.1), 64) == math.inf
    assert transfer_resolution_px(np.full(33, math.nan), 64) == math.inf


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 4, 5)])
def test_transfer_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match=r"waves must be \(s, N, N\)"):
        phase_retrieval_transfer(np.ones(shape), np.ones((4, 4)))
