"""Reconstruction of scans that do not say beforehand where they will measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.object_map import ObjectMap
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.prediction import LEAST_GAIN
from bluesky_cdi.reconstruction.tile_scheduler import TileScheduler
from bluesky_cdi.reconstruction.tiles import GRID_PX, Tiling


class GrowingReconstructor(PtychoReconstructor):
    """A reconstructor whose grid grows where frames would leave it; the object as it is known stays.

    A side grows by a frame's width at least and by a quarter of the grid, so that a scan of n frames makes it grow
    about log(n) times. What was predicted stays, and is refined again with the new frames.
    """

    def add(self, frames: Sequence[Frame]) -> None:
        """Take frames in, and make room for them first.

        Raises
        ------
        FrameError
            If a frame has another shape than the grid was made for.
        GeometryError
            If the grid would become too large.
        """
        if frames:
            slack = max(self._grid.frame_px, max(self._grid.shape) // 4)
            grid = self._grid.grown_to(np.array([frame.position_m for frame in frames]), slack, GRID_PX)
            if grid is not self._grid:
                self._move_to(grid)
        super().add(frames)

    def checkpoint(self) -> Mapping[str, npt.NDArray[Any]]:
        """Give the grid, beside what every reconstructor gives."""
        grid = {"grid/origin_m": np.array(self._grid.origin_m), "grid/shape": np.array(self._grid.shape)}
        return {**super().checkpoint(), **grid}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], frames: Sequence[Frame]) -> None:
        """Go on from a checkpoint, on its grid.

        Parameters
        ----------
        state : Mapping
            What `checkpoint` gave.
        frames : sequence of Frame
            The run's.
        """
        if not len(self._frames):
            (y, x), (rows, columns) = state["grid/origin_m"].tolist(), state["grid/shape"].tolist()
            self._move_to(replace(self._grid, origin_m=(y, x), shape=(rows, columns)))
        super().restore(state, frames)

    def _move_to(self, grid: ObjectGrid) -> None:
        """Go on on another grid of the same pixels; a larger one if there are frames."""
        before, self._grid = self._grid, grid
        self._frames.use_grid(grid)
        self._tiling = Tiling.covering(grid.shape, grid.frame_px, self._config.window_px)
        whole = len(self._tiling) == 1
        self._solver.use_grid(mixes=not whole)
        outdated, self._scheduler = self._scheduler.has_outdated, TileScheduler(len(self._tiling), LEAST_GAIN)
        known, self._map = self._map, ObjectMap(grid.shape, grid.frame_px, whole, self._device)
        if len(self._frames):
            moved = np.rint((np.asarray(before.origin_m) - np.asarray(grid.origin_m)) / grid.pixel_m)
            self._map.take_over(known, (int(moved[0]), int(moved[1])))
            self._scheduler.take_over(np.unique(self._tiling.home(self._frames.table.corner)).tolist(), outdated)
