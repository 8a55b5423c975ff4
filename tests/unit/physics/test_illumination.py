"""Summed illumination against a sum frame by frame, and the photons of a frame through vacuum."""

import numpy as np
import pytest
import torch

from bluesky_cdi.evaluation.products import coverage_of
from bluesky_cdi.io import Product
from bluesky_cdi.physics import illumination
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.illumination import photons_through_vacuum, summed_illumination

N, SHAPE = 16, (2, 40, 50)


@pytest.fixture
def probe():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, N, N, dtype=torch.complex64, generator=generator)


def frames(number, scenes=2, seed=2):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, (SHAPE[1] - N, SHAPE[2] - N), (number, 2))
    blank = torch.zeros(()).expand(number, N, N)
    scene = torch.from_numpy(rng.integers(0, scenes, number))
    return Diffraction(blank, torch.from_numpy(corner), torch.zeros(number, 2), SHAPE, scene=scene)


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_light_adds_up_where_the_frames_are(probe, monkeypatch, at_once):
    monkeypatch.setattr(illumination, "frames_at_once", lambda _: at_once)
    data = frames(9)
    expected = np.zeros(SHAPE)
    for (y, x), scene in zip(data.corner.tolist(), data.scene.tolist(), strict=True):
        expected[scene, y : y + N, x : x + N] += np.square(np.abs(probe[scene].numpy())).sum(axis=0)
    np.testing.assert_allclose(summed_illumination(probe, data).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_file_has_the_same_light_at_whole_pixels(probe):
    data = frames(9, scenes=1)
    geometry = Geometry(8000.0, 2.0, 172e-6, N)
    centre_m = (data.corner.numpy() + N // 2) * geometry.pixel_m
    image = np.ones(SHAPE[1:], np.complex64)
    product = Product("made", geometry, np.arange(9), centre_m, probe[0].numpy(), image, (0.0, 0.0))
    np.testing.assert_allclose(coverage_of(product), summed_illumination(probe, data)[0].numpy(), rtol=1e-5, atol=1e-5)


def test_the_vacuum_is_the_nine_tenths_quantile():
    assert photons_through_vacuum(np.arange(101.0)) == 90
    assert photons_through_vacuum(np.zeros(0)) == 0
