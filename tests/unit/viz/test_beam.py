"""A probe along the beam."""

import numpy as np
import pytest

from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.viz.beam import Beam

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 64)


@pytest.fixture
def beam():
    """Two modes, the weaker first, 0.2 mm downstream of the focus."""
    mode = focused_probe(GEOMETRY, numerical_aperture=0.9e-3, defocus_m=0.2e-3, central_stop=0.2).numpy()[0]
    return Beam.of(np.stack([0.5 * mode.T, mode]), GEOMETRY)


def test_modes_come_in_the_order_of_their_powers(beam):
    assert beam.powers == pytest.approx([0.8, 0.2])
    np.testing.assert_allclose(beam.downstream(0.0), beam.at_sample, atol=1e-5 * np.abs(beam.at_sample).max())


def test_the_beam_is_smallest_in_its_focus_and_keeps_its_power(beam):
    assert beam.focus_m == pytest.approx(-0.2e-3, abs=2e-6)
    sharp = [np.square(np.square(np.abs(beam.downstream(z)[0]))).sum() for z in (-0.3e-3, beam.focus_m, -0.1e-3)]
    assert sharp[1] > 1.4 * max(sharp[0], sharp[2])
    power = beam.caustic(-0.3e-3, 0.1e-3).sum(axis=0)
    np.testing.assert_allclose(power, np.square(np.abs(beam.at_sample)).sum(), rtol=1e-5)
