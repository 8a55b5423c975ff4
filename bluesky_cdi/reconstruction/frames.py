"""The frames of a run, as a reconstructor holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.errors import FrameError
from bluesky_cdi.io.beam_centre import find_beam_centre
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.propagators import FAR_FIELD, FarField, Propagator
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels
from bluesky_cdi.reconstruction.count_store import CountStore
from bluesky_cdi.reconstruction.frame_light import FrameLight
from bluesky_cdi.reconstruction.frame_table import FrameTable
from bluesky_cdi.reconstruction.tiles import Box, IndexArray, Region, Tiling, box_of

# Counts read at a time: what is read is a copy beside the one that is computed with.
READ_BYTES = 2**24
# Counts in memory, unless stated otherwise: 4 GiB.
MEMORY_BYTES = 2**32
# Frames after which the bad pixels are looked for again; more frames tell no more.
BAD_PIXEL_FRAMES = 32
# A region ends no closer to its frames than this, pixels: a step may move them.
MOVES_PX = 4


@dataclass(frozen=True, eq=False)
class RegionFrames:
    """The frames that a region's reconstruction rests on.

    Attributes
    ----------
    region : Region
        The part of a region that frames lie on.
    rows : ndarray, shape (n,)
        Their rows in the run.
    data : Diffraction
        On the region's outer box.
    own : Tensor, shape (n,), bool
        Which have their middle in the region's core.
    share : float
        How many of all frames of the newest epoch they are.
    """

    region: Region
    rows: IndexArray
    data: Diffraction
    own: Tensor
    share: float

    @property
    def own_rows(self) -> IndexArray:
        """Rows of the frames with their middle in the core, shape (m,)."""
        return np.asarray(self.rows[self.own.cpu().numpy()])


class MeasuredFrames:
    """Frames by number, placed on an object grid, ready for computing.

    Parameters
    ----------
    grid : ObjectGrid
    device : torch.device
    background : float
        Photons per pixel and frame that the detector counts without the sample.
    saturation : float, optional
        Counts from which on a pixel is saturated.
    propagator : Propagator
        From the sample to the detector.
    memory_bytes : int
        Most bytes of counts held in memory; see `CountStore`.
    known_mask : ndarray, shape (N, N), bool, optional
        Pixels that are valid as far as is known before `find_bad_pixels`; all by default.

    Attributes
    ----------
    table : FrameTable
        Numbers, places and fluxes.
    mask : Tensor, shape (N, N), bool, or None
        The valid pixels, in the propagator's working order; None: all.
    off_centre_px : tuple of float or None
        Where the direct beam of the first frames lies from the middle (rows, columns), pixels; None in the near field,
        and where it is not found.
    light : FrameLight
        How much of it they hold, and which are dark: nothing is computed from these.
    """

    def __init__(
        self,
        grid: ObjectGrid,
        device: torch.device,
        background: float = 0.0,
        saturation: float | None = None,
        propagator: Propagator = FAR_FIELD,
        memory_bytes: int = MEMORY_BYTES,
        known_mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.table = FrameTable(grid)
        self.mask: Tensor | None = None
        self.off_centre_px: tuple[float, float] | None = None
        self.light = FrameLight(self.table, self._working_and_mask)
        self._grid, self._device = grid, device
        self._background, self._saturation, self._propagator = background, saturation, propagator
        side = grid.frame_px
        self._known_mask = np.ones((side, side), bool) if known_mask is None else np.asarray(known_mask, dtype=bool)
        self._counts = CountStore(grid.frame_px, memory_bytes)
        self._cached: tuple[IndexArray, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def add(self, frames: Iterable[Frame]) -> IndexArray:
        """Take frames in, all or none; a known number replaces the earlier frame.

        Returns
        -------
        ndarray, shape (m,)
            Rows of the frames.

        Raises
        ------
        FrameError
            If a frame has another shape than the grid was made for.
        GeometryError
            If a position lies outside the grid.
        """
        frames = list(frames)
        self._check(frames)
        known = len(self)
        rows = np.array([self._put(frame) for frame in frames], dtype=np.int64)
        if (rows < known).any():
            self._cached = None
        return np.unique(rows)

    def use_grid(self, grid: ObjectGrid) -> None:
        """Place the frames on another grid of the same pixels, which holds them all."""
        self._grid = grid
        self.table.grid = grid

    def use_mask(self, valid: npt.NDArray[np.bool_]) -> None:
        """State the valid pixels, (N, N), bool, as the detector has them."""
        self.mask = self._propagator.to_working(torch.from_numpy(valid)).to(self._device)
        self.light.forget_all()

    def find_bad_pixels(self) -> bool:
        """Leave out the pixels that the first frames show to be hot or dead; whether the mask is another one now."""
        counts = self._counts.read(self.table.rows[:BAD_PIXEL_FRAMES])
        before = self.mask
        # One frame may have a bright speckle that a second one moves.
        valid = self._known_mask & valid_pixels(counts) if len(counts) > 1 else self._known_mask
        self.use_mask(valid)
        if isinstance(self._propagator, FarField) and len(counts):
            self.off_centre_px = _off_centre_px(counts.mean(axis=0), valid)
        return before is None or not torch.equal(before, self.mask)  # type: ignore[arg-type]  # `use_mask` has set it

    def of_region(self, region: Region, tiling: Tiling, rows: IndexArray | None = None) -> RegionFrames:
        """Give the frames of a region of a tiled grid, at the places where they are now.

        Parameters
        ----------
        region : Region
            Which.
        tiling : Tiling
            How the grid is tiled.
        rows : ndarray, shape (n,), optional
            Which; those with light, of the newest epoch, that lie wholly in the region's outer box if absent. Given
            ones keep the region as it is.
        """
        if rows is None:
            rows = self.light.newest
            rows = rows[region.outer.holds(self.table.corner[rows], self._grid.frame_px)]
            if len(rows):
                region = region.within(_room_for(self.table.corner[rows], self._grid))
        own = np.isin(tiling.home(self.table.corner[rows]), region.tiles)
        own_here = torch.from_numpy(own).to(self._device)
        share = len(rows) / max(len(self.table.newest(self.table.rows)), 1)
        return RegionFrames(region, rows, self.diffraction(rows, region.outer), own_here, share)

    def diffraction(self, rows: IndexArray | None = None, box: Box | None = None) -> Diffraction:
        """Give frames on the part of the grid that is a box.

        Parameters
        ----------
        rows : ndarray, shape (n,), optional
            Which frames; they must lie in the box. All with light, in the order of their numbers, if absent.
        box : Box, optional
            The whole grid if absent.
        """
        rows = self.light.lit if rows is None else rows
        box = Box((0, 0), self._grid.shape) if box is None else box
        corner, shift = (each[rows] for each in self.table.places)
        flux, stated = (torch.from_numpy(each).to(self._device, torch.float32) for each in self.table.flux.of(rows))
        return Diffraction(
            counts=self._kept_working(rows),
            corner=torch.from_numpy(corner - np.asarray(box.low)).to(self._device),
            shift_px=torch.from_numpy(shift).to(self._device, torch.float32),
            object_shape=(1, *box.shape),
            flux=flux,
            stated_flux=stated,
            mask=self.mask,
            background=self._background,
            saturation=self._saturation,
            propagator=self._propagator,
        )

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give all but the counts: what was refined of each frame, and the masks."""
        mask = {} if self.mask is None else {"mask": self.mask.cpu().numpy()}
        centre = {} if self.off_centre_px is None else {"off_centre_px": np.array(self.off_centre_px)}
        return {**self.table.checkpoint(), **mask, **centre, "known_mask": self._known_mask}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], frames: Iterable[Frame]) -> npt.NDArray[np.bool_]:
        """Take what `checkpoint` gave, and of some frames those that it knows.

        Parameters
        ----------
        state : Mapping
            Of the checkpoint.
        frames : iterable of Frame
            Of the run.

        Returns
        -------
        ndarray, shape (n,), bool
            Which of the frames that the checkpoint knows, in the order of their numbers, are there.
        """
        numbers = state["seq_num"]
        there = {frame.seq_num: frame for frame in frames}
        # First, for nothing is kept of what it masks.
        self._known_mask = state["known_mask"].copy()
        self.add(there[number] for number in numbers.tolist() if number in there)
        self.table.restore(state)
        self.mask = torch.from_numpy(state["mask"].copy()).to(self._device) if "mask" in state else None
        if "off_centre_px" in state:
            row, column = state["off_centre_px"].tolist()
            self.off_centre_px = row, column
        self.light.find_dark()
        return np.isin(numbers, list(there))

    def _check(self, frames: list[Frame]) -> None:
        side = self._grid.frame_px
        for frame in frames:
            if np.shape(frame.counts) != (side, side):
                raise FrameError(
                    f"frame {frame.seq_num} must be {side} x {side} pixels; it is {np.shape(frame.counts)}. "
                    "One run has one frame shape."
                )
        if frames:
            self._grid.place(np.array([frame.position_m for frame in frames], dtype=np.float64))

    def _put(self, frame: Frame) -> int:
        """Keep one frame; give its row."""
        known = len(self)
        row = self.table.put(frame)
        self.light.forget(row)
        # A flag (NaN, -1, the type's maximum) times 0 need not be 0: it goes before anything is computed.
        counts = frame.counts if self._known_mask.all() else np.where(self._known_mask, frame.counts, 0)
        if row < known:
            self._counts.replace(row, counts)
        else:
            self._counts.append(counts)
        return row

    def _working(self, rows: IndexArray) -> Tensor:
        """Give counts (n, N, N) in the propagator's working order, read in blocks."""
        side = self._grid.frame_px
        counts = torch.empty((len(rows), side, side), dtype=torch.float32, device=self._device)
        step = max(1, READ_BYTES // counts[:1].nbytes) if len(rows) else 1
        for first in range(0, len(rows), step):
            part = torch.from_numpy(self._counts.read(rows[first : first + step])).to(self._device)
            counts[first : first + step] = self._propagator.to_working(part)
        return counts

    def _working_and_mask(self, rows: IndexArray) -> tuple[Tensor, Tensor | None]:
        return self._working(rows), self.mask

    def _kept_working(self, rows: IndexArray) -> Tensor:
        """Give `_working`, kept until other frames are asked for, if memory has room for that."""
        if self._cached is not None and np.array_equal(self._cached[0], rows):
            return self._cached[1]
        self._cached = None
        counts = self._working(rows)
        if counts.nbytes <= self._counts.room:
            self._cached = rows.copy(), counts
        return counts


def _room_for(corner: IndexArray, grid: ObjectGrid) -> Box:
    """Give the part of a grid that frames lie on, and stay on where refinement moves them by a pixel or two."""
    low, high = corner.min(axis=0) - MOVES_PX, corner.max(axis=0) + MOVES_PX
    corners = np.clip([low, high], 0, np.subtract(grid.shape, grid.frame_px))
    return box_of(corners, grid.frame_px, grid.shape)


def _off_centre_px(mean: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> tuple[float, float] | None:
    try:
        row, column = find_beam_centre(mean, valid)
    except FrameError:
        return None
    side = len(mean)
    return row - side // 2, column - side // 2
