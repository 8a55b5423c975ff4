"""Numbers, places and fluxes of a run's frames, as stated and as refined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import FloatArray, Frame
from bluesky_cdi.reconstruction.tiles import Box, IndexArray

# Moves and factors are what refinement found.
ROW = np.dtype(
    [
        ("seq_num", np.int64),
        ("position_m", np.float64, 2),
        ("flux", np.float64),
        ("move_px", np.float64, 2),
        ("flux_factor", np.float64),
        ("epoch", np.int64),
    ]
)
# Difference below which a flux that was found is the stated one: single precision.
SAME_FLUX = 1e-4
# Share by which a flux must change for what vacuum would have shown under it to be another.
OTHER_FLUX = 0.05
# Rows by which the table grows at least.
GROWTH = 256


class FrameTable:
    """Keep what is known of each frame beside its counts.

    Frames have rows, from 0 in the order in which they came; a frame that replaces another takes its row.

    Parameters
    ----------
    grid : ObjectGrid
        Where the frames lie.

    Attributes
    ----------
    epoch : int
        How often the beam has become another: frames belong to the epoch in which they came.
    """

    def __init__(self, grid: ObjectGrid) -> None:
        self.grid, self.epoch = grid, 0
        self._table = np.zeros(0, ROW)
        self._row_of: dict[int, int] = {}
        self._order: IndexArray | None = np.zeros(0, np.int64)
        self._corner: IndexArray | None = None
        self._shift_px: FloatArray = np.zeros((0, 2))

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def rows(self) -> IndexArray:
        """Rows of all frames in the order of their numbers, shape (n,)."""
        if self._order is None:
            self._order = np.argsort(self._column("seq_num"), kind="stable")
        return self._order

    @property
    def seq_nums(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames, by row, shape (n,)."""
        return self._column("seq_num")

    @property
    def positions_m(self) -> FloatArray:
        """(y, x) of the frames, refined where they have been, by row, shape (n, 2)."""
        return self._column("position_m") + self._column("move_px") * self.grid.pixel_m

    @property
    def corner(self) -> IndexArray:
        """First row and column of each frame's patch, by row, shape (n, 2)."""
        if self._corner is None:
            self._corner, self._shift_px = self.grid.place(self.positions_m)
        return self._corner

    @property
    def mean_flux(self) -> float:
        """Mean incident flux of the frames, on the scale on which it is stated; 0 without any or without frames."""
        return float(self._incident()[self.rows].mean()) if len(self) else 0.0

    @property
    def other_flux(self) -> dict[str, float]:
        """Flux that was found of frames over the stated one, by their numbers; of those where it is another."""
        factor = self._column("flux_factor")
        rows = self.rows[np.abs(factor[self.rows] - 1) > SAME_FLUX]
        return {str(self.seq_nums[row]): round(float(factor[row]), 4) for row in rows}

    def placed(self, rows: IndexArray) -> tuple[IndexArray, FloatArray]:
        """Give corners and sub-pixel shifts of frames, each (m, 2)."""
        return self.corner[rows], self._shift_px[rows]

    def flux(self, rows: IndexArray) -> tuple[FloatArray, FloatArray]:
        """Give the flux of frames, as found and as stated, each (m,) and over the mean of all that was found."""
        mean = self.mean_flux
        if not mean > 0:
            return np.ones(len(rows)), np.ones(len(rows))
        return self._incident()[rows] / mean, self._column("flux")[rows] / mean

    def use_grid(self, grid: ObjectGrid) -> None:
        """Place the frames on another grid of the same pixels."""
        self.grid, self._corner = grid, None

    def put(self, frame: Frame) -> int:
        """Enter a frame, as stated; give its row."""
        row = self._row_of.setdefault(frame.seq_num, len(self))
        if row == len(self._table):
            self._table = np.concatenate([self._table, np.zeros(max(GROWTH, row), ROW)])
        # What refinement found of a frame that this one replaces is not this one's.
        still, as_stated = (0.0, 0.0), 1.0
        y, x = frame.position_m
        self._table[row] = (frame.seq_num, (y, x), frame.flux, still, as_stated, self.epoch)
        self._order = self._corner = None
        return row

    def rows_of(self, seq_nums: Iterable[int]) -> IndexArray:
        """Give the rows of those of the numbers that are known."""
        return np.array([self._row_of[s] for s in seq_nums if s in self._row_of], dtype=np.int64)

    def begin_epoch(self, before: IndexArray) -> None:
        """Begin an epoch, of all frames but those of `before` (their rows) and of earlier epochs."""
        its = self._column("epoch") == self.epoch
        its[before] = False
        self.epoch += 1
        self._column("epoch")[its] = self.epoch

    def newest(self, rows: IndexArray) -> IndexArray:
        """Give those rows whose frames are of the newest epoch."""
        return np.asarray(rows[self._column("epoch")[rows] == self.epoch])

    def take_positions(self, data: Diffraction, rows: IndexArray, box: Box) -> None:
        """Keep refined positions.

        Parameters
        ----------
        data : Diffraction
            Frames, in the box, that were refined.
        rows : ndarray, shape (n,)
            Their rows.
        box : Box
            The part of the grid that `data` lies on.
        """
        centre = (self._column("position_m")[rows] - np.asarray(self.grid.origin_m)) / self.grid.pixel_m
        found = data.corner.cpu().numpy() + self.grid.frame_px // 2 + data.shift_px.cpu().numpy()
        self._table["move_px"][rows] = found + np.asarray(box.low) - centre
        self._corner = None

    def take_flux(self, data: Diffraction, rows: IndexArray) -> IndexArray:
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
        before = self._column("flux_factor")[rows]
        # A frame whose flux is stated as 0 stays so.
        factor = np.divide(flux, stated, out=np.ones_like(flux, np.float64), where=stated > 0)
        self._table["flux_factor"][rows] = factor
        return np.asarray(rows[np.abs(factor - before) > OTHER_FLUX * before])

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give numbers and refined values, in the order of the numbers."""
        return {name: self._column(name)[self.rows] for name in ("seq_num", "move_px", "flux_factor", "epoch")}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the refined values of those frames in `checkpoint` that were put here."""
        numbers = state["seq_num"]
        is_here = np.array([number in self._row_of for number in numbers.tolist()], dtype=bool)
        rows = self.rows_of(numbers.tolist())
        # Checkpoints of before know of no epochs.
        epoch = state.get("epoch", np.zeros(len(numbers), np.int64))
        self.epoch = int(epoch.max(initial=0))
        for name, values in (("move_px", state["move_px"]), ("flux_factor", state["flux_factor"]), ("epoch", epoch)):
            self._table[name][rows] = values[is_here]
        self._corner = None

    def _column(self, name: str) -> npt.NDArray[Any]:
        """Give values by row, shape (n, ...)."""
        return np.asarray(self._table[: len(self)][name])

    def _incident(self) -> FloatArray:
        """Give the incident flux of each frame, by row, (n,)."""
        return np.asarray(self._column("flux") * self._column("flux_factor"))
