"""Looks at frames on their way to the worker, for whoever wants to see them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bluesky_cdi.callbacks import FrameSink
from bluesky_cdi.errors import BlueskyCDIError, GeometryError, WorkerError
from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.evaluation.fit import FittedFrame
from bluesky_cdi.evaluation.scan_maps import ScanMapper, ScanMaps
from bluesky_cdi.live.messages import refuse
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import RAW_UID, Estimate, Frame, RunInfo
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels

logger = logging.getLogger(__name__)

# The rate of a scan is that of its last frames.
RATE_FRAMES = 20
# Frames that are kept for a look at one that is in the image: one in so many seconds, and so many of them.
KEPT_EVERY_S, KEPT = 0.1, 64
KEPT_BYTES = 2**26


@dataclass
class _Run:
    """What is known of the run that is measured."""

    info: RunInfo
    geometry: Geometry
    mapper: ScanMapper
    numbers: set[int] = field(default_factory=set)
    arrived_s: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_FRAMES))
    kept: deque[Frame] = field(default_factory=deque)
    kept_s: float = -math.inf
    newest: Frame | None = None
    estimate: Estimate | None = None
    ended: str = ""

    def keep(self, frame: Frame, now_s: float) -> None:
        """Keep the newest frame, and of those before it some."""
        self.newest = frame
        if now_s < self.kept_s + KEPT_EVERY_S:
            return
        self.kept_s = now_s
        self.kept.append(frame)
        if len(self.kept) > max(2, min(KEPT, KEPT_BYTES // max(frame.counts.nbytes, 1))):
            self.kept.popleft()

    def take(self, estimate: Estimate) -> None:
        """Keep an image, if it is of this run: that of the run before may come late."""
        if estimate.source.get(RAW_UID) == self.info.uid:
            self.estimate = estimate

    def shown(self) -> Frame | None:
        """Choose the newest frame that is in the image; the newest of all where none of those that are kept is."""
        known = set() if self.estimate is None else set(self.estimate.frame_seq_nums.tolist())
        if self.newest is None or self.newest.seq_num in known:
            return self.newest
        return next((frame for frame in reversed(self.kept) if frame.seq_num in known), self.newest)

    def rate_hz(self) -> float:
        """How fast the last frames came."""
        spent = self.arrived_s[-1] - self.arrived_s[0] if len(self.arrived_s) > 1 else 0.0
        return (len(self.arrived_s) - 1) / spent if spent > 0 else math.nan


class FrameWatch:
    """A `FrameSink` before another one, which gets all at once; what frames say by themselves is summed on the way.

    What goes wrong here is logged, and ends the look at that run; the reconstruction goes on.

    Parameters
    ----------
    sink : FrameSink
        Gets the frames.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels of frames that were not preprocessed; else the run's `preprocessed` says which they are.
    clock : callable
        Tells the time, seconds.
    """

    def __init__(
        self, sink: FrameSink, mask: BoolArray | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sink, self._mask, self._clock = sink, mask, clock
        self._changed = threading.Condition()
        self._run: _Run | None = None
        self._number = 0
        self._asked: tuple[int, Future[Sight]] | None = None
        self._thread: threading.Thread | None = None

    def start_run(self, info: RunInfo) -> None:
        """Open a run; one without a geometry is not looked at, which the reconstruction tells of."""
        self._attempt(self._start, info)
        self._sink.start_run(info)

    def put(self, frame: Frame) -> None:
        """Hand a frame on, and sum it."""
        self._sink.put(frame)
        self._attempt(self._sum, frame)

    def leave_out(self, seq_num: int, error: Exception) -> None:
        """Count a frame that can't be used.

        Parameters
        ----------
        seq_num : int
            The event's number.
        error : Exception
            Why.
        """
        self._attempt(lambda run: run.numbers.add(seq_num))
        self._sink.leave_out(seq_num, error)

    def end_run(self, exit_status: str, reason: str, notes: Mapping[str, Any]) -> None:
        """Close the run; what was seen of it stays until the next one.

        Parameters
        ----------
        exit_status : str
            The stop document's.
        reason : str
            The stop document's.
        notes : Mapping
            What the documents tell of the run as a whole.
        """
        self._attempt(lambda run: setattr(run, "ended", exit_status))
        self._sink.end_run(exit_status, reason, notes)

    def fail(self, error: Exception, start: Mapping[str, Any]) -> None:
        """Hand on that a run can't be reconstructed.

        Parameters
        ----------
        error : Exception
            Why.
        start : Mapping
            The run's start document.
        """
        self._sink.fail(error, start)

    def show(self, estimate: Estimate) -> None:
        """Take note of the newest image, for the fit of a frame; a listener of the worker."""
        self._attempt(lambda run: run.take(estimate))

    def look(self, after: int) -> Future[Sight]:
        """Ask for the next sight, as soon as there is one; one who asked before and waits gets `WorkerError`.

        Parameters
        ----------
        after : int
            Number of the last sight that is known; 0: none.
        """
        answer: Future[Sight] = Future()
        with self._changed:
            before, self._asked = self._asked, (after, answer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="bluesky_cdi-sights", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if before is not None:
            refuse(before[1], WorkerError("somebody else looks at the frames now"))
        return answer

    def _attempt(self, note: Callable[..., Any], *args: Any) -> None:
        """Take note of something, of the open run where nothing is given, and count it."""
        with self._changed:
            if not args:
                if self._run is None:
                    return
                args = (self._run,)
            try:
                note(*args)
            except Exception as err:
                logger.exception("the run can't be looked at: %s (the reconstruction goes on)", err)
                self._run = None
            self._number += 1
            self._changed.notify_all()

    def _start(self, info: RunInfo) -> None:
        self._run = None
        try:
            geometry = Geometry.from_metadata(info.metadata, info.frame_shape)
        except GeometryError:
            return
        mask = self._mask if info.preprocessed is None else info.preprocessed.mask
        self._run = _Run(info, geometry, ScanMapper(geometry, mask, valid_pixels))

    def _sum(self, frame: Frame) -> None:
        if (run := self._run) is None:
            return
        run.mapper.add(frame)
        now_s = self._clock()
        if frame.seq_num not in run.numbers:
            run.arrived_s.append(now_s)
        run.numbers.add(frame.seq_num)
        run.keep(frame, now_s)

    def _serve(self) -> None:
        """Answer questions, in a thread that holds nobody up."""
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due)
                (_, answer), self._asked = self._asked or (0, Future()), None
                run, number, maps = self._run, self._number, None
                if run is not None:
                    maps, frame, estimate = run.mapper.maps(), run.shown(), run.estimate
                    valid, received, rate_hz, ended = run.mapper.valid, len(run.numbers), run.rate_hz(), run.ended
            if run is None or maps is None or not answer.set_running_or_notify_cancel():
                continue
            try:
                fit = _fit(estimate, run.geometry, frame, valid)
                answer.set_result(_sight(number, run, maps, frame, valid, fit, received, rate_hz, ended))
            except Exception as err:  # noqa: BLE001 - whatever it is, who asked must hear of it
                answer.set_exception(err)

    def _is_due(self) -> bool:
        is_asked = self._asked is not None and self._number > self._asked[0]
        return is_asked and self._run is not None and self._run.newest is not None


def _fit(estimate: Estimate | None, geometry: Geometry, frame: Frame | None, valid: BoolArray) -> FittedFrame | None:
    """Compute what an image expects of a frame that is in it; None where it is not, or lies beyond it."""
    if estimate is None or frame is None or frame.seq_num not in estimate.frame_seq_nums:
        return None
    from bluesky_cdi.reconstruction.frame_fit import fitted_frame

    try:
        return fitted_frame(estimate, geometry, frame.seq_num, np.where(valid, frame.counts, 0), valid)
    except BlueskyCDIError as err:
        logger.debug("frame %d has no fit: %s", frame.seq_num, err)
        return None


def _sight(
    number: int,
    run: _Run,
    maps: ScanMaps,
    frame: Frame | None,
    valid: BoolArray,
    fit: FittedFrame | None,
    received: int,
    rate_hz: float,
    ended: str,
) -> Sight:
    metadata = run.info.metadata
    return Sight(
        number=number,
        uid=run.info.uid,
        scan_id=run.info.scan_id,
        plan=str(metadata.get("plan_name", "")),
        geometry=asdict(run.geometry),
        received=received,
        rate_hz=rate_hz,
        ended=ended,
        **vars(maps),
        frame_seq_num=0 if frame is None else frame.seq_num,
        counts=np.zeros_like(valid, np.float32) if frame is None else np.where(valid, frame.counts, 0),
        valid=valid,
        fit=None if fit is None else fit.fit,
        deviance=math.nan if fit is None else fit.deviance,
    )
