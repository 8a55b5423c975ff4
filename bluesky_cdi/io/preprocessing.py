"""What is wanted of a detector's frames, and the plan that comes of it once they are known."""

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
from bluesky_cdi.io.detector import BoolImage, DetectorPlan, Image
from bluesky_cdi.io.detector_window import Window
from bluesky_cdi.io.frame_summaries import mean_frame, without_flagged
from bluesky_cdi.io.frames import Frames, cut, flagged_pixels
from bluesky_cdi.io.images import read_array, read_image
from bluesky_cdi.physics.geometry import Geometry

# Where the beam's centre comes from, where it is not stated.
_CENTRES: dict[Any, str] = {None: "middle of the region", "find": "found"}


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
        """Take what a configuration wants for recorded scans; None: nothing. They state their geometry themselves.

        Parameters
        ----------
        config : Config
            Its section `detector`.
        """
        wanted = cls.live(config)
        return wanted if "frame_px" in config.geometry.model_fields_set or wanted is None else cls(config.detector)

    @classmethod
    def live(cls, config: Config) -> Preprocessing | None:
        """Take what a configuration wants for a live run, whose geometry it states; None: nothing.

        Parameters
        ----------
        config : Config
            Its sections `detector` and `geometry`.
        """
        return cls(config.detector, config.geometry.frame_px) if config.detector.changes_frames else None

    @classmethod
    def stated_geometry(cls, config: Config) -> Geometry:
        """Give the geometry of what comes out of a live run's preprocessing, if there is any, as configured.

        Parameters
        ----------
        config : Config
            Its sections `detector` and `geometry`.
        """
        stated, wanted = Geometry(**config.geometry.model_dump()), cls.live(config)
        return stated if wanted is None else wanted.geometry(stated)

    def geometry(self, stated: Geometry) -> Geometry:
        """Give the geometry of a configuration, whose `frame_px` is that of what comes out, with the binned pixel.

        Parameters
        ----------
        stated : Geometry
            As it is configured.
        """
        return replace(stated, detector_pixel_m=stated.detector_pixel_m * self.settings.bin)

    def side(self, shape: tuple[int, int]) -> int:
        """Give the side of what comes out, pixels, as far as it is known before any frame (H, W) is.

        Parameters
        ----------
        shape : tuple of int
            (H, W) of the detector's frames.
        """
        return self.frame_px or (self.settings.crop_px or min(shape)) // self.settings.bin

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
        centre = _centre(settings, region, frames, valid)
        window = Window.around(centre, region, settings)
        self._check_side(shape, window.side)
        rows, columns = window.rows, window.columns
        part, flagged = valid[rows, columns], 0
        if frames is not None and (settings.mask_flagged if mask_flagged is None else mask_flagged):
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

    def _check_side(self, shape: tuple[int, int], side: int) -> None:
        if self.frame_px is not None and side != self.frame_px:
            raise GeometryError(
                f"geometry.frame_px must be the side of the frames after preprocessing; it is {self.frame_px}, and "
                f"frames of {shape[0]} x {shape[1]} pixels become {side} x {side}. Set it to that, or detector.crop_px "
                f"to {self.frame_px * self.settings.bin}."
            )


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
    usable = valid[top:bottom, left:right] & ~flagged_pixels(part)
    row, column = find_beam_centre(mean_frame(part), usable)
    return top + row, left + column
