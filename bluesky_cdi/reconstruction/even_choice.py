"""A choice of positions that is even over space, whatever their order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray


def evenly_spread(positions_m: FloatArray, number: int) -> npt.NDArray[np.int64]:
    """Choose positions so that each next one is as far from all before as any is (farthest-point sampling).

    What is chosen does not depend on the order in which the positions come. No place that holds positions stays without
    a chosen one within twice the radius that the best choice of as many has (Gonzalez, 1985).

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        Any unit of length.
    number : int
        Most positions.

    Returns
    -------
    ndarray, shape (m,), int
        Which, ascending; all where they are not more than that.
    """
    if len(positions_m) <= number:
        return np.arange(len(positions_m))
    # In the order of their places: of positions as far as each other the first is taken.
    order = np.lexsort((positions_m[:, 1], positions_m[:, 0]))
    y, x = positions_m[order].T.astype(np.float64)
    chosen = np.empty(number, np.int64)
    nearest = np.full(len(order), np.inf)
    for k in range(number):
        last = chosen[k] = nearest.argmax() if k else 0
        np.minimum(nearest, (y - y[last]) ** 2 + (x - x[last]) ** 2, out=nearest)
        # Of several at one place each is another.
        nearest[last] = -1
    return np.sort(order[chosen])
