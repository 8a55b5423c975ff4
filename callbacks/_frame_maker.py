"""Frames from the parts of an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bluesky_cdi.callbacks._frame_files import FrameFiles
from bluesky_cdi.callbacks._preprocessing import summed
from bluesky_cdi.callbacks._stream_keys import StreamKeys
from bluesky_cdi.callbacks._tally import FrameTally
from bluesky_cdi.errors import FrameError
from bluesky_cdi.protocols import Frame

Document = Mapping[str, Any]
Several = Literal["sum", "each"]
# Raises FrameError for a frame that can't be used; takes it, and the (H, W) that the descriptor announced.
Check = Callable[[Frame, tuple[int, int]], None]


@dataclass(frozen=True)
class FileFrame:
    """A frame that waits in its file."""

    resource: Document
    index: int


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
    adds : bool
        Whether a sum is made here. If not, its images stay together, (n, H, W), for who preprocesses them.
    """

    def __init__(
        self, files: FrameFiles, tally: FrameTally, check: Check, several: Several, *, adds: bool = True
    ) -> None:
        self._files, self._tally, self._check, self._several, self._adds = files, tally, check, several, adds

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
        images = self._images(parts["frame"], keys.n_images)
        numbers = self.numbers(seq_num, keys)
        position_m = np.array([_number(parts[axis], seq_num, axis) for axis in ("y", "x")]) * keys.metres_per
        flux = _number(parts.get("monitor", 1.0), seq_num, "monitor")
        frames = [
            Frame(numbers[i % len(numbers)], position_m, image, exposure_s, flux) for i, image in enumerate(images)
        ]
        for frame in frames:
            self._check(frame, keys.frame_shape)
        return [self._together(frames)] if self._several == "sum" and len(frames) > 1 else frames

    def _together(self, frames: Sequence[Frame]) -> Frame:
        """Make one frame of an event's images."""
        images = np.stack([frame.counts for frame in frames])
        counts = summed(images) if self._adds else images
        return replace(frames[0], counts=counts, exposure_s=sum(frame.exposure_s for frame in frames))

    def _images(self, where: Any, n: int) -> Sequence[np.ndarray[Any, Any]]:
        """Give the images of an event, each (H, W) if it is what was announced."""
        if isinstance(where, FileFrame):
            counts = self._files.images(where.resource, where.index, n)
            self._tally.look(counts.dtype)
            return list(counts)
        if where.ndim == 3 and len(where) == n:
            return list(where)
        # Any other shape is left to the check.
        return [where]


def _number(value: Any, seq_num: int, part: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as err:
        raise FrameError(f"frame {seq_num} must have a number for its {part}; it has {value!r}") from err
