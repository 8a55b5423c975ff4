"""The object of a run in its tiles: how its grid is tiled, what is known of it, and which tiles need work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.reconstruction.frame_light import CHUNK
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.object_map import ObjectMap
from bluesky_cdi.reconstruction.prediction import LEAST_GAIN
from bluesky_cdi.reconstruction.tile_scheduler import TileScheduler
from bluesky_cdi.reconstruction.tiles import IndexArray, Tiling


@dataclass(frozen=True, eq=False)
class TiledObject:
    """What belongs to one grid, and is replaced where the grid grows.

    Attributes
    ----------
    grid : ObjectGrid
    tiling : Tiling
    scheduler : TileScheduler
        Of the tiling's tiles.
    map : ObjectMap
        On the grid.
    """

    grid: ObjectGrid
    tiling: Tiling
    scheduler: TileScheduler
    map: ObjectMap

    @classmethod
    def on(cls, grid: ObjectGrid, window_px: int | None, device: torch.device) -> TiledObject:
        """Begin on a grid that nothing is known of.

        Parameters
        ----------
        grid : ObjectGrid
            The grid.
        window_px : int, optional
            Most pixels along one side of what is read at a time; see `Tiling.covering`.
        device : torch.device
            Where the object is.
        """
        tiling = Tiling.covering(grid.shape, grid.frame_px, window_px)
        known = ObjectMap(grid.shape, grid.frame_px, len(tiling) == 1, device)
        return cls(grid, tiling, TileScheduler(len(tiling), LEAST_GAIN), known)

    @property
    def is_whole(self) -> bool:
        """Whether the grid is one region."""
        return len(self.tiling) == 1

    def due(self, frames: MeasuredFrames, metrics: FrameMetrics) -> list[int]:
        """List the tiles to work on, the first ones first; see `TileScheduler.due`.

        What frames of earlier epochs leave unexplained is no reason for work, which can't change it.

        Parameters
        ----------
        frames : MeasuredFrames
            Of the run.
        metrics : FrameMetrics
            How well they are explained.
        """
        rows = frames.light.newest
        home, residual = self.tiling.home(frames.table.corner[rows]), metrics.residual[rows]
        return self.scheduler.due(np.bincount(home, weights=residual, minlength=len(self.tiling)).astype(np.float64))

    def touch(self, new: IndexArray, changed: IndexArray, border_px: int) -> None:
        """Work next on where new frames are, and then on all that they or changed frames reach.

        Parameters
        ----------
        new, changed : ndarray, shape (n, 2)
            Corners of the frames. Where new ones have their middles comes first: each step then tells of a frame.
        border_px : int
            Pixels along each side of a frame on which no light falls.
        """
        self.scheduler.touch(self.tiling.home(new))
        self.scheduler.touch(self.tiling.touched(changed, border_px))

    def begin_epoch(self, frames: MeasuredFrames, before: IndexArray, probe: Tensor, border_px: int) -> None:
        """Work no more on what frames have shown that had another probe than those from now on.

        Parameters
        ----------
        frames : MeasuredFrames
            Of the run; those of `before` and of earlier epochs are not computed with any more.
        before : ndarray, shape (n,)
            Rows of the frames that are reconstructed and had the other probe.
        probe : Tensor, shape (1, M, N, N), complex64
            Modes of that one.
        border_px : int
            Pixels along each side of a frame on which no light falls.
        """
        for rows in np.split(before, range(CHUNK, len(before), CHUNK)):
            self.map.keep(summed_illumination(probe, frames.diffraction(rows)))
        frames.table.begin_epoch(before)
        touched = self.tiling.touched(frames.table.corner[frames.light.newest], border_px)
        self.scheduler.forget(np.setdiff1d(np.arange(len(self.tiling)), touched).tolist())

    def take_over(self, other: TiledObject, frames: MeasuredFrames) -> None:
        """Take over what is known on a smaller grid of the same pixels.

        Parameters
        ----------
        other : TiledObject
            On that grid.
        frames : MeasuredFrames
            Of the run, placed on the new grid.
        """
        moved = np.rint((np.asarray(other.grid.origin_m) - np.asarray(self.grid.origin_m)) / self.grid.pixel_m)
        self.map.take_over(other.map, (int(moved[0]), int(moved[1])))
        corner = frames.table.corner[frames.table.newest(frames.table.rows)]
        self.scheduler.take_over(np.unique(self.tiling.home(corner)).tolist(), other.scheduler.has_outdated)
        # What no step has seen yet: there, frames are in no prediction.
        waiting = corner[np.isin(other.tiling.home(corner - moved.astype(np.int64)), other.scheduler.waiting)]
        self.touch(waiting, waiting, 0)
