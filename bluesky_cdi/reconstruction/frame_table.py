"""Numbers, places and fluxes of a run's frames, as stated and as refined, and the epochs of their beam."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import FloatArray, Frame
from bluesky_cdi.reconstruction.frame_flux import FrameFlux
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
    grid : ObjectGrid
        May be replaced by another of the same pixels.
    flux : FrameFlux
        What the table says of it.
    epoch : int
        How often the beam has become another: frames belong to the epoch in which they were measured.
    """

    def __init__(self, grid: ObjectGrid) -> None:
        self.grid, self.epoch = grid, 0
        # Of the epochs but the first: the number of the first frame.
        self._begins: list[int] = []
        self._table = np.zeros(0, ROW)
        self._row_of: dict[int, int] = {}
        self._order: IndexArray | None = np.zeros(0, np.int64)
        # By the grid on which they are.
        self._placed: tuple[ObjectGrid, IndexArray, FloatArray] | None = None
        self.flux = FrameFlux(self)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def rows(self) -> IndexArray:
        """Rows of all frames in the order of their numbers, shape (n,)."""
        if self._order is None:
            self._order = np.argsort(self.column("seq_num"), kind="stable")
        return self._order

    @property
    def seq_nums(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames, by row, shape (n,)."""
        return self.column("seq_num")

    @property
    def positions_m(self) -> FloatArray:
        """(y, x) of the frames, refined where they have been, by row, shape (n, 2)."""
        return self.column("position_m") + self.column("move_px") * self.grid.pixel_m

    @property
    def corner(self) -> IndexArray:
        """First row and column of each frame's patch, by row, shape (n, 2)."""
        return self.places[0]

    @property
    def places(self) -> tuple[IndexArray, FloatArray]:
        """Corners of the frames' patches and sub-pixel shifts, by row, each (n, 2)."""
        if self._placed is None or self._placed[0] is not self.grid:
            self._placed = self.grid, *self.grid.place(self.positions_m)
        return self._placed[1:]

    def column(self, name: str) -> npt.NDArray[Any]:
        """Give values by row, shape (n, ...)."""
        return np.asarray(self._table[: len(self)][name])

    def put(self, frame: Frame) -> int:
        """Enter a frame, as stated; give its row."""
        # One that comes late had the beam of its number; one whose number is known was measured again, now.
        is_known = frame.seq_num in self._row_of
        epoch = self.epoch if is_known else bisect.bisect(self._begins, frame.seq_num)
        row = self._row_of.setdefault(frame.seq_num, len(self))
        if row == len(self._table):
            self._table = np.concatenate([self._table, np.zeros(max(GROWTH, row), ROW)])
        # What refinement found of a frame that this one replaces is not this one's.
        still, as_stated = (0.0, 0.0), 1.0
        y, x = frame.position_m
        self._table[row] = (frame.seq_num, (y, x), frame.flux, still, as_stated, epoch)
        self._order = self._placed = None
        return row

    def rows_of(self, seq_nums: Iterable[int]) -> IndexArray:
        """Give the rows of those of the numbers that are known."""
        return np.array([self._row_of[s] for s in seq_nums if s in self._row_of], dtype=np.int64)

    def begin_epoch(self, before: IndexArray) -> None:
        """Begin an epoch, of all frames but those of `before` (their rows) and of earlier epochs."""
        its = self.column("epoch") == self.epoch
        its[before] = False
        self.epoch += 1
        self.column("epoch")[its] = self.epoch
        self._begins.append(int(self.seq_nums[its].min() if its.any() else self.seq_nums.max() + 1))

    def newest(self, rows: IndexArray) -> IndexArray:
        """Give those rows whose frames are of the newest epoch."""
        return np.asarray(rows[self.column("epoch")[rows] == self.epoch])

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
        centre = (self.column("position_m")[rows] - np.asarray(self.grid.origin_m)) / self.grid.pixel_m
        found = data.corner.cpu().numpy() + self.grid.frame_px // 2 + data.shift_px.cpu().numpy()
        self._table["move_px"][rows] = found + np.asarray(box.low) - centre
        self._placed = None

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give numbers and refined values, in the order of the numbers, and where epochs begin."""
        columns = {name: self.column(name)[self.rows] for name in ("seq_num", "move_px", "flux_factor", "epoch")}
        return {**columns, "epochs_begin": np.array(self._begins, np.int64)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the refined values of those frames in `checkpoint` that were put here."""
        numbers = state["seq_num"]
        is_here = np.array([number in self._row_of for number in numbers.tolist()], dtype=bool)
        rows = self.rows_of(numbers.tolist())
        # Checkpoints of before know of no epochs.
        epoch = state.get("epoch", np.zeros(len(numbers), np.int64))
        self._begins = state.get("epochs_begin", np.zeros(0, np.int64)).tolist()
        self.epoch = len(self._begins)
        for name, values in (("move_px", state["move_px"]), ("flux_factor", state["flux_factor"]), ("epoch", epoch)):
            self._table[name][rows] = values[is_here]
        self._placed = None
