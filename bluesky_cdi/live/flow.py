"""The frames of a run on their way from their documents into the image: how many are where, and how long they take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bluesky_cdi.evaluation.pipeline import KEY
from bluesky_cdi.protocols import Estimate


class FrameFlow:
    """Counts frames by number: each that was received is imaged, waiting, thinned, bad or dark.

    *Thinned* are those that an image passed over though they were there when its making began; they come into a later
    one. The latency is that of the others.

    Parameters
    ----------
    clock : callable
        Tells the time, seconds; of the same zero as `Frame.arrived_s`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._received: set[int] = set()
        # When they came, of those that are in no image.
        self._waiting: dict[int, float] = {}
        self._thinned: set[int] = set()
        self._bad: set[int] = set()
        # Of the newest image.
        self._imaged: set[int] = set()
        self._dark: set[int] = set()
        self._ever_thinned = 0
        self._latencies_s: list[float] = []

    @property
    def received(self) -> int:
        """Frames that came, each once."""
        return len(self._received)

    @property
    def unread(self) -> int:
        """Frames that can be used and are in no image yet."""
        return len(self._waiting)

    @property
    def thins(self) -> bool:
        """Whether images pass frames over."""
        return bool(self._thinned)

    def receive(self, seq_num: int, arrived_s: float = math.nan) -> None:
        """Count a frame that came, or came again.

        Parameters
        ----------
        seq_num : int
            Its number.
        arrived_s : float
            When its documents were there; NaN: now.
        """
        self._received.add(seq_num)
        for kind in (self._bad, self._dark, self._imaged):
            kind.discard(seq_num)
        self._waiting.setdefault(seq_num, self._clock() if math.isnan(arrived_s) else arrived_s)

    def leave_out(self, seq_num: int, *, is_bad: bool) -> None:
        """Count a frame that was not taken.

        Parameters
        ----------
        seq_num : int
            Its number.
        is_bad : bool
            Whether it can't be used; else too many waited, and it is read later.
        """
        self.receive(seq_num)
        if is_bad:
            del self._waiting[seq_num]
            self._thinned.discard(seq_num)
            self._bad.add(seq_num)
        else:
            self._thin(seq_num)

    def show(self, estimate: Estimate, began_s: float) -> Estimate:
        """Take note of which frames an image has.

        Parameters
        ----------
        estimate : Estimate
            The image.
        began_s : float
            When its making began.

        Returns
        -------
        Estimate
            With the counts in its `source`.
        """
        now, (self._imaged, self._dark) = self._clock(), self._in(estimate)
        for number in self._waiting.keys() & self._imaged:
            came_s = self._waiting.pop(number)
            if number not in self._thinned:
                self._latencies_s.append(now - came_s)
        for number in self._waiting.keys() & self._dark:
            del self._waiting[number]
        self._thinned &= self._waiting.keys()
        # Which frames are dark all of them tell: one that was may be one to be read now.
        for number in self._received - self._imaged - self._dark - self._bad - self._waiting.keys():
            self._waiting[number] = now
        for number, came_s in self._waiting.items():
            if came_s < began_s and number not in self._thinned:
                self._thin(number)
        return self.noted(estimate)

    def noted(self, estimate: Estimate) -> Estimate:
        """Put the counts into the `source` of an estimate, the newest one or one before."""
        return replace(estimate, source={**estimate.source, KEY: self._counts(*self._in(estimate))})

    def notes(self) -> dict[str, Any]:
        """Give all counts, and the latency that half and 95 % of the frames had at most, seconds."""
        return self._counts(self._imaged, self._dark)

    def _in(self, estimate: Estimate) -> tuple[set[int], set[int]]:
        """Give the frames that are in an image, and those that were dark for it."""
        imaged = self._received.intersection(estimate.frame_seq_nums.tolist())
        return imaged, self._received.intersection(estimate.source.get("dark_frames", ())) - imaged

    def _counts(self, imaged: set[int], dark: set[int]) -> dict[str, Any]:
        left = self._received - imaged - dark
        bad, thinned = len(left & self._bad), len(left & self._thinned)
        p50, p95 = np.quantile(self._latencies_s, (0.5, 0.95)).tolist() if self._latencies_s else (None, None)
        return {
            "received": len(self._received),
            "imaged": len(imaged),
            "waiting": len(left) - bad - thinned,
            "thinned": thinned,
            "bad": bad,
            "dark": len(dark),
            "ever_thinned": self._ever_thinned,
            "latency_p50_s": p50,
            "latency_p95_s": p95,
        }

    def _thin(self, seq_num: int) -> None:
        self._ever_thinned += seq_num not in self._thinned
        self._thinned.add(seq_num)
