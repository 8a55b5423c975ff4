"""A grid in regions that can be reconstructed one at a time.

The grid is tiled, and the tiles that need work are joined to rectangles. Each is the core of a region: what its
reconstruction may write. Around it lies a margin of at least one frame, so that every frame that touches the
core lies wholly in the outer box: what its reconstruction takes in. Regions follow the scan in this way: new frames
along a line make a narrow one, a whole map a few large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

# Tiles begin on multiples of this, the coarsest block of the shipped network: it then sees a pixel of a
# region in the same place of its blocks as on the whole grid.
GRID_PX = 16

IndexArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Box:
    """Some rows and columns of a grid.

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

    def holds(self, corner: IndexArray, size: int) -> npt.NDArray[np.bool_]:
        """Tell which patches lie wholly inside.

        Parameters
        ----------
        corner : ndarray, shape (n, 2), int
            First row and column of each patch.
        size : int
            Pixels along a side of a patch.

        Returns
        -------
        ndarray, shape (n,), bool
        """
        inside = (corner >= self.low) & (corner + size <= self.high)
        return np.asarray(inside.all(axis=-1))

    def within(self, other: Box) -> Box:
        """Give what lies in another box too; it has no pixels where they don't meet."""
        low = max(self.low[0], other.low[0]), max(self.low[1], other.low[1])
        high = min(self.high[0], other.high[0]), min(self.high[1], other.high[1])
        return Box(low, (max(low[0], high[0]), max(low[1], high[1])))

    def around(self, inner: Box) -> tuple[Box, ...]:
        """Give the parts, some of them without pixels, that lie around a box inside of this one."""
        above, below = Box(self.low, (inner.low[0], self.high[1])), Box((inner.high[0], self.low[1]), self.high)
        left = Box((inner.low[0], self.low[1]), (inner.high[0], inner.low[1]))
        right = Box((inner.low[0], inner.high[1]), (inner.high[0], self.high[1]))
        return above, below, left, right


def box_of(corner: IndexArray, size: int, shape: tuple[int, int]) -> Box:
    """Give the part of a grid that patches lie on; it begins and ends where a block of the network does.

    Parameters
    ----------
    corner : ndarray, shape (n, 2), int
        First row and column of each patch.
    size : int
        Pixels along a side of a patch.
    shape : tuple of int
        (Y, X) of the grid.
    """
    low = corner.min(axis=0) // GRID_PX * GRID_PX
    high = np.minimum(-(-(corner.max(axis=0) + size) // GRID_PX) * GRID_PX, shape)
    return Box((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))


# A block's sides, moved outwards by one tile.
SIDES = (Box((0, 0), (1, 0)), Box((0, 0), (0, 1)), Box((-1, 0), (0, 0)), Box((0, -1), (0, 0)))


@dataclass(frozen=True)
class Region:
    """What is reconstructed at a time.

    Parameters
    ----------
    core, outer : Box
        What is written, and what is read.
    tiles : tuple of int
        Numbers of the tiles that the core is made of.
    """

    core: Box
    outer: Box
    tiles: tuple[int, ...]

    @property
    def core_pixels(self) -> tuple[Any, slice, slice]:
        """Index of the core's pixels in an array (..., Y, X) that is only the outer box."""
        rows, columns = (
            slice(low - start, high - start)
            for low, high, start in zip(self.core.low, self.core.high, self.outer.low, strict=True)
        )
        return ..., rows, columns

    def within(self, box: Box) -> Region:
        """Give the part of it that lies in a box; itself where that holds nothing of the core."""
        core = self.core.within(box)
        return replace(self, core=core, outer=self.outer.within(box)) if min(core.shape) > 0 else self


@dataclass(frozen=True)
class Tiling:
    """A grid in square tiles, numbered row by row; or a whole grid as one tile.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) of the grid.
    tile_px : tuple of int
        Rows and columns of a tile; a frame at least.
    frame_px : int
        Pixels along one side of a frame, N.
    window_px : int
        Most pixels along one side of a region's outer box.
    """

    shape: tuple[int, int]
    tile_px: tuple[int, int]
    frame_px: int
    window_px: int

    @classmethod
    def covering(cls, shape: tuple[int, int], frame_px: int, window_px: int | None) -> Tiling:
        """Tile a grid for regions that are reconstructed in windows.

        Parameters
        ----------
        shape : tuple of int
            (Y, X) of the grid.
        frame_px : int
            Pixels along one side of a frame, N.
        window_px : int, optional
            Most pixels along one side of what is read, or three frames where that is more. A grid that is
            no larger is one tile; so is any with None.
        """
        if window_px is None or max(shape) <= window_px:
            return cls(shape, shape, frame_px, max(shape))
        tile = _on_grid(frame_px)
        return cls(shape, (tile, tile), frame_px, max(window_px, 3 * tile))

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along rows and columns."""
        return -(-self.shape[0] // self.tile_px[0]), -(-self.shape[1] // self.tile_px[1])

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    def touched(self, corner: IndexArray, border_px: int = 0) -> IndexArray:
        """Find the tiles that patches touch.

        Parameters
        ----------
        corner : ndarray, shape (n, 2), int
            First row and column of each patch, of a frame's size.
        border_px : int
            Pixels along each side of a patch that don't count.

        Returns
        -------
        ndarray of int
            Numbers of the tiles, ascending.
        """
        # A tile is no narrower than a frame: a patch lies on two at most along each axis.
        first = (corner + border_px) // self.tile_px  # (n, 2)
        last = (corner + self.frame_px - 1 - border_px) // self.tile_px
        tiles = [rows[:, 0] * self.grid[1] + columns[:, 1] for rows in (first, last) for columns in (first, last)]
        return np.unique(np.concatenate(tiles))

    def home(self, corner: IndexArray) -> IndexArray:
        """Find the tile that holds the middle of each patch, (n, 2) to (n,)."""
        tile = (corner + self.frame_px // 2) // self.tile_px
        return np.asarray(tile[:, 0] * self.grid[1] + tile[:, 1])

    def regions(self, tiles: Sequence[int]) -> Iterator[Region]:
        """Join tiles to regions, each begun with the first tile that is left and grown as far as it goes."""
        left = np.zeros(self.grid, dtype=bool)
        left.flat[list(tiles)] = True
        for tile in tiles:
            row, column = divmod(int(tile), self.grid[1])
            if left[row, column]:
                block = self._grown(Box((row, column), (row + 1, column + 1)), left)
                left[block.pixels] = False
                yield self._region(block)

    def _grown(self, block: Box, left: npt.NDArray[np.bool_]) -> Box:
        """Grow a block of tiles by rows and columns of tiles that are left, as long as the window holds it."""
        # Rows and columns in turn, which keeps it near a square.
        for side in SIDES * max(self.grid):
            larger = Box(_sum(block.low, side.low), _sum(block.high, side.high))
            inside = min(larger.low) >= 0 and larger.high[0] <= self.grid[0] and larger.high[1] <= self.grid[1]
            if inside and left[larger.pixels].all() and max(self._region(larger).outer.shape) <= self.window_px:
                block = larger
        return block

    def _region(self, block: Box) -> Region:
        """Make the region of a block of tiles."""
        margin = _on_grid(self.frame_px)
        (top, bottom), (first, last) = (
            (low * tile, min(high * tile, side))
            for low, high, tile, side in zip(block.low, block.high, self.tile_px, self.shape, strict=True)
        )
        outer = Box(
            (max(0, top - margin), max(0, first - margin)),
            (min(self.shape[0], bottom + margin), min(self.shape[1], last + margin)),
        )
        rows, columns = (range(low, high) for low, high in zip(block.low, block.high, strict=True))
        tiles = tuple(row * self.grid[1] + column for row in rows for column in columns)
        return Region(Box((top, first), (bottom, last)), outer, tiles)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _on_grid(size: int) -> int:
    return -(-size // GRID_PX) * GRID_PX
