"""The frames of a run, as a reconstructor holds them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from bluesky_cdi.errors import FrameError
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Canvas
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.protocols import FloatArray, Frame


class MeasuredFrames:
    """Frames by number, placed on a canvas, ready for computing.

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
    """

    def __init__(
        self,
        canvas: Canvas,
        device: torch.device,
        background: float = 0.0,
        saturation: float | None = None,
        propagator: Propagator = FAR_FIELD,
    ) -> None:
        self.canvas = canvas
        self.device = device
        self._mask: torch.Tensor | None = None
        self._background = background
        self._saturation = saturation
        self._propagator = propagator
        self._moves_px: dict[int, FloatArray] = {}
        self._flux: dict[int, float] = {}
        self._frames: dict[int, tuple[Frame, torch.Tensor]] = {}
        self._data: Diffraction | None = None

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def seq_nums(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Numbers of the frames, ascending, shape (n,)."""
        return np.array(sorted(self._frames), dtype=np.int64)

    @property
    def measured_positions_m(self) -> FloatArray:
        """(y, x) of the frames as they came, in the order of `seq_nums`, shape (n, 2)."""
        return np.array([frame.position_m for frame in self.frames], dtype=np.float64).reshape(-1, 2)

    @property
    def positions_m(self) -> FloatArray:
        """(y, x) of the frames, refined where they have been, in the order of `seq_nums`, shape (n, 2)."""
        return self.measured_positions_m + self.moves_px * self.canvas.pixel_m

    @property
    def moves_px(self) -> FloatArray:
        """By how much refining has moved the frames (y, x), pixels, in the order of `seq_nums`, shape (n, 2)."""
        still = np.zeros(2)
        return np.array([self._moves_px.get(s, still) for s in sorted(self._frames)]).reshape(-1, 2)

    @property
    def flux(self) -> FloatArray:
        """Factor of each frame's flux on its monitor's, in the order of `seq_nums`, shape (n,)."""
        return np.array([self._flux.get(s, 1.0) for s in sorted(self._frames)])

    @property
    def frames(self) -> list[Frame]:
        """The frames as they came, in the order of `seq_nums`."""
        return [self._frames[s][0] for s in sorted(self._frames)]

    def add(self, frames: Iterable[Frame]) -> None:
        """Take frames in; a known number replaces the earlier frame.

        Raises
        ------
        FrameError
            If a frame has another shape than the canvas was made for.
        GeometryError
            If a position lies outside the canvas.
        """
        side = self.canvas.frame_px
        for frame in frames:
            if frame.counts.shape != (side, side):
                raise FrameError(
                    f"frame {frame.seq_num} must be {side} x {side} pixels; it is {frame.counts.shape}. "
                    "One run has one frame shape."
                )
            self.canvas.place(np.asarray(frame.position_m)[None])
            counts = torch.from_numpy(np.ascontiguousarray(frame.counts, dtype=np.float32)).to(self.device)
            self._frames[frame.seq_num] = (frame, self._propagator.to_working(counts))
            # What refining found of a frame that this one replaces is not this one's.
            self._moves_px.pop(frame.seq_num, None)
            self._flux.pop(frame.seq_num, None)
            self._data = None

    def use_refined(self, moves_px: FloatArray, flux: FloatArray) -> None:
        """State what refining found, in the order of `seq_nums`: as `moves_px` and `flux` give it."""
        self._moves_px = dict(zip(sorted(self._frames), np.asarray(moves_px, np.float64), strict=True))
        self._flux = dict(zip(sorted(self._frames), np.asarray(flux, np.float64).tolist(), strict=True))
        self._data = None

    def take_refined(self, data: Diffraction) -> None:
        """Keep the positions and fluxes of `data`, refined from those of `diffraction`."""
        centre = (self.measured_positions_m - np.asarray(self.canvas.origin_m)) / self.canvas.pixel_m
        found = data.corner.cpu().numpy() + self.canvas.frame_px // 2 + data.shift_px.cpu().numpy()
        gain = np.ones(len(data)) if data.gain is None else data.gain.cpu().numpy().astype(np.float64)
        self.use_refined(found - centre, gain / self._monitored())

    @property
    def mask(self) -> torch.Tensor | None:
        """The valid pixels, (N, N), bool, in the propagator's working order; None: all."""
        return self._mask

    def use_mask(self, mask: torch.Tensor) -> None:
        """State the valid pixels: (N, N), bool, in the propagator's working order."""
        self._mask = mask
        self._data = None

    def mean_photons(self, share: float = 0.9) -> float:
        """The quantile `share` of the frames' photons: nearly those of a frame through vacuum."""
        totals = [float((c if self._mask is None else c * self._mask).sum()) for _, c in self._frames.values()]
        return float(np.quantile(totals, share)) if totals else 0.0

    def diffraction(self) -> Diffraction:
        """All frames in the order of `seq_nums`."""
        if self._data is None:
            order = [self._frames[s] for s in sorted(self._frames)]
            corner, shift = self.canvas.place(self.positions_m)
            gain = self._monitored() * self.flux
            self._data = Diffraction(
                counts=torch.stack([counts for _, counts in order]),
                corner=torch.from_numpy(corner).to(self.device),
                shift_px=torch.from_numpy(shift).to(self.device, torch.float32),
                canvas_shape=(1, *self.canvas.shape),
                gain=torch.from_numpy(gain / gain.mean()).to(self.device, torch.float32),
                mask=self._mask,
                background=self._background,
                saturation=self._saturation,
                propagator=self._propagator,
            )
        return self._data

    def _monitored(self) -> FloatArray:
        """Flux of each frame by its monitor relative to the mean, (n,)."""
        flux = np.array([self._frames[s][0].monitor for s in sorted(self._frames)])
        return np.asarray(flux / flux.mean())
