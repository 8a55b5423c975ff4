"""Propagation and illumination from a geometry and a probe."""

import numpy as np
import pytest
import torch

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum, FresnelField
from bluesky_cdi.single_shot import scaled_illumination, single_shot_propagator

FAR = Geometry(8000.0, 1.0, 75e-6, 64)
NEAR = Geometry(12658.0, 1.12, 55e-6, 64, "near", 3.65e-3)


def test_the_geometry_chooses_the_propagator():
    assert single_shot_propagator(None) is FAR_FIELD
    assert single_shot_propagator(FAR) is FAR_FIELD
    assert isinstance(single_shot_propagator(NEAR), AngularSpectrum)
    assert isinstance(single_shot_propagator(FAR, 1.0), FresnelField)


@pytest.mark.parametrize(
    ("geometry", "distance_m", "message"),
    [
        (None, 1.0, "needs the energy, distance and detector pixel"),
        (NEAR, 1.0, "leave out the Fresnel distance"),
        (FAR, 1e-6, "carries a wave only beyond"),
    ],
)
def test_fresnel_distances_without_sense_are_refused(geometry, distance_m, message):
    with pytest.raises(GeometryError, match=message):
        single_shot_propagator(geometry, distance_m)


def made(mask=None, background=0.0):
    rng = np.random.default_rng(0)
    beam = (rng.normal(size=(16, 16)) + 1j * rng.normal(size=(16, 16))).astype(np.complex64)
    counts = FAR_FIELD.to_detector(FAR_FIELD.forward(torch.from_numpy(beam)).abs().square()) + background
    return beam, counts, torch.ones(16, 16, dtype=torch.bool) if mask is None else mask


def test_a_transparent_sample_gives_the_beam_its_photons_back():
    beam, counts, mask = made(background=2.0)
    found = scaled_illumination(7 * beam[None], counts, mask, FAR_FIELD, background=2.0)
    np.testing.assert_allclose(found, beam, rtol=1e-4)


def test_only_valid_pixels_scale_the_beam():
    beam, counts, mask = made()
    mask[8, 3:9] = False
    counts[8, 3:9] = float("nan")
    found = scaled_illumination(beam[None] / 3, counts, mask, FAR_FIELD)
    np.testing.assert_allclose(found, beam, rtol=1e-4)


def test_stated_photons_scale_the_beam():
    beam, counts, mask = made()
    found = scaled_illumination(beam[None], 0.5 * counts, mask, FAR_FIELD, photons=1e6)
    assert float(found.abs().square().sum()) == pytest.approx(1e6, rel=1e-5)


def test_beams_that_do_not_fit_are_refused():
    beam, counts, mask = made()
    with pytest.raises(GeometryError, match="one coherent mode of illumination; the file's probe has 2"):
        scaled_illumination(np.stack([beam, beam]), counts, mask, FAR_FIELD)
    with pytest.raises(GeometryError, match=r"probe and frame must agree; they are \(16, 16\) and \(8, 8\)"):
        scaled_illumination(beam[None], counts[:8, :8], mask[:8, :8], FAR_FIELD)
    with pytest.raises(GeometryError, match="no photons above the background"):
        scaled_illumination(beam[None], counts, mask, FAR_FIELD, background=1e6)
