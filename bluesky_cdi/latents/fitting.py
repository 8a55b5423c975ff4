"""The projection of weights, found from embeddings of frames of many simulated scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.latents.known import known_of_scenes
from bluesky_cdi.latents.projection import LatentProjection, colour_knots, principal_axes
from bluesky_cdi.protocols import FloatArray

# Steps of a colour.
STEPS = 33


@dataclass(frozen=True, eq=False)
class SceneEmbeddings:
    """Embeddings of the frames of several scenes.

    Attributes
    ----------
    embedding : ndarray, shape (n, d)
        With all frames of the scene.
    again : ndarray, shape (n, d)
        Of the same frames where the scene was reconstructed from half of its frames; NaN for those that are not in it.
    scene : ndarray, shape (n,)
        Number of each frame's scene.
    """

    embedding: FloatArray
    again: FloatArray
    scene: npt.NDArray[np.int64]


def fit_projection(fitted: SceneEmbeddings, others: SceneEmbeddings, weights_sha256: str) -> LatentProjection:
    """Find a projection.

    Its axes are those along which the frames of a scene differ most for how far they move when they are read again:
    scenes as wholes differ mostly in what says little of a frame (dose, probe). Along each axis frames move by 1, the
    unit of latents.

    Parameters
    ----------
    fitted : SceneEmbeddings
        The scenes that it rests on.
    others : SceneEmbeddings
        Other scenes of the same kinds, which tell how far frames usually lie from the known ones.
    weights_sha256 : str
        Checksum of the weights.
    """
    mean = fitted.embedding.mean(axis=0, dtype=np.float64)
    scenes = [fitted.embedding[fitted.scene == scene] for scene in np.unique(fitted.scene)]
    deviations = np.concatenate([frames - frames.mean(axis=0) for frames in scenes])
    moves = (fitted.again - fitted.embedding)[np.isfinite(fitted.again).all(axis=1)]
    found = LatentProjection(mean, principal_axes(deviations, moves), np.zeros((0, 0)), weights_sha256=weights_sha256)
    latents = found.latents(fitted.embedding)
    known = known_of_scenes(latents, found.latents(others.embedding))
    return replace(found, knots=colour_knots(latents, STEPS), known=known)


def fit_record(projection: LatentProjection, fitted: SceneEmbeddings, others: SceneEmbeddings) -> dict[str, Any]:
    """Say what a projection rests on: frames, and how far others of them move, as `stability` has it, in the median.

    Parameters
    ----------
    projection : LatentProjection
        What was found.
    fitted, others : SceneEmbeddings
        What it was found from.
    """
    values, again = projection.latents(others.embedding), projection.latents(others.again)
    moved = {
        "embedding": stability(others.embedding, others.again, others.scene),
        "latents": stability(values, again, others.scene),
    }
    return {"frames": len(fitted.scene), "moved": {name: float(np.median(each)) for name, each in moved.items()}}


def stability(values: FloatArray, again: FloatArray, scene: npt.NDArray[np.int64]) -> FloatArray:
    """Compute how far frames move when they are read again, over how far they differ within their scene.

    Parameters
    ----------
    values, again : ndarray, shape (n, k)
        Embeddings or latents of the same frames; NaN in `again` where a frame was not read again.
    scene : ndarray, shape (n,)
        Number of each frame's scene.

    Returns
    -------
    ndarray, shape (scenes,)
        Ratio of root mean squares: of the moves, and of the distances between frames.
    """
    ratios = []
    for number in np.unique(scene):
        here = (scene == number) & np.isfinite(again).all(axis=1)
        moved = np.square(values[here] - again[here]).sum(axis=1).mean()
        # Twice the variance is the mean square of the distances.
        ratios.append(np.sqrt(moved / (2 * values[here].var(axis=0).sum())))
    return np.asarray(ratios)
