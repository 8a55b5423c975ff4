"""Groups of frames that show alike things."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray

# Most groups that are looked for, fewest frames for which that is done, and frames that suffice for it.
MOST, FEWEST_FRAMES, ENOUGH_FRAMES = 6, 12, 500
# Frames without any groups, a Gaussian cloud, are divided as well as that by k-means, give or take this much.
LEAST_GAIN = 0.05


def cluster_frames(latents: FloatArray, number: int | None = None, seed: int = 0) -> npt.NDArray[np.int64]:
    """Divide frames into groups by k-means.

    Any cloud can be divided. How well, the silhouette says (Rousseeuw, J. Comput. Appl. Math. 20, 53 (1987)): it is
    compared with that of a Gaussian cloud with the same covariance, which has no groups, as the gap statistic does
    (Tibshirani et al., J. R. Stat. Soc. B 63, 411 (2001)). The number with the largest gain counts; all frames are one
    group where none gains.

    Parameters
    ----------
    latents : ndarray, shape (n, k)
        Of the frames.
    number : int, optional
        How many groups; found if absent.
    seed : int
        Of the starts, and of the cloud.

    Returns
    -------
    ndarray, shape (n,), int64
        Group of each frame, from 0, the largest first.
    """
    if number is None:
        number = _number_of(latents, seed)
    number = min(number, len(np.unique(latents, axis=0)))
    if number < 2:
        return np.zeros(len(latents), np.int64)
    labels = _k_means(latents, number, seed)
    order = np.argsort(-np.bincount(labels, minlength=number), kind="stable")
    return np.asarray(np.argsort(order)[labels], np.int64)


def _number_of(latents: FloatArray, seed: int) -> int:
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(seed)
    some = latents if len(latents) <= ENOUGH_FRAMES else rng.permutation(latents)[:ENOUGH_FRAMES]
    if len(np.unique(some, axis=0)) < FEWEST_FRAMES:
        return 1
    cloud = rng.multivariate_normal(some.mean(axis=0), np.atleast_2d(np.cov(some, rowvar=False)), len(some))
    gains = [
        silhouette_score(some, _k_means(some, k, seed)) - silhouette_score(cloud, _k_means(cloud, k, seed))
        for k in range(2, MOST + 1)
    ]
    return 2 + int(np.argmax(gains)) if max(gains) > LEAST_GAIN else 1


def _k_means(latents: FloatArray, number: int, seed: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(number, n_init=4, random_state=seed).fit_predict(latents), np.int64)


def representatives(latents: FloatArray, clusters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Choose for each group the frame that is nearest to its middle: rows of `latents`, (groups,).

    Parameters
    ----------
    latents : ndarray, shape (n, k)
        Of the frames.
    clusters : ndarray, shape (n,)
        Their groups, from 0.
    """
    rows = []
    for cluster in range(int(clusters.max(initial=-1)) + 1):
        members = np.flatnonzero(clusters == cluster)
        distance = np.linalg.norm(latents[members] - latents[members].mean(axis=0), axis=1)
        rows.append(members[distance.argmin()])
    return np.asarray(rows, np.int64)
