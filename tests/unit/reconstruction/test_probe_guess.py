"""The probe to begin with: the file's, the configured lens's, or the mean frame's."""

import numpy as np
import pytest
import torch

from bluesky_cdi.config import Config
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.reconstruction.probe_guess import first_guess, first_probe, with_modes

FAR = Geometry(8000.0, 2.0, 172e-6, 64)
NEAR = Geometry(8000.0, 0.2, 1e-6, 64, "near")


@pytest.fixture
def config():
    return Config.model_validate({"probe": {"modes": 2}})


def scan(geometry, counts, probe=None, mask=None):
    positions_m = np.stack([np.arange(len(counts)), np.zeros(len(counts))], axis=1) * 1e-8
    return Scan(counts, positions_m, geometry, probe, mask)


def test_given_probe_gets_weak_modes(config):
    probe = first_probe(FAR, config)[:1]
    more = with_modes(probe, 3, 64)
    assert more.shape == (3, 64, 64)
    np.testing.assert_allclose(more[0], probe[0], atol=1e-6)
    energy = (np.abs(more) ** 2).sum(axis=(1, 2)) / (np.abs(probe) ** 2).sum()
    np.testing.assert_allclose(energy, [1.0, 0.02, 0.02], rtol=1e-3)
    assert abs(np.vdot(more[0], more[1])) < 1e-3 * np.vdot(more[0], more[0]).real
    assert with_modes(more, 2, 64) is more


def test_first_probe_holds_one_photon(config):
    probe = first_probe(FAR, config)
    assert probe.shape == (2, 64, 64)
    energy = (np.abs(probe) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(energy, [0.9, 0.1], rtol=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (1, 32, 64), (1, 32, 32)])
def test_a_probe_of_another_shape_is_refused(shape):
    with pytest.raises(GeometryError, match=r"must be \(modes, 64, 64\)"):
        with_modes(np.ones(shape, complex), 3, 64)


def test_the_scans_own_probe_comes_first_then_the_lens(config):
    counts = np.ones((2, 64, 64), np.uint16)
    own = np.full((1, 64, 64), 0.1 + 0.2j, np.complex64)
    np.testing.assert_array_equal(first_guess(scan(FAR, counts, own), config), own)
    np.testing.assert_array_equal(first_guess(scan(FAR, counts), config), first_probe(FAR, config))


def test_a_near_field_gives_the_probe_whose_frame_is_the_mean(config):
    """Bad pixels take the median."""
    bump = np.exp(-np.square(np.arange(64) - 32.0) / 200)
    mean = np.rint(1e4 * np.outer(bump, bump)) + 100
    counts = np.stack([mean - 50, mean + 50]).astype(np.uint32)
    mask = np.ones((64, 64), bool)
    mask[10, 12] = False
    counts[:, 10, 12] = 10**6
    guess = first_guess(scan(NEAR, counts, mask=mask), config)
    assert guess.shape == (1, 64, 64)
    propagator = propagator_of(NEAR)
    frame = propagator.to_detector(propagator.forward(torch.from_numpy(guess)[None])[0, 0].abs().square()).numpy()
    np.testing.assert_allclose(frame[mask], mean[mask], rtol=1e-3)
    assert frame[10, 12] == pytest.approx(np.median(mean[mask]), rel=1e-2)
