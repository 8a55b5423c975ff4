"""Travel order of a batch: nearest neighbour, then 2-opt."""

from __future__ import annotations

import numpy as np

from bluesky_cdi.agent.patterns import IndexArray
from bluesky_cdi.protocols import FloatArray


def route(positions_m: FloatArray, start_m: FloatArray | None = None) -> IndexArray:
    """Order positions for a short open path.

    Nearest neighbour from `start_m`, improved by 2-opt moves (Croes, Oper. Res. 6, 791 (1958))
    until none shortens the path.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    start_m : ndarray, shape (2,), optional
        Where the stage is; without it the path begins at the first position.

    Returns
    -------
    ndarray, shape (n,), int64
        Indices in travel order.
    """
    if len(positions_m) == 0:
        return np.empty(0, dtype=np.int64)
    start = positions_m[0] if start_m is None else start_m
    return two_opt(positions_m, nearest_neighbour(positions_m, start), start)


def nearest_neighbour(positions_m: FloatArray, start_m: FloatArray) -> IndexArray:
    """Go to the nearest position left, again and again.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    start_m : ndarray, shape (2,)
        Where the path begins, metres.

    Returns
    -------
    ndarray, shape (n,), int64
    """
    left = np.ones(len(positions_m), bool)
    here, order = np.asarray(start_m), np.empty(len(positions_m), dtype=np.int64)
    for k in range(len(order)):
        distance = np.where(left, ((positions_m - here) ** 2).sum(axis=1), np.inf)
        order[k] = int(distance.argmin())
        left[order[k]] = False
        here = positions_m[order[k]]
    return order


def two_opt(positions_m: FloatArray, order: IndexArray, start_m: FloatArray) -> IndexArray:
    """Reverse stretches of an open path while that shortens it, the best reversal first.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    order : ndarray, shape (n,), int64
        The path to improve.
    start_m : ndarray, shape (2,)
        Fixed beginning of the path.

    Returns
    -------
    ndarray, shape (n,), int64
    """
    points = np.vstack([start_m, positions_m[order]])
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    tour, n = np.arange(len(points)), len(order)
    scale = float(distance.max())
    while n > 1:
        d = distance[np.ix_(tour, tour)]
        link = np.append(np.diagonal(d, 1), 0.0)  # link[k]: from k to k + 1; the path ends open
        # Reversing i..j replaces the links (i-1, i) and (j, j+1) by (i-1, j) and (i, j+1).
        beyond = np.hstack([d[1:, 2:], np.zeros((n, 1))])
        change = d[:-1, 1:] + beyond - link[:-1, None] - link[None, 1:]
        i, j = divmod(int(np.argmin(np.where(np.tri(n, k=-1, dtype=bool), 0.0, change))), n)
        if change[i, j] > -1e-9 * scale or j < i:
            break
        tour[i + 1 : j + 2] = tour[i + 1 : j + 2][::-1]
    return np.asarray(order[tour[1:] - 1], dtype=np.int64)


def path_length_m(positions_m: FloatArray, start_m: FloatArray | None = None) -> float:
    """Sum up the length of the path through positions in the order given, metres.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    start_m : ndarray, shape (2,), optional
        Where the path begins, metres; at the first position by default.
    """
    points = positions_m if start_m is None else np.vstack([start_m, positions_m])
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
