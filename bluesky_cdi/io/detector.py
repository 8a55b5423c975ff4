"""From the frames that a detector gives to the squares of counts that are reconstructed, live and from files.

What is done, in this order, everything in pixels of the detector until it is binned:

1. *Region and square.* Only the pixels of the square around the direct beam, within the region, are read.
2. *Valid pixels*: those that neither the file, nor `mask`, nor `bad_pixels` call bad, that have a finite dark level and
   a positive sensitivity, and that hold no flag. Others count as 0 from here on.
3. *Saturated pixels* are those whose counts, as the detector gave them, reach `saturation`.
4. *Dark frame and sensitivity*: ``max(counts - dark, 0) / flat``, float32.
5. *Padding* with pixels that are 0 and not valid.
6. *Binning*: sums of ``bin * bin`` pixels. One that is not valid makes the sum not valid, one that is saturated makes
   it saturated.
7. *Orientation*: rotation, transposition, flips; the direct beam is then in pixel ``[N // 2, N // 2]``.

Without dark frame, sensitivity and binning the counts keep their type and nothing is computed: what comes out is a view
of what went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError
from bluesky_cdi.io.detector_window import Window, binned
from bluesky_cdi.io.frame_dataset import BLOCK_BYTES
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Preprocessed

BoolImage = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
# Sums of counts, uint32, stay below the largest such number that is a float32 too.
MOST_COUNTS = 2**32 - 2**8


@dataclass(frozen=True, eq=False)
class DetectorPlan:
    """What is done to each frame of one detector.

    Attributes
    ----------
    raw_shape : tuple of int
        (H, W) of the detector's frames.
    raw_dtype : dtype
        Of their pixels.
    window : Window
        The square, and where it lies in them.
    mask : ndarray, shape (N, N), bool
        Valid pixels of the square.
    read_valid : ndarray, shape (h, w), bool
        Valid pixels of what is read of a frame.
    dark, flat : ndarray, shape (h, w), float32, or None
        Of what is read: counts to subtract; sensitivity to divide by.
    raw_saturation : float or None
        Counts of the detector from which on a pixel is saturated.
    notes : Mapping
        Where it comes from, as plain values.
    """

    raw_shape: tuple[int, int]
    raw_dtype: np.dtype[Any]
    window: Window
    mask: BoolImage
    read_valid: BoolImage
    dark: Image | None
    flat: Image | None
    raw_saturation: float | None
    notes: Mapping[str, Any]

    @property
    def region(self) -> tuple[slice, slice]:
        """Rows and columns of a raw frame that are read."""
        return self.window.rows, self.window.columns

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N) of what comes out."""
        return self.window.side, self.window.side

    @property
    def computes(self) -> bool:
        """Whether counts are changed, not only chosen."""
        return self.window.bin > 1 or self.dark is not None or self.flat is not None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of what comes out: the detector's own; computed, uint32 for sums of integers, else float32."""
        return self._made_of(self.raw_dtype)

    @property
    def saturation(self) -> float | None:
        """Counts from which on a pixel that comes out is saturated: what no other one can reach, where it is computed.

        Of counts below the detector's level s, the largest that can come out is below
        ``bin**2 * (s - min(dark, 0)) / min(flat)``; saturated pixels come out with that number.
        """
        level = self.raw_saturation
        if level is None or not self.computes:
            return level
        level -= 0.0 if self.dark is None else min(0.0, float(self.dark[self.read_valid].min(initial=0)))
        level /= 1.0 if self.flat is None else float(self.flat[self.read_valid].min())
        # As float32, in which counts are computed with, it is no less than that.
        return min(float(np.float32(np.ceil(level * self.window.bin**2 * (1 + 1e-6)))), float(MOST_COUNTS))

    def apply(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn frames of the detector, (n, H, W), into those that are reconstructed, (n, N, N), counts.

        Parameters
        ----------
        raw : ndarray, shape (n, H, W)
            As the detector gave them.

        Raises
        ------
        FrameError
            If they have another shape, or a valid pixel that is computed with holds no counts.
        """
        if raw.shape[1:] != self.raw_shape:
            raise FrameError(
                f"frames must have the shape {self.raw_shape} that preprocessing was planned for; they have "
                f"{raw.shape[1:]}. The detector's own region of interest must not change during a scan."
            )
        return self.of_region(raw[(slice(None), *self.region)])

    def of_region(self, parts: npt.NDArray[Any], first: int = 0) -> npt.NDArray[Any]:
        """Turn the `region` of frames into those that are reconstructed.

        Parameters
        ----------
        parts : ndarray, shape (n, h, w)
            As the detector gave them.
        first : int
            Number of the first of them, for messages.

        Raises
        ------
        FrameError
            If a valid pixel that is computed with holds no counts.
        """
        return self.window.turn(self._computed(parts, first) if self.computes else self.window.padded(parts))

    def outcome(self) -> Preprocessed:
        """Give what the reconstruction must know."""
        return Preprocessed(self.mask, self.saturation, self.as_notes())

    def geometry(self, raw: Geometry) -> Geometry:
        """Give the geometry of what comes out, from that of the detector.

        Parameters
        ----------
        raw : Geometry
            That of the detector's own frames.
        """
        return replace(raw, frame_px=self.window.side, detector_pixel_m=raw.detector_pixel_m * self.window.bin)

    def as_notes(self) -> dict[str, Any]:
        """Say what is done, in plain values that JSON can hold."""
        window = self.window
        return {
            **self.notes,
            "read_px": [window.rows.start, window.rows.stop, window.columns.start, window.columns.stop],
            "padded_px": [*window.missing[0], *window.missing[1]],
            "bin": window.bin,
            "transpose": window.turn.transpose,
            "flip_rows": window.turn.flip_rows,
            "flip_columns": window.turn.flip_columns,
            "frame_px": window.side,
            "beam_offset_px": [round(float(value), 3) for value in window.offset_px],
            "masked_pixels": int((~self.mask).sum()),
            "raw_saturation": self.raw_saturation,
            "saturation": self.saturation,
        }

    def _made_of(self, raw: np.dtype[Any]) -> np.dtype[Any]:
        if not self.computes:
            return raw
        whole = raw.kind in "biu" and self.dark is None and self.flat is None
        return np.dtype(np.uint32 if whole else np.float32)

    def _computed(self, parts: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
        counts = np.where(self.read_valid, parts, np.zeros((), parts.dtype))
        _check_counts(counts, first)
        level, window, dtype = self.saturation, self.window, self._made_of(parts.dtype)
        saturated = None if self.raw_saturation is None else counts >= self.raw_saturation
        if saturated is not None:
            # Their sums are replaced; the largest number of a type would be too large a part of one.
            counts = np.where(saturated, np.zeros((), counts.dtype), counts)
        if self.dark is not None:
            counts = np.maximum(counts.astype(np.float32) - self.dark, np.float32(0))
        if self.flat is not None:
            counts = counts.astype(np.float32) / self.flat
        if self.dark is not None or self.flat is not None:
            counts = np.where(self.read_valid, counts, np.float32(0))
        wide = np.uint64 if dtype.kind == "u" else np.float64
        sums = binned(window.padded(counts), window.bin, np.add, wide)
        if dtype.kind == "u" and sums.max(initial=0) >= MOST_COUNTS:
            raise FrameError(f"binned counts must be below {MOST_COUNTS}; some are not. Mask what is not counts.")
        out = sums.astype(dtype)
        if saturated is not None and saturated.any():
            out[binned(window.padded(saturated), window.bin, np.logical_or, bool)] = level
        # `mask` is turned; this is not yet.
        out[:, ~binned(window.padded(self.read_valid[np.newaxis]), window.bin, np.logical_and, bool)[0]] = 0
        return out


def prepared(frames: npt.NDArray[Any], plan: DetectorPlan) -> npt.NDArray[Any]:
    """Apply a plan to frames in memory, block by block.

    Parameters
    ----------
    frames : ndarray, shape (n, H, W)
        As the detector gave them.
    plan : DetectorPlan
        What is done.
    """
    if not plan.computes:
        return plan.apply(frames)
    out = np.empty((len(frames), *plan.shape), plan.dtype)
    step = max(1, BLOCK_BYTES // max(1, frames[:1].nbytes))
    for start in range(0, len(frames), step):
        out[start : start + step] = plan.apply(frames[start : start + step])
    return out


def _check_counts(counts: npt.NDArray[Any], first: int) -> None:
    """Refuse values that computing would hide: NaN and negative numbers in valid pixels."""
    if counts.dtype.kind not in "if":
        return
    wrong = ~(counts >= 0) | np.isinf(counts) if counts.dtype.kind == "f" else counts < 0
    if wrong.any():
        frame = int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))[0])
        raise FrameError(
            f"frames must hold counts, finite and not negative, before they are computed with; "
            f"{int(wrong[frame].sum())} valid pixels of frame {first + frame} (from 0) do not. Mark them in "
            "detector.bad_pixels; live, detector.mask_flagged masks those that hold a flag in every frame."
        )
