import numpy as np

from bluesky_cdi.reconstruction.object_map import share_of_new
from bluesky_cdi.reconstruction.tiles import Box, Region


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
