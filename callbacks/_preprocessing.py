"""Frames of a detector on their way to the reconstruction: preprocessed as those of recorded scans are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bluesky_cdi.callbacks._checks import BoolImage, check_counts
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.errors import BlueskyCDIError, FrameError, GeometryError
from bluesky_cdi.io import DetectorPlan, Preprocessing
from bluesky_cdi.protocols import Frame, ReadAgain, RunInfo

# Frames of a run that are held back where the beam's centre or pixels with flags are looked for in them.
FIRST_FRAMES = 8


class PreprocessingSink:
    """A `FrameSink` before another one: it takes a detector's frames and hands on preprocessed ones.

    What is done is planned at the start of a run, or with its first `FIRST_FRAMES` frames where it depends on them;
    those are held back until then. A frame that can't be preprocessed is left out.

    Parameters
    ----------
    sink : FrameSink
        Receives the frames, and of the run the geometry of what it receives. Of a detector's frame the `region` is
        enough. Of a frame that holds several images of
        an event, (n, H, W), it gets the sum of what each of them becomes.
    preprocessing : Preprocessing
        What is wanted.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels of the detector.
    """

    def __init__(self, sink: FrameSink, preprocessing: Preprocessing, mask: BoolImage | None = None) -> None:
        self._sink, self._preprocessing, self._mask = sink, preprocessing, mask
        self._info: RunInfo | None = None
        self._plan: DetectorPlan | None = None
        # Frames that what is done is planned with, and all that is owed to the sink until then, in order.
        self._held: list[Frame] = []
        self._calls: list[Callable[[], None]] = []
        settings = preprocessing.settings
        self._looks = settings.mask_flagged or settings.beam_centre_px == "find"

    def seen(self, info: RunInfo) -> RunInfo:
        """Give a run with the geometry and the shape of the frames that come out, as far as they are known now."""
        side = self._preprocessing.side(info.frame_shape)
        return replace(info, metadata=self._metadata(info), frame_shape=(side, side))

    def region(self) -> tuple[slice, slice] | None:
        """Give rows and columns of a detector's frame that suffice; None while it is not known what is done to them."""
        return None if self._plan is None else self._plan.region

    def start_run(self, info: RunInfo) -> None:
        """Open a run; told on as soon as it is known what is done to its frames.

        Raises
        ------
        GeometryError, ScanFileError, FrameError
            If nothing can be planned.
        """
        self._info, self._plan, self._held, self._calls = info, None, [], []
        if not self._looks:
            self._begin(info)

    def put(self, frame: Frame) -> None:
        """Preprocess a frame and hand it on, or hold it until enough are there.

        Raises
        ------
        GeometryError, ScanFileError, FrameError
            If it was the last that was waited for, and nothing can be planned.
        """
        if self._plan is not None:
            self._hand_on(frame)
            return
        self._held.append(frame)
        self._calls.append(lambda: self._hand_on(frame))
        if len(self._held) >= FIRST_FRAMES:
            self._release()

    def leave_out(self, seq_num: int, error: Exception) -> None:
        """Hand on that a frame can't be used.

        Parameters
        ----------
        seq_num : int
            The event's number.
        error : Exception
            Why.
        """
        if self._info is not None and self._plan is None:
            self._calls.append(lambda: self._sink.leave_out(seq_num, error))
        else:
            self._sink.leave_out(seq_num, error)

    def end_run(self, exit_status: str, reason: str, notes: Mapping[str, Any]) -> None:
        """Close the run; one of fewer frames than were waited for is opened and handed on before.

        Parameters
        ----------
        exit_status : str
            The stop document's.
        reason : str
            The stop document's.
        notes : Mapping
            What the documents tell of the run as a whole.
        """
        info = self._info
        if info is not None and self._plan is None:
            try:
                self._release()
            except BlueskyCDIError as err:
                self._sink.fail(err, info.metadata)
        begun = self._plan is not None
        self._info, self._plan, self._held, self._calls = None, None, [], []
        if begun:
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
        if self._info is not None and self._info.uid == start["uid"] and self._plan is None:
            self._info, self._held, self._calls = None, [], []
        self._sink.fail(error, start)

    def _begin(self, info: RunInfo) -> None:
        """Plan, and open the run with the geometry of what comes out."""
        dtype = self._held[0].counts.dtype if self._held else np.dtype(np.float32)
        counts = np.concatenate([_images(frame) for frame in self._held]) if self._held else None
        plan = self._preprocessing.plan(info.frame_shape, dtype, frames=counts, mask=self._mask)
        out = replace(info, metadata=self._metadata(info), frame_shape=plan.shape, preprocessed=plan.outcome())
        self._sink.start_run(replace(out, read_again=_made_again(plan, info.read_again)))
        self._plan = plan

    def _metadata(self, info: RunInfo) -> dict[str, Any]:
        return {**info.metadata, "geometry": _binned(info.metadata.get("geometry"), self._preprocessing.settings.bin)}

    def _release(self) -> None:
        if self._info is None:
            return
        self._begin(self._info)
        held, self._held, self._calls = self._calls, [], []
        for call in held:
            call()

    def _hand_on(self, frame: Frame) -> None:
        if (plan := self._plan) is None:
            return
        try:
            made = _made(plan, frame)
        except FrameError as err:
            self._sink.leave_out(frame.seq_num, err)
        else:
            self._sink.put(made)


def _made(plan: DetectorPlan, frame: Frame) -> Frame:
    """Preprocess a frame, whatever images it has."""
    images, (rows, columns) = _images(frame), plan.region
    is_cut = images.shape[1:] == (rows.stop - rows.start, columns.stop - columns.start)
    counts = plan.of_region(images) if is_cut else plan.apply(images)
    for image in counts:
        check_counts(image[plan.mask], f"frame {frame.seq_num}")
    # Of its own: a part of the detector's frame would keep the whole of it in memory.
    return replace(frame, counts=summed(counts) if len(counts) > 1 else np.array(counts[0]))


def _made_again(plan: DetectorPlan, read: ReadAgain | None) -> ReadAgain | None:
    """Preprocess what is read again."""
    if read is None:
        return None

    def read_again(number: int, region: tuple[slice, slice] | None = None) -> Frame | None:
        frame = read(number, plan.region)
        return None if frame is None else _made(plan, frame)

    return read_again


def summed(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Add the images of an event, (n, H, W), in a type that holds their sum."""
    return np.asarray(np.sum(images, axis=0))


def _images(frame: Frame) -> np.ndarray[Any, Any]:
    """Give the images of a frame, (n, H, W): several of one event, or itself."""
    return frame.counts if frame.counts.ndim == 3 else frame.counts[np.newaxis]


def _binned(geometry: Any, bin: int) -> Any:
    """Give the geometry of a start document for binned pixels; one of another form is left to whoever needs it."""
    if not isinstance(geometry, Mapping) or bin == 1:
        return geometry
    try:
        return {**geometry, "detector_pixel_m": float(geometry["detector_pixel_m"]) * bin}
    except (KeyError, TypeError, ValueError) as err:
        raise GeometryError(f"geometry must state detector_pixel_m, metres; it is {dict(geometry)!r}") from err
