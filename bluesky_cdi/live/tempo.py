"""Whether the next image is a full one or a quick one, so that it never lags for long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Share of the time that full steps may take where they take longer than an image may lag: the frames that come
# meanwhile wait for them. Where quick readings keep the thread busy these are fewer than one in twenty. Where frames
# come slowly it has time for more, and the better image is worth the wait.
LEAST_SHARE, MOST_SHARE = 0.04, 0.5
# A run's first step is a full one if there are no more frames than these.
FIRST_FRAMES = 128
# A step takes at least as long as for so many frames more: the network looks at the object under them too (rows of 64
# frames of 64x64 pixels). Too few would take the first steps for the beginning of an overload, too many would have
# steps full for as long as they take twice the time that an image may lag.
OBJECT_FRAMES = 64


class Tempo:
    """Knows how long full steps take, and when there is time for one.

    A full step reads every frame of the regions that new frames touch, refines and judges. As long as that takes no
    longer than an image may lag, every step is one. Beyond, new frames are read quickly, and full steps take a share
    of the time.

    Parameters
    ----------
    latency_s : float
        How long a frame may wait for its image, seconds; infinite: every step is a full one.
    clock : callable
        Tells the time, seconds.
    """

    def __init__(self, latency_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._latency_s, self._clock = latency_s, clock
        self._full_s, self._full_frames, self._full_ended = 0.0, 0, -math.inf
        # Time of quick readings since the last full step.
        self._quick_s = 0.0

    @property
    def reading_s(self) -> float:
        """Time for a quick reading, seconds: a frame waits for the one before it, and for its own."""
        return self._latency_s / 2

    def is_full(self, frames: int) -> bool:
        """Tell whether the next step is a full one.

        Parameters
        ----------
        frames : int
            Of the run so far.
        """
        if not self._full_frames:
            # Nothing is known of this run: of few frames even the first one does not take long.
            return frames <= FIRST_FRAMES or math.isinf(self._latency_s)
        expected_s = self._full_s * (frames + OBJECT_FRAMES) / (self._full_frames + OBJECT_FRAMES)
        if expected_s <= self._latency_s:
            return True
        since_s = self._clock() - self._full_ended
        busy = self._quick_s / since_s if since_s > 0 else 1.0
        share = max(LEAST_SHARE, MOST_SHARE - busy)
        return expected_s <= share * (since_s + expected_s)

    def stepped(self, began_s: float, frames: int, *, full: bool) -> None:
        """Take note of a step.

        Parameters
        ----------
        began_s : float
            When it began.
        frames : int
            Of the run by then.
        full : bool
            Whether it was a full one.
        """
        now = self._clock()
        if full:
            self._full_s, self._full_frames, self._full_ended = now - began_s, max(1, frames), now
            self._quick_s = 0.0
        else:
            self._quick_s += now - began_s
