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
from bluesky_cdi.io.frame_summaries import dark_frames
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.illumination import photons_through_vacuum
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.frame_table import FrameTable
from bluesky_cdi.reconstruction.measured_counts import MeasuredCounts
from bluesky_cdi.reconstruction.tiles import Box, IndexArray, Region, Tiling

# Counts in memory, unless stated otherwise: 4 GiB.
MEMORY_BYTES = 2**32
# Frames after which the bad pixels are looked for again; more frames tell no more.
BAD_PIXEL_FRAMES = 32


@dataclass(frozen=True, eq=False)
class RegionFrames:
    """The frames that a region's reconstruction rests on.

    Attributes
    ----------
    region : Region
    rows : ndarray, shape (n,)
        Their rows in the run.
    data : Diffraction
        On the region's outer box.
    own : Tensor, shape (n,), bool
        Which have their middle in the region's core.
    share : float
        How many of all frames of the run they are.
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
    counts : MeasuredCounts
        Their counts, and the valid pixels.
    dark : ndarray, shape (m,)
        Rows of frames without light, as `find_dark` found them: nothing is computed from them.
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
        self.counts = MeasuredCounts(grid.frame_px, device, propagator, memory_bytes, known_mask)
        self.dark: IndexArray = np.zeros(0, np.int64)
        self._grid, self._device = grid, device
        self._background, self._saturation, self._propagator = background, saturation, propagator

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
        rows = np.array([self._put(frame) for frame in frames], dtype=np.int64)
        return np.unique(rows)

    def use_grid(self, grid: ObjectGrid) -> None:
        """Place the frames on another grid of the same pixels, which holds them all."""
        self._grid = grid
        self.table.use_grid(grid)

    def find_bad_pixels(self) -> bool:
        """Leave out the pixels that the first frames show to be hot or dead; whether the mask is another one now."""
        return self.counts.find_bad_pixels(self.table.rows[:BAD_PIXEL_FRAMES])

    @property
    def lit(self) -> IndexArray:
        """Rows of the frames with light, in the order of their numbers."""
        rows = self.table.rows
        return rows[~np.isin(rows, self.dark)] if len(self.dark) else rows

    def find_dark(self) -> tuple[IndexArray, IndexArray]:
        """Look for frames without light among all (`dark_frames`); rows that are dark now, and that were before."""
        before, self.dark = self.dark, np.flatnonzero(dark_frames(self.counts.photons())) if len(self) else self.dark
        return np.setdiff1d(self.dark, before), np.setdiff1d(before, self.dark)

    def mean_photons(self) -> float:
        """Give nearly the photons of a frame with light through vacuum; see `photons_through_vacuum`."""
        return photons_through_vacuum(self.counts.photons()[self.lit])

    def plain_residual(self) -> float | None:
        """Compute what the frames with light differ by; see `MeasuredCounts.plain_residual`."""
        return self.counts.plain_residual(self.lit)

    def of_region(self, region: Region, tiling: Tiling, rows: IndexArray | None = None) -> RegionFrames:
        """Give the frames of a region of a tiled grid, at the places where they are now.

        Parameters
        ----------
        region : Region
            Which.
        tiling : Tiling
            How the grid is tiled.
        rows : ndarray, shape (n,), optional
            Which; those with light that lie wholly in the region's outer box if absent.
        """
        if rows is None:
            rows = self.lit
            rows = rows[region.outer.holds(self.table.corner[rows], self._grid.frame_px)]
        own = np.isin(tiling.home(self.table.corner[rows]), region.tiles)
        own_here = torch.from_numpy(own).to(self._device)
        return RegionFrames(region, rows, self.diffraction(rows, region.outer), own_here, len(rows) / max(len(self), 1))

    def diffraction(self, rows: IndexArray | None = None, box: Box | None = None) -> Diffraction:
        """Give frames on the part of the grid that is a box.

        Parameters
        ----------
        rows : ndarray, shape (n,), optional
            Which frames; they must lie in the box. All with light, in the order of their numbers, if absent.
        box : Box, optional
            The whole grid if absent.
        """
        rows = self.lit if rows is None else rows
        box = Box((0, 0), self._grid.shape) if box is None else box
        corner, shift = self.table.placed(rows)
        flux, stated = (torch.from_numpy(each).to(self._device, torch.float32) for each in self.table.flux(rows))
        return Diffraction(
            counts=self.counts.working(rows),
            corner=torch.from_numpy(corner - np.asarray(box.low)).to(self._device),
            shift_px=torch.from_numpy(shift).to(self._device, torch.float32),
            object_shape=(1, *box.shape),
            flux=flux,
            stated_flux=stated,
            mask=self.counts.mask,
            background=self._background,
            saturation=self._saturation,
            propagator=self._propagator,
        )

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give all but the counts: what was refined of each frame, and the masks."""
        return {**self.table.checkpoint(), **self.counts.checkpoint()}

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
        self.counts.restore_known(state)
        self.add(there[number] for number in numbers.tolist() if number in there)
        self.table.restore(state)
        self.counts.restore(state)
        self.find_dark()
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
        row = self.table.put(frame)
        self.counts.put(row, frame.counts)
        return row
