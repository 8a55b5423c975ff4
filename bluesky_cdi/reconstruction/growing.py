"""Reconstruction of scans that do not say beforehand where they will measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.tiled_object import TiledObject
from bluesky_cdi.reconstruction.tiles import GRID_PX


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
            slack = max(self._tiled.grid.frame_px, max(self._tiled.grid.shape) // 4)
            grid = self._tiled.grid.grown_to(np.array([frame.position_m for frame in frames]), slack, GRID_PX)
            if grid is not self._tiled.grid:
                self._move_to(grid)
        super().add(frames)

    def checkpoint(self) -> Mapping[str, npt.NDArray[Any]]:
        """Give the grid, beside what every reconstructor gives."""
        grid = {"grid/origin_m": np.array(self._tiled.grid.origin_m), "grid/shape": np.array(self._tiled.grid.shape)}
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
            self._move_to(replace(self._tiled.grid, origin_m=(y, x), shape=(rows, columns)))
        super().restore(state, frames)

    def _move_to(self, grid: ObjectGrid) -> None:
        """Go on on another grid of the same pixels; a larger one if there are frames."""
        before, self._tiled = self._tiled, TiledObject.on(grid, self._config.window_px, self._device)
        self._frames.use_grid(grid)
        self._solver.use_grid(mixes=not self._tiled.is_whole)
        if len(self._frames):
            self._tiled.take_over(before, self._frames)
