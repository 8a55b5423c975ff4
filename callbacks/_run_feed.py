"""One run: from its documents to frames."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from event_model import unpack_event_page

from bluesky_cdi.callbacks._beginning import Beginning
from bluesky_cdi.callbacks._checks import check_frame
from bluesky_cdi.callbacks._fly_report import stated_motion
from bluesky_cdi.callbacks._frame_files import Elsewhere, FrameFiles
from bluesky_cdi.callbacks._frame_maker import Check, FileFrame, FrameMaker, Several
from bluesky_cdi.callbacks._join import SeqNumJoin
from bluesky_cdi.callbacks._plan_pattern import plan_pattern
from bluesky_cdi.callbacks._preprocessing import PreprocessingSink
from bluesky_cdi.callbacks._schemas import Schemas
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.callbacks._stamped_run import StampedRun, position_stream
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys
from bluesky_cdi.callbacks._tally import FrameTally
from bluesky_cdi.config import TimeStampsConfig
from bluesky_cdi.errors import DocumentError, FrameError, ScanFileError
from bluesky_cdi.protocols import RunInfo

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]

# More than any scan has: what a stop document counts beyond it is an error of that document.
EVENTS_MAX = 10**6


class RunFeed:
    """Turns the documents of one run into frames and hands them to a sink.

    Parameters
    ----------
    start : Mapping
        The run's start document.
    stream : str
        Name of the stream with the frames.
    choice : KeyChoice
        What the user fixes of the stream's keys.
    sink : FrameSink
        Receives the frames.
    file_timeout_s : float
        How long to wait for a file, seconds.
    check : callable
        Raises FrameError for a frame that can't be used; takes it, and the (H, W) that the descriptor announced.
    several : {'sum', 'each'}
        What becomes of several images an event: one frame, their sum, or a frame each.
    time_stamps : TimeStampsConfig, optional
        How frames find positions that have time stamps of their own.
    elsewhere : Elsewhere, optional
        Of documents of another machine: knows its files.

    Attributes
    ----------
    start : Mapping
        The run's start document.
    stamped : StampedRun or None
        Of a run whose positions have a stream and time stamps of their own.
    """

    def __init__(
        self,
        start: Document,
        stream: str,
        choice: KeyChoice,
        sink: FrameSink,
        file_timeout_s: float = 0.0,
        check: Check = check_frame,
        several: Several = "sum",
        time_stamps: TimeStampsConfig | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.start = start
        self._stream = stream
        self._choice = choice
        self._sink = sink
        self._keys: StreamKeys | None = None
        self._beginning: Beginning | None = None
        self._exposures_s: dict[str, float] = {}
        self._exposure_of_event_s: dict[int, float] = {}
        self._join = SeqNumJoin(())
        self._files = FrameFiles(file_timeout_s, elsewhere)
        self._resources: dict[str, Document] = {}
        self._unread: defaultdict[str, list[Document]] = defaultdict(list)
        # Events whose files were late before the run was opened, for which their positions are needed.
        self._late: list[int] = []
        self._has_ended = False
        self._schemas = Schemas(start, self._accept)
        self._tally = FrameTally()
        region = sink.region if isinstance(sink, PreprocessingSink) else None
        self._maker = FrameMaker(self._files, self._tally, check, several, region)
        settings = time_stamps or TimeStampsConfig()
        samples = position_stream(start, settings)
        self.stamped = StampedRun(start, stream, samples, settings, choice, self._files) if samples else None

    @property
    def is_fed(self) -> bool:
        """Whether frames can be made of the run's stream."""
        return self._keys is not None

    @property
    def started(self) -> bool:
        """Whether the sink has had the run's `start_run`."""
        return self._beginning is not None and self._beginning.is_open

    def receive(self, name: str, doc: Document) -> None:
        """Take one document; those of older schemas are brought to StreamResource and StreamDatum first.

        Parameters
        ----------
        name : str
            Kind of the document, as the RunEngine names it: ``descriptor``, ``event``, ...
        doc : Mapping
            The document, of this run.

        Raises
        ------
        DocumentError
            If the documents lack a key, a unit or a seq_num, or announce other frames than before.
        ScanFileError
            If a file of frames can't be read.
        FrameError
            If a frame can't be used.
        NoPtychographyError
            If nothing of the run is to be reconstructed.
        """
        if name == "event_page":
            for event in unpack_event_page(doc):
                self.receive("event", event)
            return
        translated = [(name, doc)] if self.stamped is None else self.stamped.translated(name, doc)
        for kind, each in translated:
            self._schemas.receive(kind, each, () if self._keys is None else self._keys.parts)
        if self.stamped is not None:
            for seq_num, why in self.stamped.positions.newly_overdue().items():
                self._leave_out("are left out until their positions come", seq_num, _unplaced(seq_num, why))
            if self._beginning is not None:
                self.stamped.report.early(self._beginning.pixel_m)

    def finish(self, stop: Document) -> None:
        """Hand on what the last documents complete."""
        self.receive("stop", stop)
        self._has_ended = True
        for seq_num, parts in [*((late, self._join.known(late)) for late in self._late), *self._join.renewed()]:
            self._hand_on(seq_num, parts)
        waiting = set() if self.stamped is None else set(self.stamped.positions.waiting)
        for seq_num in self._join.incomplete():
            if self.stamped is not None and seq_num in waiting:
                if seq_num not in self.stamped.positions.overdue:
                    why = self.stamped.positions.why(seq_num)
                    self._leave_out("never got a position", seq_num, _unplaced(seq_num, why))
                continue
            error = _lacking(seq_num, " and ".join(self._join.missing(seq_num)))
            self._leave_out("lack their frame or their position", seq_num, error)
        for seq_num in _unheard(stop, self._stream, self._exposure_of_event_s):
            self._leave_out("never came", seq_num, _lost(seq_num))
        if self._beginning is not None:
            self._beginning.finish()
        if self.stamped is not None and self._beginning is not None:
            self.stamped.report.at_end(self._beginning.pixel_m)
        if told := self._tally.summary:
            logger.warning("run %s: %s", self.start.get("scan_id", self.start["uid"]), told)

    @property
    def notes(self) -> dict[str, Any]:
        """What the documents tell of the run as a whole so far, as `RunInfo.notes`."""
        return stated_motion(self.start) if self.stamped is None else self.stamped.report.as_notes()

    def close(self) -> None:
        """Close the run's files."""
        self._files.close()

    def _accept(self, name: str, doc: Document) -> None:
        match name:
            case "descriptor":
                self._descriptor(doc)
            case "event":
                self._event(doc)
            case "stream_resource":
                self._resources[doc["uid"]] = doc
                for datum in self._unread.pop(doc["uid"], ()):
                    self._stream_datum(datum)
            case "stream_datum":
                self._stream_datum(doc)

    def _descriptor(self, doc: Document) -> None:
        if doc["name"] != self._stream:
            return
        keys = StreamKeys.from_documents(self.start, doc, self._choice)
        self._exposures_s[doc["uid"]] = keys.exposure_s
        if self._keys is not None:
            _check_same_frames(self._keys, keys)
            return
        self._keys = keys
        stated = doc["data_keys"][keys.frame].get("dtype_numpy")
        self._tally.stated = np.dtype(stated) if isinstance(stated, str) and stated else None
        self._join = SeqNumJoin({"frame", "y", "x"} | ({"monitor"} if keys.monitor else set()))
        again = self._maker.again(self._join.known, keys, self._exposure_of_event_s)
        scan_id = int(self.start.get("scan_id", 0))
        info = RunInfo(
            self.start["uid"], scan_id, self.start, keys.frame_shape, read_again=again, notes_by_now=lambda: self.notes
        )
        pattern = plan_pattern(self.start, [_owner_of(key, doc) for key in keys.position], keys.metres_per)
        seen = self._sink.seen(info) if isinstance(self._sink, PreprocessingSink) else info
        images = len(self._maker.numbers(1, keys))
        self._beginning = Beginning(self._sink, info, pattern, seen, images)

    def _event(self, doc: Document) -> None:
        if self._keys is None or doc["descriptor"] not in self._exposures_s:
            return
        parts = {part: doc["data"][key] for key, part in self._keys.parts.items() if key in doc["data"]}
        if "frame" in parts:
            parts["frame"] = _image(parts["frame"])
        self._add(doc["seq_num"], parts, doc["descriptor"])

    def _stream_datum(self, doc: Document) -> None:
        if self._keys is None or doc["descriptor"] not in self._exposures_s:
            return
        resource = self._resources.get(doc["stream_resource"])
        if resource is None:
            self._unread[doc["stream_resource"]].append(doc)
            return
        part = self._keys.parts.get(resource["data_key"])
        if part is None:
            return
        seq_nums, start, stop = self._schemas.seq_nums(doc), doc["indices"]["start"], doc["indices"]["stop"]
        values: list[Any]
        if part == "frame":
            values = [FileFrame(resource, index, stop) for index in range(start, stop)]
        else:
            values = list(self._files.column(resource, start, stop))
        if len(seq_nums) != len(values):
            raise DocumentError(
                f"a stream_datum must have as many seq_nums as indices; that of {resource['data_key']!r} has "
                f"{len(seq_nums)} for the {len(values)} rows from {start}. One frame belongs to one event."
            )
        for seq_num, value in zip(seq_nums, values, strict=True):
            self._add(seq_num, {part: value}, doc["descriptor"])

    def _add(self, seq_num: int, parts: Mapping[str, Any], descriptor: str) -> None:
        self._exposure_of_event_s[seq_num] = self._exposures_s[descriptor]
        complete = self._join.add(seq_num, parts)
        if complete is not None:
            self._hand_on(seq_num, complete)

    def _hand_on(self, seq_num: int, parts: Mapping[str, Any]) -> None:
        if self._keys is None or self._beginning is None:
            return
        try:
            frames = self._maker.frames(seq_num, parts, self._keys, self._exposure_of_event_s[seq_num])
        except (FrameError, ScanFileError) as err:
            if isinstance(err, ScanFileError) and not self.started and not self._has_ended:
                self._late.append(seq_num)
            else:
                self._leave_out("could not be used", seq_num, err)
            return
        self._tally.take(seq_num)
        for frame in frames:
            self._beginning.put(frame)

    def _leave_out(self, why: str, seq_num: int, error: Exception) -> None:
        """Tell of an event without a frame that can be used."""
        self._tally.leave_out(why)
        if self._beginning is not None and self._keys is not None:
            for number in self._maker.numbers(seq_num, self._keys):
                self._beginning.leave_out(number, error)


def _lacking(seq_num: int, missing: str) -> FrameError:
    return FrameError(
        f"event {seq_num} must have a frame and a position; its {missing} never came. "
        "Does the plan read all of them in each event?"
    )


def _unheard(stop: Document, stream: str, came: Container[int]) -> list[int]:
    """List the events of a stream that the stop document counts and of which nothing came."""
    counted = min((stop.get("num_events") or {}).get(stream, 0), EVENTS_MAX)
    return [number for number in range(1, counted + 1) if number not in came]


def _lost(seq_num: int) -> FrameError:
    return FrameError(
        f"event {seq_num} must come with the others; none of its documents did. Were they lost between the RunEngine "
        "and this process?"
    )


def _unplaced(seq_num: int, why: str) -> FrameError:
    return FrameError(
        f"frame {seq_num} must have a position; {why}. Are samples lost, or does one clock show another time than the "
        "other (documents.time_stamps.offset_s)?"
    )


def _image(value: Any) -> np.ndarray[Any, Any]:
    """Give an event's image as an array; NaN, which no pixel counts, where it is masked."""
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biuf":
        return np.where(np.ma.getmaskarray(value), np.float32(np.nan), np.asarray(value.data))
    return np.asarray(value)


def _owner_of(key: str, descriptor: Document) -> str:
    """Name the device that a data key is read from."""
    return next((name for name, keys in descriptor.get("object_keys", {}).items() if key in keys), key)


def _check_same_frames(old: StreamKeys, new: StreamKeys) -> None:
    if replace(new, exposure_s=old.exposure_s) != old:
        raise DocumentError(
            f"only the exposure of a stream's frames may change during a run; they were announced as {old}, "
            f"and now as {new}. Take the others in a run of their own."
        )
