"""The first frames of a run whose start document does not say where it will measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bluesky_cdi.callbacks._plan_pattern import PlanPattern
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.errors import GeometryError, NoPtychographyError
from bluesky_cdi.physics.geometry import LEAST_PIXELS, Geometry
from bluesky_cdi.protocols import FloatArray, Frame, RunInfo

# So many events at one place, and it is no scan: a series of exposures.
HELD_MAX = 16
# The window of a pattern is larger by this part of a frame on each side, for stages that are not where they were sent.
SLACK = 4


class Beginning:
    """Hands frames to a sink; holds the first ones until they lie at two places, where that tells what the run is.

    A run that states its window (``window_m``), or no geometry without which nothing can be placed, is opened at once;
    one of a pattern that is known, with its first point. Another one is opened with the window of the frames that were
    held; it grows with those that follow.

    Parameters
    ----------
    sink : FrameSink
        Receives the frames.
    info : RunInfo
        The run.
    pattern : PlanPattern, optional
        Where its plan measures.
    seen : RunInfo, optional
        The run with the geometry and the shape of the frames that come out of the sink's preprocessing; `info` if
        absent.
    images : int
        Frames that an event has at one place.

    Attributes
    ----------
    is_open : bool
        Whether the sink has had the run's `start_run`.
    """

    def __init__(
        self,
        sink: FrameSink,
        info: RunInfo,
        pattern: PlanPattern | None = None,
        seen: RunInfo | None = None,
        images: int = 1,
    ) -> None:
        self.is_open = False
        self._sink, self._info, self._pattern = sink, info, pattern
        self._arriving, self._held_max = seen or info, HELD_MAX * images
        self._held: list[Callable[[], None]] = []
        self._positions_m: list[FloatArray] = []
        # Nothing is to be waited for where the window is stated.
        self._pixel_m = None if self._arriving.metadata.get("window_m") is not None else self.pixel_m
        if self._pixel_m is None:
            self._open(info)

    @property
    def pixel_m(self) -> float | None:
        """Sample pixel, metres; None where the run does not state its geometry: who reconstructs it tells that."""
        try:
            return Geometry.from_metadata(self._arriving.metadata, self._arriving.frame_shape).pixel_m
        except GeometryError:
            return None

    def put(self, frame: Frame) -> None:
        """Take a frame.

        Raises
        ------
        NoPtychographyError
            If it is one of many at one place.
        """
        if self.is_open:
            self._sink.put(frame)
            return
        self._held.append(lambda: self._sink.put(frame))
        self._positions_m.append(frame.position_m)
        pixel_m = self._pixel_m or 0.0
        if self._pattern is not None and frame.seq_num == 1:
            slack_m = self._arriving.frame_shape[0] // SLACK * pixel_m
            self._open(replace(self._info, window_m=self._pattern.around(frame.position_m, slack_m)))
        elif float(np.ptp(self._positions_m, axis=0).max()) >= LEAST_PIXELS * pixel_m:
            self._open(replace(self._info, window_m=self._window(), grows=True))
        elif len(self._positions_m) >= self._held_max:
            self.finish()

    def leave_out(self, seq_num: int, error: Exception) -> None:
        """Take the number of a frame that can't be used, and why."""
        if self.is_open:
            self._sink.leave_out(seq_num, error)
        else:
            self._held.append(lambda: self._sink.leave_out(seq_num, error))

    def finish(self) -> None:
        """Open a run of which no frame could be used, so that it is told.

        Raises
        ------
        NoPtychographyError
            If the frames that are held lie at one place.
        """
        if self.is_open or not self._held:
            return
        if self._positions_m:
            n = len(self._positions_m)
            self._held.clear()
            raise NoPtychographyError(
                f"the run's {n} frame(s) lie at one place, within half a sample pixel: nothing is scanned",
                has_frames=True,
            )
        self._open(self._info)

    def _window(self) -> tuple[tuple[float, float], tuple[float, float]]:
        low, high = np.min(self._positions_m, axis=0), np.max(self._positions_m, axis=0)
        return (float(low[0]), float(low[1])), (float(high[0]), float(high[1]))

    def _open(self, info: RunInfo) -> None:
        self.is_open = True
        self._sink.start_run(info)
        held, self._held = self._held, []
        for call in held:
            call()
