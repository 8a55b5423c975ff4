from itertools import pairwise

import numpy as np
import pytest

from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.patterns import particles, power_law_texture, siemens_star


@pytest.mark.parametrize("kind", ["star", "particles", "cells", "blank", "natural", "leaves", "lines"])
@pytest.mark.parametrize("shape", [(96, 128), (65, 64)])
def test_samples_absorb_and_retard(kind, shape):
    sample = make_sample(kind, shape, seed=5)
    assert sample.shape == shape and sample.dtype == np.complex64
    assert np.abs(sample).max() <= 1 + 1e-6 and np.abs(sample).min() >= np.exp(-0.08) - 1e-6
    phase = np.angle(sample)
    assert phase.min() >= -0.9 - 1e-6 and phase.max() <= 1e-6
    # One material: phase and absorption are proportional.
    np.testing.assert_allclose(np.log(np.abs(sample)), phase * 0.08 / 0.9, atol=1e-6)


@pytest.mark.parametrize("kind", ["star", "particles", "cells"])
def test_a_seed_names_a_sample(kind):
    a, b, other = (make_sample(kind, (80, 80), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - other).max() > 0.1
    assert np.angle(a).std() > 0.02


def test_a_blank_sample_is_vacuum():
    np.testing.assert_array_equal(make_sample("blank", (10, 12)), np.ones((10, 12)))


def test_an_unknown_sample_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of star, particles, .*, gold; got 'moon'"):
        make_sample("moon", (8, 8))


def test_star_has_its_spokes_and_no_symmetry():
    star = siemens_star((201, 201), radius_px=90)
    assert star.min() >= 0 and star.max() <= 1
    angle = np.linspace(-np.pi, np.pi, 4000, endpoint=False)
    ring = star[np.rint(100 + 40 * np.sin(angle)).astype(int), np.rint(100 + 40 * np.cos(angle)).astype(int)] > 0.5
    assert np.sum(ring & ~np.roll(ring, 1)) == 16
    assert star[100, 100] == 1 and star[0, 0] == 0
    for twin in (star[::-1], star[:, ::-1], star.T, np.rot90(star), np.rot90(star, 2)):
        assert np.abs(twin - star).sum() > 100


def test_one_particle_is_a_sphere():
    image = particles((80, 80), np.random.default_rng(3), 1, (10.0, 10.0))
    assert not image[[0, -1]].any() and not image[:, [0, -1]].any()  # it lies wholly inside
    volume = image.sum() / image.max()
    # A hemisphere's height sums to 2/3 pi R^2 when its top is 1.
    assert volume == pytest.approx(2 / 3 * np.pi * 100, rel=0.05)


def test_texture_has_the_spectrum_that_its_exponent_says():
    texture = power_law_texture((256, 256), np.random.default_rng(2), exponent=1.4)
    assert texture.min() > 0 and texture.max() < 1
    field = np.log(texture / (1 - texture))  # undoes the logistic squeeze
    k = np.fft.fftfreq(256)
    radius = np.hypot(k[:, None], k)
    power = np.abs(np.fft.fft2(field)) ** 2
    edges = np.geomspace(0.02, 0.4, 12)
    rings = [power[(radius >= a) & (radius < b)].mean() for a, b in pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(rings), 1)[0]
    assert slope == pytest.approx(-2.8, abs=0.15)
