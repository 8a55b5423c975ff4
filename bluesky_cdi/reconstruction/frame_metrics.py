"""What is known of each frame: how well it is explained, and what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.frame_embedding import FrameEmbedding
from bluesky_cdi.reconstruction.nearest_neighbours import NearestNeighbours
from bluesky_cdi.reconstruction.tiles import IndexArray
from bluesky_cdi.reconstruction.uncertainty.estimate import UncertaintyEstimate

KEPT = ("residual", "uncertainty", "embedding", "known", "vacuum", "noise")


class FrameMetrics:
    """Residual, uncertainty and embedding of frames, by row; a frame is known once it has an embedding.

    Parameters
    ----------
    device : torch.device
        Where distances of embeddings are computed.
    embedding : FrameEmbedding, optional
        What describes frames; by default what predicts the errors of the object under them.
    """

    def __init__(self, device: torch.device, embedding: FrameEmbedding | None = None) -> None:
        self._nearest, self._describe = NearestNeighbours(device), embedding
        # The probe under which frames are described, as it was at the first of them, and those that had another one.
        self._assumed: Tensor | None = None
        self._outdated: set[int] = set()
        self.residual: FloatArray = np.zeros(0, np.float32)
        self.uncertainty: FloatArray = np.zeros(0, np.float32)
        self.embedding: FloatArray = np.zeros((0, 0), np.float32)
        self.known = np.zeros(0, dtype=bool)
        self.vacuum: FloatArray = np.zeros(0, np.float32)
        """Deviance without any object; NaN where that is not computed yet."""
        self.noise: FloatArray = np.zeros(0, np.float32)
        """Deviance that photon noise alone gives; NaN where that is not computed yet."""

    def make_room(self, frames: int) -> None:
        """Have rows for `frames` frames."""
        more = max(frames, 2 * len(self.known)) - len(self.known) if frames > len(self.known) else 0
        self.residual, self.uncertainty, self.embedding, self.known = (
            np.concatenate([values, np.zeros((more, *values.shape[1:]), values.dtype)])
            for values in (self.residual, self.uncertainty, self.embedding, self.known)
        )
        unknown = np.full(more, np.nan, np.float32)
        self.vacuum, self.noise = (np.concatenate([values, unknown]) for values in (self.vacuum, self.noise))

    def forget(self, rows: IndexArray) -> None:
        """Drop what is known of frames that were replaced."""
        self.known[rows] = False
        self.residual[rows], self.vacuum[rows] = 0, np.nan
        self._nearest.drop(rows)

    def reconstructed(self, rows: IndexArray) -> IndexArray:
        """Return those of the rows whose frames are in the image."""
        return rows[self.known[rows]]

    def put(self, rows: IndexArray, deviance: Tensor, variance: Tensor) -> None:
        """Record how well frames are explained, and how sure what lies under them is.

        Parameters
        ----------
        rows : ndarray, shape (m,)
            Numbers of the frames.
        deviance : Tensor, shape (m,)
            Poisson deviance a valid pixel.
        variance : Tensor, shape (m,)
            Mean variance of the phase under each frame, radians squared.
        """
        self.residual[rows] = deviance.cpu().numpy()
        self.uncertainty[rows] = variance.sqrt().cpu().numpy()

    def describe(
        self, rows: IndexArray, found: UncertaintyEstimate, probe: Tensor, data: Diffraction, own: Tensor
    ) -> None:
        """Describe frames, which are then known.

        What describes frames by themselves does so once for each, with the probe that was assumed at the first: it
        takes longer, and gives what it gave before.

        Parameters
        ----------
        rows : ndarray, shape (m,)
            Numbers of the frames.
        found : UncertaintyEstimate
            What was predicted of the object under them.
        probe : Tensor, shape (1, M, N, N), complex64
            Its modes as they are by now.
        data : Diffraction
            These frames and others around them.
        own : Tensor, shape (n,), bool
            Which of `data` are these.
        """
        if self._describe is None:
            self.put_embedding(rows, found.embedding[own])
            return
        self._assumed = probe if self._assumed is None else self._assumed
        new = ~self.known[rows] | np.isin(rows, list(self._outdated))
        if new.any():
            wanted = own.nonzero()[:, 0][torch.from_numpy(new).to(own.device)]
            self.put_embedding(rows[new], self._describe(self._assumed, data, wanted))
            self._outdated.difference_update(rows[new].tolist())

    def assume_other_probe(self, rows: IndexArray) -> None:
        """Drop what frames are known to be under an assumed probe that another has taken the place of."""
        self.forget_vacuum(rows)
        self._assumed, self._outdated = None, set(self.reconstructed(rows).tolist())

    def forget_vacuum(self, rows: IndexArray) -> None:
        """Drop the deviance of frames without any object: their flux or their probe is another one now."""
        self.vacuum[rows] = np.nan

    def put_bounds(self, rows: IndexArray, vacuum: Tensor, noise: Tensor) -> None:
        """Record between what the deviance of frames lies.

        Parameters
        ----------
        rows : ndarray, shape (m,)
            Numbers of the frames.
        vacuum : Tensor, shape (m,)
            Poisson deviance a valid pixel without any object.
        noise : Tensor, shape (m,)
            The same that photon noise alone gives.
        """
        self.vacuum[rows], self.noise[rows] = vacuum.cpu().numpy(), noise.cpu().numpy()

    def put_embedding(self, rows: IndexArray, embedding: Tensor) -> None:
        """Record the embeddings of frames, which are then known.

        Parameters
        ----------
        rows : ndarray, shape (m,)
            Numbers of the frames.
        embedding : Tensor, shape (m, d)
            A row each.
        """
        if self.embedding.shape[1] != embedding.shape[1]:
            self.embedding = np.zeros((len(self.known), embedding.shape[1]), np.float32)
        self.embedding[rows] = embedding.cpu().numpy()
        self.known[rows] = True
        self._nearest.put(rows, embedding)

    def novelty(self, rows: IndexArray) -> FloatArray:
        """Compute the novelty of all known frames, in the order of `rows`, (n,)."""
        return self._nearest.novelty(rows)

    def checkpoint(self, rows: IndexArray) -> dict[str, npt.NDArray[Any]]:
        """Give copies of all, in the order of `rows`."""
        return {name: getattr(self, name)[rows] for name in KEPT}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave, for rows 0, 1, ..."""
        # Checkpoints of before don't know the noise; it is computed with the vacuum's deviance.
        state = state if "noise" in state else {**state, "noise": state["vacuum"] * np.nan}
        for name in KEPT:
            setattr(self, name, state[name].copy())
        self._assumed, self._outdated = None, set()
        rows = np.flatnonzero(self.known)
        if len(rows):
            self._nearest.put(rows, torch.from_numpy(self.embedding[rows]))
