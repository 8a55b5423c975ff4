"""The map of what no data support."""

import numpy as np
import pytest

from bluesky_cdi.evaluation.data_support import unsupported_share


def test_the_share_is_one_where_all_was_added_and_nothing_where_nothing_was():
    rng = np.random.default_rng(1)
    supported, added = np.ones((64, 64), complex), np.zeros((64, 64), complex)
    supported[:, :20] += 0.1 * rng.standard_normal((64, 20))
    added[:, 44:] = 0.1 * rng.standard_normal((64, 20))
    illuminated = np.ones((64, 64), bool)
    illuminated[:4] = False
    share = unsupported_share(supported, added, illuminated)
    assert np.isnan(share[:4]).all() and not np.isnan(share[4:]).any()
    assert share[10:54, :8].max() < 0.01 and share[10:54, 56:].min() > 0.95


def test_equal_powers_share_equally():
    rng = np.random.default_rng(2)
    supported, added = (0.1 * rng.standard_normal((128, 128)) for _ in range(2))
    share = unsupported_share(supported + 1, added + 0j, np.ones((128, 128), bool))
    assert share.mean() == pytest.approx(0.5, abs=0.02)


def test_what_has_no_contrast_owes_nothing_to_a_prior():
    flat = np.ones((16, 16), complex)
    assert not unsupported_share(flat, np.zeros_like(flat), np.ones((16, 16), bool)).any()


@pytest.mark.parametrize("mask", [np.zeros((8, 8), bool), np.ones((4, 8), bool)])
def test_masks_without_pixels_or_of_another_shape_are_refused(mask):
    with pytest.raises(ValueError, match="must have one shape"):
        unsupported_share(np.ones((8, 8), complex), np.ones((8, 8), complex), mask)
