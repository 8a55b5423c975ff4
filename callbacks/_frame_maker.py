"""Frames from the parts of an event."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bluesky_cdi.callbacks._frame_files import FrameFiles, Part
from bluesky_cdi.callbacks._preprocessing import summed
from bluesky_cdi.callbacks._stream_keys import StreamKeys
from bluesky_cdi.callbacks._tally import FrameTally
from bluesky_cdi.errors import FrameError
from bluesky_cdi.protocols import Frame, ReadAgain

Document = Mapping[str, Any]
Several = Literal["sum", "each"]
Region = tuple[slice, slice]
# Raises FrameError for a frame that can't be used; takes it, and the (H, W) that the descriptor announced.
Check = Callable[[Frame, tuple[int, int]], None]


@dataclass(frozen=True)
class FileFrame:
    """A frame that waits in its file; rows up to `stop` were announced with it."""

    resource: Document
    index: int
    stop: int = 0


class FrameMaker:
    """Makes the frames of events: reads their images, places them, checks them, and adds them up where that is wished.

    Parameters
    ----------
    files : FrameFiles
        Where images lie that are not inside the events.
    tally : FrameTally
        Counts what is unusual about them.
    check : callable
        Raises FrameError for an image that can't be used.
    several : {'sum', 'each'}
        What becomes of several images an event: one frame, their sum, or a frame each.
    region : callable, optional
        Gives what of the frames in files suffices who preprocesses them, None: all of it. Several images to be summed
        stay together for that, (n, H, W); if absent, nobody preprocesses, and they are added up here.
    clock : callable
        Tells the time, seconds: frames say when their documents were complete.
    """

    def __init__(
        self,
        files: FrameFiles,
        tally: FrameTally,
        check: Check,
        several: Several,
        region: Callable[[], Region | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._files, self._tally, self._check, self._several = files, tally, check, several
        self._region = region

    def numbers(self, seq_num: int, keys: StreamKeys) -> range:
        """Give the numbers of an event's frames: the event's own, unless each of several images is a frame."""
        n = keys.n_images if self._several == "each" else 1
        return range((seq_num - 1) * n + 1, seq_num * n + 1)

    def frames(self, seq_num: int, parts: Mapping[str, Any], keys: StreamKeys, exposure_s: float) -> list[Frame]:
        """Make the frames of an event.

        Parameters
        ----------
        seq_num : int
            Its number.
        parts : Mapping
            ``frame``, ``y``, ``x`` and perhaps ``monitor``.
        keys : StreamKeys
            What was announced.
        exposure_s : float
            Exposure of an image, seconds.

        Raises
        ------
        FrameError, ScanFileError
            If one of its images can't be used.
        """
        arrived_s = self._clock()
        images, shape = self._images(parts["frame"], keys)
        numbers = self.numbers(seq_num, keys)
        position_m = np.array([_number(parts[axis], seq_num, axis) for axis in ("y", "x")]) * keys.metres_per
        flux = _number(parts.get("monitor", 1.0), seq_num, "monitor")
        frames = [
            Frame(numbers[i % len(numbers)], position_m, image, exposure_s, flux, arrived_s)
            for i, image in enumerate(images)
        ]
        for frame in frames:
            self._check(frame, shape)
        return [self._together(frames)] if self._several == "sum" and len(frames) > 1 else frames

    def again(
        self, parts_of: Callable[[int], Mapping[str, Any]], keys: StreamKeys, exposures_s: Mapping[int, float]
    ) -> ReadAgain:
        """Make what reads a frame of the run again from its file, by number.

        Parameters
        ----------
        parts_of : callable
            From an event's number to its parts, without arrays.
        keys : StreamKeys
            What was announced.
        exposures_s : Mapping
            From an event's number to the exposure of an image, seconds.
        """
        n, adds = len(self.numbers(1, keys)), self._region is None

        def read_again(number: int, region: Region | None = None) -> Frame | None:
            event = (number - 1) // n + 1
            parts = parts_of(event)
            if not isinstance(parts.get("frame"), FileFrame):
                return None
            with self._files.apart() as files:
                wanted = None if adds else lambda: region
                maker = FrameMaker(files, FrameTally(), self._check, self._several, wanted)
                frames = maker.frames(event, parts, keys, exposures_s[event])
            return next(frame for frame in frames if frame.seq_num == number)

        return read_again

    def _together(self, frames: Sequence[Frame]) -> Frame:
        """Make one frame of an event's images."""
        images = np.stack([frame.counts for frame in frames])
        counts = summed(images) if self._region is None else images
        return replace(frames[0], counts=counts, exposure_s=sum(frame.exposure_s for frame in frames))

    def _images(self, where: Any, keys: StreamKeys) -> tuple[Sequence[np.ndarray[Any, Any]], tuple[int, int]]:
        """Give the images of an event, and the shape that they have if they are what was announced."""
        n, shape = keys.n_images, keys.frame_shape
        if isinstance(where, FileFrame):
            region = None if self._region is None else self._region()
            part = None if region is None else Part(region, shape)
            counts = self._files.images(where.resource, where.index, n, part, where.stop)
            self._tally.look(counts.dtype)
            return list(counts), part.size if part is not None and counts.shape[1:] == part.size else shape
        if where.ndim == 3 and len(where) == n:
            return list(where), shape
        # Any other shape is left to the check.
        return [where], shape


def _number(value: Any, seq_num: int, part: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as err:
        raise FrameError(f"frame {seq_num} must have a number for its {part}; it has {value!r}") from err
