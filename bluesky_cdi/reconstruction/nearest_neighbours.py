"""How unlike all others what each frame saw is, kept up as frames come."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.tiles import IndexArray

# Distances computed at a time, which bounds memory and stays near a CPU's caches: 4 MiB.
CHUNK_DISTANCES = 2**19


class NearestNeighbours:
    """The nearest neighbour of each embedding, in Euclidean distance.

    New and changed embeddings are compared with all, the rest only where their nearest one changed: the work
    is in proportion to the number of changes times that of the frames.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._points = torch.zeros(0, 0, dtype=torch.float64, device=device)
        self._known = torch.zeros(0, dtype=torch.bool, device=device)
        self._changed = torch.zeros(0, dtype=torch.bool, device=device)
        self._partner = torch.zeros(0, dtype=torch.int64, device=device)
        self._square = torch.zeros(0, dtype=torch.float64, device=device)

    def put(self, rows: IndexArray, embedding: Tensor) -> None:
        """Record the embeddings of frames.

        Parameters
        ----------
        rows : ndarray, shape (m,)
            Numbers of the frames.
        embedding : Tensor, shape (m, d)
            A row each.
        """
        self._make_room(int(rows.max(initial=-1)) + 1, embedding.shape[1])
        index = torch.from_numpy(rows).to(self._device)
        self._points[index] = embedding.to(self._device, torch.float64)
        self._known[index] = self._changed[index] = True

    def drop(self, rows: IndexArray) -> None:
        """Forget the embeddings of frames."""
        index = torch.from_numpy(rows[rows < len(self._known)]).to(self._device)
        self._known[index], self._changed[index] = False, True

    def novelty(self, rows: IndexArray) -> FloatArray:
        """Compute the distance of each embedding to its nearest neighbour over the median distance, shape (n,).

        Parameters
        ----------
        rows : ndarray, shape (n,)
            All frames whose embeddings are known, in the order of the result.
        """
        if len(rows) < 3:
            return np.ones(len(rows), dtype=np.float32)
        self._update()
        index = torch.from_numpy(rows).to(self._device)
        # The squares that found the partners lost digits in a difference.
        nearest = (self._points[index] - self._points[self._partner[index]]).norm(dim=1).cpu().numpy()
        return np.asarray(nearest / max(float(np.median(nearest)), 1e-12), dtype=np.float32)

    def _make_room(self, rows: int, width: int) -> None:
        known = len(self._known)
        if self._points.shape[1] != width:
            self._points = self._points.new_zeros(known, width)
        if rows <= known:
            return
        more = max(rows, 2 * known) - known
        self._points = torch.cat([self._points, self._points.new_zeros(more, width)])
        self._known = torch.cat([self._known, self._known.new_zeros(more)])
        self._changed = torch.cat([self._changed, self._changed.new_zeros(more)])
        self._partner = torch.cat([self._partner, self._partner.new_zeros(more)])
        self._square = torch.cat([self._square, self._square.new_full((more,), torch.inf)])

    def _update(self) -> None:
        """Find the partners of all that changed, and of those whose partner did."""
        lost = self._known & (self._changed | self._changed[self._partner] | self._square.isinf())
        self._square[lost] = torch.inf
        rest = self._known & ~lost
        sums = self._points.square().sum(dim=1).masked_fill(~self._known, torch.inf)
        for index in torch.split(lost.nonzero()[:, 0], max(1, CHUNK_DISTANCES // len(self._known))):
            # Squares of the distances, (c, n), but for what is the same along a row.
            square = torch.addmm(sums, self._points[index], self._points.T, alpha=-2)
            square[torch.arange(len(index)), index] = torch.inf
            least, self._partner[index] = square.min(dim=1)
            self._square[index] = least + sums[index]
            new = self._changed[index]
            if rest.any() and new.any():
                # Of those that changed, the nearest to each of the rest.
                nearest, which = (square[new] + sums[index[new], None]).min(dim=0)  # (n,)
                closer = rest & (nearest < self._square)
                self._square[closer], self._partner[closer] = nearest[closer], index[new][which[closer]]
        self._changed[:] = False
