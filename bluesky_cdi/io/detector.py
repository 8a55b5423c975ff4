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

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.config import Config, DetectorConfig
from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError
from bluesky_cdi.io.beam_centre import find_beam_centre
from bluesky_cdi.io.detector_window import Window, binned
from bluesky_cdi.io.frames import BLOCK_BYTES, Frames, cut, mean_frame, without_flagged
from bluesky_cdi.io.images import read_array, read_image
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Preprocessed

BoolImage = npt.NDArray[np.bool_]
# Where the beam's centre comes from, where it is not stated.
_CENTRES: dict[Any, str] = {None: "middle of the region", "find": "found"}
Image = npt.NDArray[np.float32]
# Sums of counts, uint32, stay below the largest such number that is a float32 too.
MOST_COUNTS = 2**32 - 2**8


@dataclass(frozen=True)
class Preprocessing:
    """What is wanted, before the detector's frames are known.

    Parameters
    ----------
    settings : DetectorConfig
        What is done to them.
    frame_px : int, optional
        Pixels along a side that must come out; any if absent.
    """

    settings: DetectorConfig
    frame_px: int | None = None

    @classmethod
    def recorded(cls, config: Config) -> Preprocessing | None:
        """Take what a configuration wants for recorded scans; None: nothing. They state their geometry themselves."""
        stated = "frame_px" in config.geometry.model_fields_set
        return cls(config.detector, config.geometry.frame_px if stated else None) if _wanted(config) else None

    @classmethod
    def live(cls, config: Config) -> Preprocessing | None:
        """Take what a configuration wants for a live run, whose geometry it states; None: nothing."""
        return cls(config.detector, config.geometry.frame_px) if _wanted(config) else None

    def geometry(self, stated: Geometry) -> Geometry:
        """Give the geometry of a configuration, whose `frame_px` is that of what comes out, with the binned pixel."""
        return replace(stated, detector_pixel_m=stated.detector_pixel_m * self.settings.bin)

    def plan(
        self,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        *,
        frames: Frames | None = None,
        mask: BoolImage | None = None,
        mask_flagged: bool | None = None,
    ) -> DetectorPlan:
        """Decide what is done to each frame.

        Parameters
        ----------
        shape : tuple of int
            (H, W) as the detector gives them.
        dtype : dtype
            Of their pixels.
        frames : Frames, shape (n, H, W), optional
            Some of them, or all: where the beam or pixels with flags are looked for. Up to 16 are read, of them only
            the region.
        mask : ndarray, shape (H, W), bool, optional
            Valid pixels, as far as they are known otherwise.
        mask_flagged : bool, optional
            Whether to look for pixels with flags; as configured if absent.

        Raises
        ------
        GeometryError
            If region, square or `frame_px` don't fit the frames.
        ScanFileError
            If an image can't be read, or has another shape than the frames.
        FrameError
            If the beam's centre can't be found, or no pixel is valid.
        """
        settings = self.settings
        region = _region(settings, shape)
        images = _Images.read(settings, shape)
        valid = images.valid(shape, mask)
        looks = settings.mask_flagged if mask_flagged is None else mask_flagged
        centre = _centre(settings, region, frames, valid)
        window = Window.around(centre, region, settings)
        if self.frame_px is not None and window.side != self.frame_px:
            raise GeometryError(
                f"geometry.frame_px must be the side of the frames after preprocessing; it is {self.frame_px}, and "
                f"frames of {shape[0]} x {shape[1]} pixels become {window.side} x {window.side}. Set it to that, or "
                f"detector.crop_px to {self.frame_px * settings.bin}."
            )
        rows, columns = window.rows, window.columns
        part, flagged = valid[rows, columns], 0
        if looks and frames is not None:
            part, flagged = without_flagged(cut(frames, rows, columns), part)
        square = window.valid(part)
        if not square.any():
            raise FrameError(
                "preprocessing leaves no valid pixel: is a mask inverted (`mask`: 1 is valid, `bad_pixels`: 0 is)?"
            )
        return DetectorPlan(
            raw_shape=shape,
            raw_dtype=np.dtype(dtype),
            window=window,
            mask=square,
            read_valid=part,
            dark=images.cut("dark", rows, columns),
            flat=images.cut("flat", rows, columns),
            raw_saturation=settings.saturation,
            notes={
                "raw_shape": list(shape),
                "beam_centre_px": [round(float(value), 3) for value in centre],
                "beam_centre": _CENTRES.get(settings.beam_centre_px, "stated"),
                "flagged_pixels": flagged,
                **images.notes(),
            },
        )


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
        """Give the geometry of what comes out, from that of the detector."""
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
        if self.dark is not None:
            counts = np.maximum(counts.astype(np.float32) - self.dark, np.float32(0))
        if self.flat is not None:
            counts = counts.astype(np.float32) / self.flat
        if self.dark is not None or self.flat is not None:
            counts = np.where(self.read_valid, counts, np.float32(0))
        wide = np.uint64 if dtype.kind == "u" else np.float64
        sums = binned(window.padded(counts), window.bin, np.sum, dtype=wide)
        if dtype.kind == "u" and sums.max(initial=0) >= MOST_COUNTS:
            raise FrameError(f"binned counts must be below {MOST_COUNTS}; some are not. Mask what is not counts.")
        out = sums.astype(dtype)
        if saturated is not None and saturated.any():
            out[binned(window.padded(saturated), window.bin, np.any)] = level
        # `mask` is turned; this is not yet.
        out[:, ~binned(window.padded(self.read_valid[np.newaxis]), window.bin, np.all)[0]] = 0
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


@dataclass(frozen=True, eq=False)
class _Images:
    """The images that a configuration names, as large as a raw frame."""

    files: Mapping[str, str]
    held: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, settings: DetectorConfig, shape: tuple[int, int]) -> _Images:
        names = {key: getattr(settings, key) for key in ("dark", "flat", "mask", "bad_pixels")}
        files = {key: name for key, name in names.items() if name is not None}
        held = {key: (read_image if key == "mask" else read_array)(name) for key, name in files.items()}
        for key, image in held.items():
            if image.shape != shape:
                raise ScanFileError(
                    f"detector.{key} must have the shape of the detector's frames, {shape}; {files[key]} has "
                    f"{image.shape}. Give the image of the whole frame: it is cut as the frames are."
                )
        return cls(files, held)

    def valid(self, shape: tuple[int, int], mask: BoolImage | None) -> BoolImage:
        """Give the pixels that all of them, and `mask`, call valid."""
        if mask is not None and mask.shape != shape:
            raise GeometryError(
                f"a mask must have the shape of the detector's frames, {shape}; it has {mask.shape}. "
                "It is cut as the frames are."
            )
        valid = np.ones(shape, bool) if mask is None else np.array(mask, bool)
        if "mask" in self.held:
            valid &= self.held["mask"]
        if "bad_pixels" in self.held:
            valid &= self.held["bad_pixels"] == 0
        if "dark" in self.held:
            valid &= np.isfinite(self.held["dark"])
        if "flat" in self.held:
            valid &= np.isfinite(self.held["flat"]) & (self.held["flat"] > 0)
        return valid

    def cut(self, key: str, rows: slice, columns: slice) -> Image | None:
        """Give the part of an image that is read, with 1 in place of what is not finite or positive in a flat."""
        if key not in self.held:
            return None
        part = self.held[key][rows, columns].astype(np.float32)
        usable = np.isfinite(part) & ((part > 0) | (key == "dark"))
        return np.where(usable, part, np.float32(1))

    def notes(self) -> dict[str, Any]:
        """Name the files, with a checksum of what they held, so that a result tells which images it rests on."""
        return {
            key: {"file": self.files[key], "sha256": hashlib.sha256(image.tobytes()).hexdigest()}
            for key, image in self.held.items()
        }


def _wanted(config: Config) -> bool:
    return config.detector.changes_frames


def _region(settings: DetectorConfig, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Check the configured region against a frame's shape; the whole frame where there is none."""
    height, width = shape
    top, bottom, left, right = settings.region_px or (0, height, 0, width)
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise GeometryError(
            f"detector.region_px must be (first row, row after the last, first column, column after the last) within "
            f"frames of {height} x {width} pixels; it is {[top, bottom, left, right]}."
        )
    return top, bottom, left, right


def _centre(
    settings: DetectorConfig, region: tuple[int, int, int, int], frames: Frames | None, valid: BoolImage
) -> tuple[float, float]:
    """Give the direct beam's pixel in the raw frame."""
    top, bottom, left, right = region
    stated = settings.beam_centre_px
    if stated is None:
        return top + (bottom - top) // 2, left + (right - left) // 2
    if isinstance(stated, tuple):
        return stated
    if frames is None or not len(frames):
        raise FrameError("no frame came in which the beam's centre could be found. State detector.beam_centre_px.")
    part = cut(frames, slice(top, bottom), slice(left, right))
    usable, _ = without_flagged(part, valid[top:bottom, left:right])
    row, column = find_beam_centre(mean_frame(part), usable)
    return top + row, left + column


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
