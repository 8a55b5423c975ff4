"""A canvas in regions that can be reconstructed one at a time.

The canvas is tiled, and the tiles that need work are joined to rectangles. Each is the core of a region: what its
reconstruction may write. Around it lies a margin of at least one frame, so that every frame that touches the
core lies wholly in the outer box: what its reconstruction reads. Regions follow the scan in this way: new frames
along a line make a narrow one, a whole map a few large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Tiles begin on multiples of this, the coarsest block of the shipped network: it then sees a pixel of a
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

    def share_of_new(self, width_px: int) -> npt.NDArray[np.float32]:
        """Weight in the core of what is found against what was known, (Y, X).

        It rises from 0 to 1 over `width_px` pixels from each side behind which the canvas goes on.
        """
        away = []
        for side, low, high, outer_low, outer_high in zip(
            self.core.shape, self.core.low, self.core.high, self.outer.low, self.outer.high, strict=True
        ):
            middle = np.arange(side) + 0.5
            from_low = middle if low > outer_low else np.inf
            from_high = side - middle if high < outer_high else np.inf
            away.append(np.minimum(from_low, from_high) * np.ones(side))
        distance = np.minimum(away[0][:, None], away[1][None, :])
        return np.clip(distance / width_px, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Tiling:
    """A canvas in square tiles, numbered row by row; or a whole canvas as one tile.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) of the canvas.
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
        """Tile a canvas for regions that are read in windows.

        Parameters
        ----------
        shape : tuple of int
            (Y, X) of the canvas.
        frame_px : int
        window_px : int, optional
            Most pixels along one side of what is read, or three frames where that is more. A canvas that is
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
        """Numbers of the tiles that the patches with corners (n, 2), without a border, touch, ascending."""
        # A tile is no narrower than a frame: a patch lies on two at most along each axis.
        first = (corner + border_px) // self.tile_px  # (n, 2)
        last = (corner + self.frame_px - 1 - border_px) // self.tile_px
        tiles = [rows[:, 0] * self.grid[1] + columns[:, 1] for rows in (first, last) for columns in (first, last)]
        return np.unique(np.concatenate(tiles))

    def home(self, corner: IndexArray) -> IndexArray:
        """Number of the tile that holds the middle of each patch, (n, 2) to (n,)."""
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
        """A block of tiles with rows and columns of tiles that are left, as long as the window holds it."""
        # Rows and columns in turn, which keeps it near a square.
        for side in SIDES * max(self.grid):
            larger = Box(_sum(block.low, side.low), _sum(block.high, side.high))
            inside = min(larger.low) >= 0 and larger.high[0] <= self.grid[0] and larger.high[1] <= self.grid[1]
            if inside and left[larger.pixels].all() and max(self._region(larger).outer.shape) <= self.window_px:
                block = larger
        return block

    def _region(self, block: Box) -> Region:
        """The region of a block of tiles."""
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
