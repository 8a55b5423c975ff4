"""The frames of a run, as a reconstructor holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.errors import FrameError
from bluesky_cdi.live.count_store import CountStore
from bluesky_cdi.live.regions import Box, IndexArray
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Canvas
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.protocols import FloatArray, Frame

# Counts in memory, unless stated otherwise: 4 GiB.
MEMORY_BYTES = 2**32
# Frames read at a time where only a sum of each is wanted.
CHUNK = 256

# What is kept of a frame beside its counts; the last two are what refining found.
ROW = np.dtype(
    [
        ("seq_num", np.int64),
        ("position_m", np.float64, 2),
        ("exposure_s", np.float64),
        ("monitor", np.float64),
        ("move_px", np.float64, 2),
        ("flux", np.float64),
    ]
)


class MeasuredFrames:
    """Frames by number, placed on a canvas, ready for computing.

    Frames have rows, from 0 in the order in which they came; a frame that replaces another takes its row.

    Parameters
    ----------
    canvas : Canvas
    device : torch.device
    background : float
        Photons per pixel and frame that the detector counts without the sample.
    saturation : float, optional
        Counts from which on a pixel is saturated.
    propagator : Propagator
        From the sample to the detector.
    memory_bytes : int
        Most bytes of counts held in memory; see `CountStore`.
    """

    def __init__(
        self,
        canvas: Canvas,
        device: torch.device,
        background: float = 0.0,
        saturation: float | None = None,
        propagator: Propagator = FAR_FIELD,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.canvas = canvas
        self.device = device
        self._mask: torch.Tensor | None = None
        self._background = background
        self._saturation = saturation
        self._propagator = propagator
        self._counts = CountStore(canvas.frame_px, memory_bytes)
        self._table = np.zeros(0, ROW)
        self._row_of: dict[int, int] = {}
        self._order: IndexArray = np.zeros(0, np.int64)
        self._placed: tuple[IndexArray, FloatArray] | None = None
        self._cached: tuple[IndexArray, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def rows(self) -> IndexArray:
        """Rows of all frames in the order of `seq_nums`, shape (n,)."""
        return self._order

    @property
    def seq_nums(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames, ascending, shape (n,)."""
        return np.asarray(self._column("seq_num")[self._order])

    @property
    def measured_positions_m(self) -> FloatArray:
        """(y, x) of the frames as they came, in the order of `seq_nums`, shape (n, 2)."""
        return np.asarray(self._column("position_m")[self._order])

    @property
    def positions_m(self) -> FloatArray:
        """(y, x) of the frames, refined where they have been, in the order of `seq_nums`, shape (n, 2)."""
        return self.measured_positions_m + self.moves_px * self.canvas.pixel_m

    @property
    def moves_px(self) -> FloatArray:
        """By how much refining has moved the frames (y, x), pixels, in the order of `seq_nums`, shape (n, 2)."""
        return np.asarray(self._column("move_px")[self._order])

    @property
    def flux(self) -> FloatArray:
        """Factor of each frame's flux on its monitor's, in the order of `seq_nums`, shape (n,)."""
        return np.asarray(self._column("flux")[self._order])

    @property
    def frames(self) -> list[Frame]:
        """Copies of the frames in the order of `seq_nums`, with the counts in the type in which they are kept."""
        return [
            Frame(
                int(self._table["seq_num"][row]),
                self._table["position_m"][row].copy(),
                self._counts[row],
                float(self._table["exposure_s"][row]),
                float(self._table["monitor"][row]),
            )
            for row in self._order
        ]

    @property
    def corner(self) -> IndexArray:
        """First row and column of each frame's patch, by row, shape (n, 2)."""
        return self._places()[0]

    @property
    def mean_flux(self) -> float:
        """Mean incident flux of the frames, on the monitors' scale: the flux of gain 1; 0 without light or frames."""
        return float(self._incident()[self._order].mean()) if len(self) else 0.0

    def add(self, frames: Iterable[Frame]) -> IndexArray:
        """Take frames in, all or none; a known number replaces the earlier frame.

        Returns
        -------
        ndarray, shape (m,)
            Rows of the frames.

        Raises
        ------
        FrameError
            If a frame has another shape than the canvas was made for.
        GeometryError
            If a position lies outside the canvas.
        """
        frames = list(frames)
        self._check(frames)
        known = len(self)
        rows = np.array([self._put(frame) for frame in frames], dtype=np.int64)
        if (rows < known).any():
            self._cached = None
        self._order = np.argsort(self._column("seq_num"), kind="stable")
        self._placed = None
        return np.unique(rows)

    def inside(self, box: Box) -> IndexArray:
        """Rows of the frames that lie wholly in a box of the canvas, in the order of their numbers."""
        return self._order[box.holds(self.corner, self.canvas.frame_px)[self._order]]

    def rows_of(self, seq_nums: Iterable[int]) -> IndexArray:
        """Rows of those of the numbers that are known."""
        return np.array([self._row_of[s] for s in seq_nums if s in self._row_of], dtype=np.int64)

    def first_counts(self, number: int) -> npt.NDArray[np.float32]:
        """Counts of the frames with the lowest numbers, at most `number`, shape (n, N, N), as the detector has them."""
        return self._counts.read(self._order[:number])

    def use_refined(self, moves_px: FloatArray, flux: FloatArray) -> None:
        """State what refining found, in the order of `seq_nums`: as `moves_px` and `flux` give it."""
        self._table["move_px"][self._order] = moves_px
        self._table["flux"][self._order] = flux
        self._placed = None

    def take_refined(self, data: Diffraction, rows: IndexArray, box: Box) -> None:
        """Keep the positions and fluxes of `data`, refined from those of `diffraction(rows, box)`."""
        centre = (self._column("position_m")[rows] - np.asarray(self.canvas.origin_m)) / self.canvas.pixel_m
        found = data.corner.cpu().numpy() + self.canvas.frame_px // 2 + data.shift_px.cpu().numpy()
        self._table["move_px"][rows] = found + np.asarray(box.low) - centre
        if data.gain is not None:
            monitor = self._column("monitor")[rows]
            flux = data.gain.cpu().numpy() * self.mean_flux
            # A frame without monitored light stays so.
            self._table["flux"][rows] = np.divide(flux, monitor, out=np.ones_like(flux, np.float64), where=monitor > 0)
        self._placed = None

    @property
    def mask(self) -> torch.Tensor | None:
        """The valid pixels, (N, N), bool, in the propagator's working order; None: all."""
        return self._mask

    def use_mask(self, mask: torch.Tensor) -> None:
        """State the valid pixels: (N, N), bool, in the propagator's working order."""
        self._mask = mask

    def mean_photons(self, share: float = 0.9) -> float:
        """The quantile `share` of the frames' photons: nearly those of a frame through vacuum."""
        totals = [
            (counts if self._mask is None else counts * self._mask).sum(dim=(-2, -1)).cpu().numpy()
            for counts in map(self._working, np.split(self._order, range(CHUNK, len(self), CHUNK)))
        ]
        return float(np.quantile(np.concatenate(totals), share)) if len(self) else 0.0

    def diffraction(self, rows: IndexArray | None = None, box: Box | None = None) -> Diffraction:
        """Frames on the part of the canvas that is a box.

        Parameters
        ----------
        rows : ndarray, shape (n,), optional
            Which frames; they must lie in the box. All in the order of `seq_nums` if absent.
        box : Box, optional
            The whole canvas if absent.
        """
        rows = self._order if rows is None else rows
        box = Box((0, 0), self.canvas.shape) if box is None else box
        corner, shift = self._places()
        mean = self.mean_flux
        gain = self._incident()[rows] / mean if mean > 0 else np.ones(len(rows))
        return Diffraction(
            counts=self._kept_working(rows),
            corner=torch.from_numpy(corner[rows] - np.asarray(box.low)).to(self.device),
            shift_px=torch.from_numpy(shift[rows]).to(self.device, torch.float32),
            canvas_shape=(1, *box.shape),
            gain=torch.from_numpy(gain).to(self.device, torch.float32),
            mask=self._mask,
            background=self._background,
            saturation=self._saturation,
            propagator=self._propagator,
        )

    def _check(self, frames: list[Frame]) -> None:
        side = self.canvas.frame_px
        for frame in frames:
            if np.shape(frame.counts) != (side, side):
                raise FrameError(
                    f"frame {frame.seq_num} must be {side} x {side} pixels; it is {np.shape(frame.counts)}. "
                    "One run has one frame shape."
                )
        if frames:
            self.canvas.place(np.array([frame.position_m for frame in frames], dtype=np.float64))

    def _put(self, frame: Frame) -> int:
        """Keep one frame; its row."""
        row = self._row_of.get(frame.seq_num, len(self))
        if row < len(self):
            self._counts.replace(row, frame.counts)
        else:
            self._counts.append(frame.counts)
            self._row_of[frame.seq_num] = row
            if row == len(self._table):
                self._table = np.concatenate([self._table, np.zeros(max(CHUNK, row), ROW)])
        # What refining found of a frame that this one replaces is not this one's.
        still, as_monitored = (0.0, 0.0), 1.0
        y, x = frame.position_m
        self._table[row] = (frame.seq_num, (y, x), frame.exposure_s, frame.monitor, still, as_monitored)
        return row

    def _column(self, name: str) -> npt.NDArray[Any]:
        """By row, shape (n, ...)."""
        return np.asarray(self._table[: len(self)][name])

    def _incident(self) -> FloatArray:
        """Flux of each frame on the monitors' scale, by row, (n,)."""
        return np.asarray(self._column("monitor") * self._column("flux"))

    def _places(self) -> tuple[IndexArray, FloatArray]:
        """Patch corners and sub-pixel shifts by row."""
        if self._placed is None:
            refined = self._column("position_m") + self._column("move_px") * self.canvas.pixel_m
            self._placed = self.canvas.place(refined)
        return self._placed

    def _working(self, rows: IndexArray) -> torch.Tensor:
        """Counts (n, N, N) in the propagator's working order."""
        return self._propagator.to_working(torch.from_numpy(self._counts.read(rows)).to(self.device))

    def _kept_working(self, rows: IndexArray) -> torch.Tensor:
        """`_working`, kept until other frames are asked for, if memory has room for that."""
        if self._cached is not None and np.array_equal(self._cached[0], rows):
            return self._cached[1]
        self._cached = None
        counts = self._working(rows)
        if counts.nbytes <= self._counts.room:
            self._cached = rows.copy(), counts
        return counts
