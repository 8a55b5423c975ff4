"""What is kept of an object region by region, and of frames that had another probe."""

import numpy as np
import pytest
import torch

from bluesky_cdi.reconstruction.object_map import ObjectMap, share_of_new
from bluesky_cdi.reconstruction.tiles import Box, Region
from bluesky_cdi.reconstruction.uncertainty import UncertaintyEstimate


def test_a_core_goes_over_into_its_surroundings_but_not_into_nothing():
    """At the object's border there is nothing that a seam could be made with."""
    region = Region(Box((0, 64), (64, 128)), Box((0, 0), (128, 192)), (1,))
    share = share_of_new(region, 16)
    assert share.shape == (64, 64) and (share[:40, 16:48] == 1).all()
    np.testing.assert_allclose(share[10, :16], (np.arange(16) + 0.5) / 16)
    np.testing.assert_allclose(share[10, -16:], share[10, :16][::-1])
    np.testing.assert_allclose(share[-16:, 32], share[10, -16:])
    whole = Region(Box((0, 0), (64, 64)), Box((0, 0), (64, 64)), (0,))
    assert (share_of_new(whole, 16) == 1).all()


def test_what_an_epoch_has_shown_stays_where_it_has_thrown_more_light():
    cpu = torch.device("cpu")
    region = Region(Box((0, 0), (4, 6)), Box((0, 0), (4, 6)), (0,))
    known = ObjectMap((4, 6), 4, True, cpu)
    view = known.view(region, torch.ones(1, 1, 4, 4, dtype=torch.complex64))
    light = torch.tensor([3.0, 3.0, 2.0, 1.0, 0.0, 0.0]).expand(1, 4, 6)
    errors = UncertaintyEstimate(torch.full((4, 6), 0.1), torch.full((4, 6), 0.1), torch.zeros(1, 1))
    known.write(view, torch.full((1, 4, 6), 1j), light)
    known.write_errors(region, errors)
    known.keep(light)

    def row(name):
        return getattr(known, name)[..., 0, :].flatten().tolist()

    def once_more():
        known.write(view, torch.full((1, 4, 6), -1 + 0j), light.flip(-1))
        known.write_errors(region, UncertaintyEstimate(2 * errors.std_amplitude, 3 * errors.std_phase_rad, view.object))
        assert row("object") == [1j] * 3 + [-1] * 3
        assert row("std_amplitude") == pytest.approx([0.1] * 3 + [0.2] * 3)
        assert row("std_phase_rad") == pytest.approx([0.1] * 3 + [0.3] * 3)
        assert row("illumination") == [3.0] * 6

    once_more()
    # The same on a larger grid, after a restart, and if the newest frames go elsewhere.
    state = known.checkpoint()
    larger = ObjectMap((5, 8), 4, True, cpu)
    larger.take_over(known, (1, 2))
    np.testing.assert_array_equal(larger.checkpoint()["earlier"][0, 1:, 2:], light[0])
    known = ObjectMap((4, 6), 4, True, cpu)
    known.restore(state)
    once_more()
    known.clear(region)
    assert row("object") == [1j] * 3 + [-1, 1, 1] and row("illumination") == light[0, 0].tolist()
