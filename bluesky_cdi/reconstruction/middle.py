"""The frames in the middle of a scan, which tell most about each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bluesky_cdi.reconstruction.tiles import IndexArray


def nearest_to_middle(places: npt.ArrayLike, most: int) -> IndexArray:
    """Choose the places that are nearest to the median of all.

    Parameters
    ----------
    places : array_like, shape (n, 2)
        (y, x), in any unit.
    most : int
        How many are chosen.

    Returns
    -------
    ndarray, shape (k,)
        Their numbers, ascending; all where there are no more than `most`.
    """
    places = np.asarray(places, np.float64)
    distance = np.square(places - np.median(places, axis=0)).sum(axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:most])
