"""The images of a run while its frames come: full ones where there is time for them, else quick ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from bluesky_cdi.live.flow import FrameFlow
from bluesky_cdi.live.parts import Pace
from bluesky_cdi.live.tempo import Tempo
from bluesky_cdi.memory import give_memory_back
from bluesky_cdi.protocols import Estimate, QuickReader, Reconstructor

logger = logging.getLogger(__name__)

# Images take and free large arrays, of another size each. What is freed is given back no more often than this, seconds:
# the next image takes it anew.
GIVE_BACK_S = 10.0


class Steps:
    """Makes a run's images, and counts its frames on their way into them.

    Parameters
    ----------
    reconstructor : Reconstructor
        The run's.
    pace : Pace
    flow : FrameFlow
        Learns of each image.
    always_full : bool
        Whether decisions rest on the images: these wait for full ones.
    clock : callable
        Tells the time, seconds.

    Attributes
    ----------
    owes_full : bool
        Whether the newest image is a quick one.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        pace: Pace,
        flow: FrameFlow,
        *,
        always_full: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconstructor, self._pace, self._flow, self._clock = reconstructor, pace, flow, clock
        self._tempo = Tempo(pace.latency_s, clock)
        self._quick = reconstructor if isinstance(reconstructor, QuickReader) and not always_full else None
        self.owes_full = self._has_told = False
        self._given_back_s = clock()

    @property
    def rest_s(self) -> float | None:
        """Time after which the next image is due though nothing comes, seconds; None: it waits for a frame."""
        if not self.owes_full:
            return None
        return 0.0 if self._flow.thins else self._pace.latency_s

    def make(self, interrupted: Callable[[], bool], *, paused: bool = False) -> Estimate | None:
        """Make the next image.

        Parameters
        ----------
        interrupted : callable
            Whether to come back before the time for a step is over.
        paused : bool
            Whether no frames come, or no more: then there is time for a full one once all that came are in.

        Returns
        -------
        Estimate or None
            With the counts in its `source`; None where nothing changes.
        """
        frames, began_s = self._flow.received, self._clock()
        has_time = (paused and not self._flow.thins) or self._tempo.is_full(frames)
        estimate = None if has_time else self._read_quickly()
        if is_full := estimate is None:
            estimate = self._reconstructor.step(self._pace.step_s, interrupted)
        self._tempo.stepped(began_s, frames, full=is_full)
        self.owes_full = not is_full
        if self._clock() > self._given_back_s + GIVE_BACK_S:
            give_memory_back()
            self._given_back_s = self._clock()
        return None if estimate is None else self._shown(estimate, began_s)

    def _read_quickly(self) -> Estimate | None:
        return None if self._quick is None else self._quick.read_quickly(self._tempo.reading_s)

    def _shown(self, estimate: Estimate, began_s: float) -> Estimate:
        shown = self._flow.show(estimate, began_s)
        if self._flow.thins and not self._has_told:
            self._has_told = True
            logger.warning(
                "frames come faster than they can be read: the live image takes some from everywhere, and passes over "
                "%d by now; all are read before the result is final",
                self._flow.unread,
            )
        return shown
