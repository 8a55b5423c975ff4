"""A canvas in regions that can be reconstructed one at a time.

The canvas is tiled. Each tile is the core of a region: what its reconstruction may write. Around it lies a
margin of at least one frame, so that every frame that touches the core lies wholly in the outer box: what
its reconstruction reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Cores begin on multiples of this, the coarsest block of the shipped network: it then sees a pixel of a
# region in the same place of its blocks as on the whole canvas.
GRID_PX = 16

IndexArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Box:
    """Some rows and columns of a canvas.

    Parameters
    ----------
    low, high : tuple of int
        First pixel (y, x), and the first one beyond.
    """

    low: tuple[int, int]
    high: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X) pixels."""
        return self.high[0] - self.low[0], self.high[1] - self.low[1]

    @property
    def pixels(self) -> tuple[Any, slice, slice]:
        """Index of the box's pixels in an array (..., Y, X)."""
        return ..., slice(self.low[0], self.high[0]), slice(self.low[1], self.high[1])

    def seen_from(self, outer: Box) -> Box:
        """The same box on a canvas that is only `outer`."""
        (y, x), (down, across) = self.low, outer.low
        return Box((y - down, x - across), (self.high[0] - down, self.high[1] - across))

    def holds(self, corner: IndexArray, size: int) -> npt.NDArray[np.bool_]:
        """Which patches of `size` x `size` pixels with corners (n, 2) lie wholly inside, shape (n,)."""
        inside = (corner >= self.low) & (corner + size <= self.high)
        return np.asarray(inside.all(axis=-1))


@dataclass(frozen=True)
class Region:
    """What is reconstructed at a time.

    Parameters
    ----------
    core, outer : Box
        What is written, and what is read.
    """

    core: Box
    outer: Box


@dataclass(frozen=True)
class Tiling:
    """A canvas of `shape` (Y, X) in tiles of `core_px` (rows, columns), numbered row by row.

    Parameters
    ----------
    shape, core_px : tuple of int
        A tile is at least one frame wide, or as wide as the canvas.
    frame_px : int
        Pixels along one side of a frame, N.
    """

    shape: tuple[int, int]
    core_px: tuple[int, int]
    frame_px: int

    @classmethod
    def covering(cls, shape: tuple[int, int], frame_px: int, window_px: int | None) -> Tiling:
        """Tile a canvas so that no region's outer box is wider than `window_px`, or three frames where that is less.

        Parameters
        ----------
        shape : tuple of int
            (Y, X) of the canvas.
        frame_px : int
        window_px : int, optional
            None: the whole canvas is one region.
        """
        rows, columns = (_core_side(side, frame_px, window_px) for side in shape)
        return cls(shape, (rows, columns), frame_px)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along rows and columns."""
        return -(-self.shape[0] // self.core_px[0]), -(-self.shape[1] // self.core_px[1])

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    def __getitem__(self, number: int) -> Region:
        if not 0 <= number < len(self):
            raise IndexError(f"region {number} of {len(self)}")
        place = divmod(number, self.grid[1])
        margin = _on_grid(self.frame_px)
        low = [p * core for p, core in zip(place, self.core_px, strict=True)]
        high = [min(first + core, side) for first, core, side in zip(low, self.core_px, self.shape, strict=True)]
        outer_low = [max(0, first - margin) for first in low]
        outer_high = [min(side, last + margin) for last, side in zip(high, self.shape, strict=True)]
        return Region(Box((low[0], low[1]), (high[0], high[1])), Box(_pair(outer_low), _pair(outer_high)))

    def __iter__(self) -> Iterator[Region]:
        return (self[number] for number in range(len(self)))

    def touched(self, corner: IndexArray) -> IndexArray:
        """Numbers of the regions whose core the patches with corners (n, 2) touch, ascending."""
        # A tile is no narrower than a frame: a patch lies on two at most along each axis.
        first, last = corner // self.core_px, (corner + self.frame_px - 1) // self.core_px  # (n, 2)
        tiles = [rows[:, 0] * self.grid[1] + columns[:, 1] for rows in (first, last) for columns in (first, last)]
        return np.unique(np.concatenate(tiles))

    def home(self, corner: IndexArray) -> IndexArray:
        """Number of the region whose core holds the middle of each patch, (n, 2) to (n,)."""
        tile = (corner + self.frame_px // 2) // self.core_px
        return np.asarray(tile[:, 0] * self.grid[1] + tile[:, 1])


def _core_side(side: int, frame_px: int, window_px: int | None) -> int:
    """Pixels along one side of the tiles: as even as the grid allows."""
    if window_px is None or side <= window_px:
        return side
    margin = _on_grid(frame_px)
    most = max(window_px - 2 * margin, margin) // GRID_PX * GRID_PX
    return max(margin, _on_grid(-(-side // -(-side // most))))


def _on_grid(size: int) -> int:
    return -(-size // GRID_PX) * GRID_PX


def _pair(values: list[int]) -> tuple[int, int]:
    return values[0], values[1]
