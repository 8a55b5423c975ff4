"""What is known of each frame: how well it is explained, and what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.live.novelty import NearestOthers
from bluesky_cdi.live.regions import IndexArray
from bluesky_cdi.protocols import FloatArray


class FrameResults:
    """Residual, uncertainty and embedding of frames, by row; a frame is known once it has an embedding.

    Parameters
    ----------
    device : torch.device
        Where distances of embeddings are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._nearest = NearestOthers(device)
        self.residual: FloatArray = np.zeros(0, np.float32)
        self.uncertainty: FloatArray = np.zeros(0, np.float32)
        self.embedding: FloatArray = np.zeros((0, 0), np.float32)
        self.known = np.zeros(0, dtype=bool)

    def make_room(self, frames: int) -> None:
        """Have rows for `frames` frames."""
        more = max(frames, 2 * len(self.known)) - len(self.known) if frames > len(self.known) else 0
        self.residual, self.uncertainty, self.embedding, self.known = (
            np.concatenate([values, np.zeros((more, *values.shape[1:]), values.dtype)])
            for values in (self.residual, self.uncertainty, self.embedding, self.known)
        )

    def forget(self, rows: IndexArray) -> None:
        """Frames were replaced: what is known is not of them."""
        self.known[rows] = False
        self.residual[rows] = 0
        self._nearest.drop(rows)

    def put_residual(self, rows: IndexArray, deviance: Tensor) -> None:
        """State the deviance (m,) of frames."""
        self.residual[rows] = deviance.cpu().numpy()

    def put_uncertainty(self, rows: IndexArray, variance: Tensor) -> None:
        """State the mean variance of the phase (m,) under frames, rad^2."""
        self.uncertainty[rows] = variance.sqrt().cpu().numpy()

    def put_embedding(self, rows: IndexArray, embedding: Tensor) -> None:
        """State the embeddings (m, d) of frames, which are then known."""
        if self.embedding.shape[1] != embedding.shape[1]:
            self.embedding = np.zeros((len(self.known), embedding.shape[1]), np.float32)
        self.embedding[rows] = embedding.cpu().numpy()
        self.known[rows] = True
        self._nearest.put(rows, embedding)

    def novelty(self, rows: IndexArray) -> FloatArray:
        """Novelty of all known frames, in the order of `rows`, (n,)."""
        return self._nearest.novelty(rows)

    def state(self, rows: IndexArray) -> dict[str, Any]:
        """Copies of all, in the order of `rows`."""
        names = ("residual", "uncertainty", "embedding", "known")
        return {name: getattr(self, name)[rows] for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, for rows 0, 1, ..."""
        self.residual, self.uncertainty, self.embedding, self.known = (
            np.array(state[name]) for name in ("residual", "uncertainty", "embedding", "known")
        )
        rows = np.flatnonzero(self.known)
        if len(rows):
            self._nearest.put(rows, torch.from_numpy(self.embedding[rows]))
