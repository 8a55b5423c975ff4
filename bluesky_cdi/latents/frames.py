"""The latents of a run's frames, with all that is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError
from bluesky_cdi.latents.clusters import cluster_frames
from bluesky_cdi.latents.projection import LatentProjection
from bluesky_cdi.latents.store import projection_for
from bluesky_cdi.protocols import Estimate, FloatArray


@dataclass(frozen=True, eq=False)
class Latents:
    """What the embeddings of a run's frames say.

    Attributes
    ----------
    projection : LatentProjection
        Of the weights, or of the run.
    values : ndarray, shape (n, k)
        Latents of the frames, in the estimate's order.
    colours : ndarray, shape (n, 3)
        Red, green and blue, 0 to 1.
    clusters : ndarray, shape (n,), int64
        Group of each frame, from 0, the largest first.
    p_values : ndarray, shape (n,)
        How often a frame of a known kind is as unlike the known ones as each of these; NaN without a projection of
        the weights.
    """

    projection: LatentProjection
    values: FloatArray
    colours: FloatArray
    clusters: npt.NDArray[np.int64]
    p_values: FloatArray


def latents_of(estimate: Estimate, clusters: int | None = None) -> Latents:
    """Describe the frames of an estimate by their embeddings.

    Parameters
    ----------
    estimate : Estimate
        With embeddings.
    clusters : int, optional
        How many groups of frames to make; found if absent.

    Raises
    ------
    FrameError
        If it holds no embeddings.
    WeightsError
        If the projection of its weights is damaged.
    """
    if not estimate.embedding.size:
        raise FrameError(
            "this result holds no embeddings of frames: only the final estimate of a run in a catalog, and what "
            "`bluesky-cdi export` writes as .npz, hold them."
        )
    projection = projection_for(estimate)
    values = projection.latents(estimate.embedding)
    usual = projection.p_values(values) if projection.is_fixed else np.full(len(values), np.nan)
    return Latents(projection, values, projection.colours(values), cluster_frames(values, clusters), usual)
