"""The incident flux of a run's frames: as stated, and as refinement has found it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.tiles import IndexArray

if TYPE_CHECKING:
    from bluesky_cdi.reconstruction.frame_table import FrameTable

# Difference below which a flux that was found is the stated one: single precision.
SAME_FLUX = 1e-4
# Share by which a flux must change for what vacuum would have shown under it to be another.
OTHER_FLUX = 0.05


class FrameFlux:
    """Read and keep the fluxes in a table of frames.

    Parameters
    ----------
    table : FrameTable
        It holds ``flux``, as stated, and ``flux_factor``, what was found over that.
    """

    def __init__(self, table: FrameTable) -> None:
        self._table = table

    @property
    def mean(self) -> float:
        """Mean incident flux of the frames, on the scale on which it is stated; 0 without any or without frames."""
        return float(self._incident()[self._table.rows].mean()) if len(self._table) else 0.0

    @property
    def others(self) -> dict[str, float]:
        """Flux that was found of frames over the stated one, by their numbers; of those where it is another."""
        factor, rows = self._table.column("flux_factor"), self._table.rows
        rows = rows[np.abs(factor[rows] - 1) > SAME_FLUX]
        return {str(self._table.seq_nums[row]): round(float(factor[row]), 4) for row in rows}

    def of(self, rows: IndexArray) -> tuple[FloatArray, FloatArray]:
        """Give the flux of frames, as found and as stated, each (m,) and over the mean of all that was found."""
        mean = self.mean
        if not mean > 0:
            return np.ones(len(rows)), np.ones(len(rows))
        return self._incident()[rows] / mean, self._table.column("flux")[rows] / mean

    def take(self, data: Diffraction, rows: IndexArray) -> IndexArray:
        """Keep fluxes that were found.

        Parameters
        ----------
        data : Diffraction
            The frames.
        rows : ndarray, shape (n,)
            Their rows.

        Returns
        -------
        ndarray, shape (m,)
            Rows of the frames whose flux is clearly another one than before.
        """
        if data.flux is None or data.stated_flux is None:
            return np.zeros(0, np.int64)
        stated, flux = data.stated_flux.cpu().numpy(), data.flux.cpu().numpy()
        before = self._table.column("flux_factor")[rows]
        # A frame whose flux is stated as 0 stays so.
        factor = np.divide(flux, stated, out=np.ones_like(flux, np.float64), where=stated > 0)
        self._table.column("flux_factor")[rows] = factor
        return np.asarray(rows[np.abs(factor - before) > OTHER_FLUX * before])

    def _incident(self) -> FloatArray:
        """Give the incident flux of each frame, by row, (n,)."""
        return np.asarray(self._table.column("flux") * self._table.column("flux_factor"))
