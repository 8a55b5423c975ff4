"""How much light a run's frames hold: which of them are dark, and what they would say without any model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.io.frame_summaries import dark_frames
from bluesky_cdi.physics.illumination import photons_through_vacuum
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance
from bluesky_cdi.reconstruction.frame_table import FrameTable
from bluesky_cdi.reconstruction.tiles import IndexArray

# Frames read at a time where only a sum of each is wanted.
CHUNK = 256
# Frames that show how much they differ from each other.
PLAIN_FRAMES = 32


class FrameLight:
    """Know the photons of frames, by row, and which frames have light.

    Parameters
    ----------
    table : FrameTable
        Of the frames.
    read : callable
        Gives the counts (n, N, N) of rows, and the pixels (N, N) of them that are valid, or None: all.

    Attributes
    ----------
    dark : ndarray, shape (m,)
        Rows of frames without light, as `find_dark` found them: nothing is computed from them.
    """

    def __init__(self, table: FrameTable, read: Callable[[IndexArray], tuple[Tensor, Tensor | None]]) -> None:
        self.dark: IndexArray = np.zeros(0, np.int64)
        # By row; NaN where they are not summed yet.
        self._photons: npt.NDArray[np.float64] = np.zeros(0)
        self._plain: tuple[int, float | None] | None = None
        self._table, self._read = table, read

    @property
    def lit(self) -> IndexArray:
        """Rows of the frames with light, in the order of their numbers."""
        rows = self._table.rows
        return rows[~np.isin(rows, self.dark)] if len(self.dark) else rows

    @property
    def newest(self) -> IndexArray:
        """Rows of the frames with light of the newest epoch, in the order of their numbers."""
        return self._table.newest(self.lit)

    def forget(self, row: int) -> None:
        """Note that a frame is new in its row."""
        if row >= len(self._photons):
            self._photons = np.concatenate([self._photons, np.full(max(CHUNK, row), np.nan)])
        self._photons[row] = np.nan

    def forget_all(self) -> None:
        """Note that other pixels are valid."""
        self._photons[:] = np.nan

    def find_dark(self) -> tuple[IndexArray, IndexArray]:
        """Look for frames without light among all (`dark_frames`); rows that are dark now, and that were before."""
        before = self.dark
        self.dark = np.flatnonzero(dark_frames(self.photons())) if len(self._table) else self.dark
        return np.setdiff1d(self.dark, before), np.setdiff1d(before, self.dark)

    def mean_photons(self) -> float:
        """Give nearly the photons of a frame with light through vacuum; see `photons_through_vacuum`."""
        return photons_through_vacuum(self.photons()[self.lit])

    def photons(self) -> npt.NDArray[np.float64]:
        """Sum the valid pixels of each frame, by row, (n,)."""
        known = len(self._table)
        missing = np.flatnonzero(np.isnan(self._photons[:known]))
        for rows in np.split(missing, range(CHUNK, len(missing), CHUNK)) if len(missing) else []:
            self._photons[rows] = self._valid(rows)[0].sum(dim=(-2, -1)).cpu().numpy()
        return self._photons[:known]

    def plain_residual(self) -> float | None:
        """Compute the mean deviance of frames, spread over the run, if each were like their mean but for its photons.

        It knows nothing of object and probe: an image must explain its frames far better. None for fewer than two.
        """
        rows = self.lit
        if self._plain is None or self._plain[0] != len(rows):
            some = rows[np.unique(np.linspace(0, len(rows) - 1, PLAIN_FRAMES).round().astype(np.int64))]
            self._plain = len(rows), self._deviance_of_mean(some) if len(some) > 1 else None
        return self._plain[1]

    def _deviance_of_mean(self, rows: IndexArray) -> float:
        counts, mask = self._valid(rows)
        total, photons = counts.sum(dim=0), counts.sum(dim=(-2, -1)).clamp_min(1.0)[:, None, None]
        # Of all others: a frame is no evidence of what it looks like. A little light everywhere, for pixels that
        # count a photon in one frame only.
        others = total - counts + 0.5
        likeness = others / others.sum(dim=(-2, -1), keepdim=True)
        return float(mean_over_valid(poisson_deviance(photons * likeness, counts), mask).mean())

    def _valid(self, rows: IndexArray) -> tuple[Tensor, Tensor | None]:
        """Read counts, 0 where they are not valid, and which pixels are."""
        counts, mask = self._read(rows)
        return counts if mask is None else torch.where(mask, counts, 0.0), mask
