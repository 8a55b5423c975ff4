"""Embeddings of frames projected on few coordinates: the same for all runs of a network, or those of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.latents.known import KnownFrames
from bluesky_cdi.protocols import FloatArray

# Coordinates of a frame. The first three are its colour.
COMPONENTS, COLOURS = 8, 3
# Colours end where a hundredth of the frames is beyond, on either side.
COLOUR_SHARE = 0.01
# Share of the mean variance of noise that is added in all directions.
NOISE_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class LatentProjection:
    """A linear map from embeddings to latents, and how the latents of frames usually lie.

    Attributes
    ----------
    mean : ndarray, shape (d,)
        Embedding at the origin.
    axes : ndarray, shape (d, k)
        Latents are ``(embedding - mean) @ axes``.
    knots : ndarray, shape (q, 3)
        The first three latents at which the colours red, green and blue begin, at equal steps between, and end.
    known : KnownFrames or None
        Frames of the simulated scenes, which others are compared with; None for the projection of one run.
    weights_sha256 : str or None
        Checksum of the weights whose embeddings it projects; None for the projection of one run.
    sha256 : str or None
        Its own file's.
    record : Mapping
        What made it.
    """

    mean: FloatArray
    axes: FloatArray
    knots: FloatArray
    known: KnownFrames | None = None
    weights_sha256: str | None = None
    sha256: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_fixed(self) -> bool:
        """Whether it is that of all runs with its weights, so that latents and colours of several can be compared."""
        return self.weights_sha256 is not None

    def latents(self, embedding: FloatArray) -> FloatArray:
        """Project embeddings.

        Parameters
        ----------
        embedding : ndarray, shape (n, d)
            Of n frames.

        Returns
        -------
        ndarray, shape (n, k)

        Raises
        ------
        WeightsError
            If they have another length than those that it was made from.
        """
        if embedding.ndim != 2 or embedding.shape[1] != len(self.mean):
            raise WeightsError(
                f"this projection takes embeddings of {len(self.mean)} values; those of shape {embedding.shape} were "
                "made by something else. Use the projection of the weights that made them."
            )
        return np.asarray((np.asarray(embedding, np.float64) - self.mean) @ self.axes)

    def colours(self, latents: FloatArray) -> FloatArray:
        """Turn the first three latents into red, green and blue, (n, 3), 0 to 1; 1/2 for a latent that is missing.

        Parameters
        ----------
        latents : ndarray, shape (n, k)
            Of n frames.
        """
        colours = np.full((len(latents), COLOURS), 0.5)
        steps = np.linspace(0, 1, len(self.knots))
        for i, knots in enumerate(self.knots.T):
            colours[:, i] = np.interp(latents[:, i], knots, steps)
        return colours

    def p_values(self, latents: FloatArray) -> FloatArray:
        """Compute how often a frame of the simulated scenes is as unlike the known ones as each of these, (n,).

        Parameters
        ----------
        latents : ndarray, shape (n, k)
            Of frames.

        Raises
        ------
        WeightsError
            If no frames are known: the projection is that of one run.
        """
        if self.known is None:
            raise WeightsError(
                "the projection of one run knows no other frames, so nothing can be said of how usual its own are. "
                "Weights get a projection by `bluesky-cdi fit-latents`."
            )
        return self.known.p_values(latents)


def projection_of_run(embedding: FloatArray) -> LatentProjection:
    """Make the projection of one run: its principal components.

    Its latents and colours say nothing of other runs.

    Parameters
    ----------
    embedding : ndarray, shape (n, d)
        Of all its frames.
    """
    d = embedding.shape[1]
    wanted = min(COMPONENTS, d)
    if len(embedding) < 2:
        mean = np.asarray(embedding, np.float64).reshape(-1, d).sum(axis=0)
        ends = np.outer([-1.0, 1.0], np.ones(min(COLOURS, wanted)))
        return LatentProjection(mean, np.eye(d)[:, :wanted], ends)
    mean = np.mean(embedding, axis=0, dtype=np.float64)
    axes = principal_axes(embedding - mean)
    return LatentProjection(mean, axes, colour_knots((embedding - mean) @ axes, 2))


def principal_axes(deviations: FloatArray, noise: FloatArray | None = None) -> FloatArray:
    """Find along which directions vectors vary most, or most for how much noise there is.

    Parameters
    ----------
    deviations : ndarray, shape (n, d)
        Vectors less what they vary around.
    noise : ndarray, shape (m, d), optional
        Errors of such vectors; the same in all directions if absent.

    Returns
    -------
    ndarray, shape (d, k)
        At most `COMPONENTS` directions, in which the noise is 1; of their free signs that counts which makes the
        largest part positive.
    """
    from scipy.linalg import eigh

    covariance, d = _square(deviations), deviations.shape[1]
    errors = np.eye(d) if noise is None else _square(noise)
    # Directions without any noise would count above all.
    errors = errors + NOISE_FLOOR * np.trace(errors) / d * np.eye(d) * (noise is not None)
    _, axes = eigh(covariance, errors)
    axes = axes[:, ::-1][:, :COMPONENTS]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return np.asarray(axes * np.where(largest < 0, -1.0, 1.0))


def colour_knots(latents: FloatArray, number: int) -> FloatArray:
    """Choose at which latents (n, k) the colours change, (number, 3): each step holds as many frames."""
    return np.asarray(np.quantile(latents[:, :COLOURS], np.linspace(COLOUR_SHARE, 1 - COLOUR_SHARE, number), axis=0))


def _square(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors.astype(np.float64).T @ vectors / max(len(vectors), 1))
