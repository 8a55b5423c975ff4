"""Runs whose positions have time stamps and a stream of their own, as documents whose frames have positions."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bluesky_cdi.callbacks._fly_report import FlyReport
from bluesky_cdi.callbacks._frame_files import FrameFiles
from bluesky_cdi.callbacks._positions import listed
from bluesky_cdi.callbacks._stamped_positions import StampedPositions
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys
from bluesky_cdi.config import TimeStampsConfig
from bluesky_cdi.errors import DocumentError, ScanFileError
from bluesky_cdi.units import seconds_per

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]

# So many exposures lie between the moment that a stamp marks and the middle of the exposure.
MIDDLE = {"start": 0.5, "centre": 0.0, "end": -0.5}


def position_stream(start: Document, settings: TimeStampsConfig) -> str | None:
    """Name the stream of a run that holds positions with time stamps; None where positions come with the frames.

    Parameters
    ----------
    start : Mapping
        The run's start document.
    settings : TimeStampsConfig
        What the user fixes.
    """
    stated = settings.stream if settings.stream is not None else start.get("position_stream")
    return stated if isinstance(stated, str) and stated else None


class StampedRun:
    """Turns the samples of a stream of positions into events of the stream of frames, one a frame.

    Everything else passes as it is; documents of the frames wait until both streams are described. Columns that can't
    be read yet are tried again with each document that follows.

    Parameters
    ----------
    start : Mapping
        The run's start document.
    stream, samples : str
        Names of the streams of frames and of positions.
    settings : TimeStampsConfig
        How time stamps are understood.
    choice : KeyChoice
        What the user fixes of the keys of frames and positions.
    files : FrameFiles
        Reads columns.

    Attributes
    ----------
    positions : StampedPositions
        Which frames wait, and which are overdue.
    report : FlyReport
        Tells what is unusual.
    """

    def __init__(
        self, start: Document, stream: str, samples: str, settings: TimeStampsConfig, choice: KeyChoice,
        files: FrameFiles,
    ) -> None:  # fmt: skip
        self.positions = StampedPositions(settings.lead_s, settings.gap_s)
        self.report = FlyReport(start.get("scan_id", start["uid"]), self.positions, settings.lead_s)
        self._start, self._names, self._settings, self._choice = start, (stream, samples), settings, choice
        self._files = files
        self._described: dict[str, Document] = {}
        self._held: list[tuple[str, Document]] = []
        self._keys: StreamKeys | None = None
        self._stamps: dict[str, tuple[str, float]] = {}
        self._number_key: str | None = None
        self._streams: dict[str, str] = {}
        self._resources: dict[str, Document] = {}
        self._unread: list[Document] = []
        self._rows: dict[str, list[float]] = {}
        self._last_number: float | None = None

    def translated(self, name: str, doc: Document) -> Iterator[tuple[str, Document]]:
        """Yield what a document of the run becomes.

        Parameters
        ----------
        name : str
            Its kind; pages are unpacked already.
        doc : Mapping
            The document.

        Raises
        ------
        DocumentError
            If time stamps can't be found, the middle of exposures can't be told from them, or the run ends with frames
            and without a stream of positions.
        """
        if name == "descriptor" and doc["name"] in self._names:
            yield from self._descriptor(doc)
        elif self._keys is None and name != "stop":
            self._held.append((name, doc))
        else:
            if self._keys is None:
                self._check_no_frames()
            yield from self._accept(name, doc)
            yield from self._placed()

    def _check_no_frames(self) -> None:
        """Raise an error if there are frames: only one of the streams is described when the run ends."""
        frames, samples = self._names
        rows = [doc for name, doc in self._held if name in ("event", "stream_datum")]
        if any(self._streams.get(doc["descriptor"]) == frames for doc in rows):
            raise DocumentError(
                f"the run must have the stream of positions {samples!r}, which its start document (position_stream) or "
                "documents.time_stamps.stream names; it has ended without. Does the plan declare and collect it?"
            )

    def _descriptor(self, doc: Document) -> Iterator[tuple[str, Document]]:
        self._described[doc["name"]] = doc
        self._streams[doc["uid"]] = doc["name"]
        if len(self._described) < 2:
            return
        frames, samples = (self._described[name] for name in self._names)
        if doc is samples and self._keys is not None:
            return
        merged = _merged(frames, samples)
        self._keys = StreamKeys.from_documents(self._start, merged, self._choice)
        if math.isnan(self._keys.exposure_s) and MIDDLE[self._settings.frame_marks]:
            raise DocumentError(
                f"the exposure of {self._keys.frame!r} must be stated, so that the middle of each exposure can be told "
                f"from the time of its {self._settings.frame_marks}: put it into the detector's configuration "
                "(exposure_time, seconds), or let stamps mark the middle (documents.time_stamps.frame_marks: centre)."
            )
        for described, chosen in ((frames, self._settings.frame_key), (samples, self._settings.position_key)):
            self._stamps[described["name"]] = _time_key(described, chosen)
        self._number_key = self._settings.number_key or self._start.get("frame_number_key")
        yield "descriptor", merged
        held, self._held = self._held, []
        for each in held:
            yield from self._accept(*each)
        yield from self._placed()

    def _accept(self, name: str, doc: Document) -> Iterator[tuple[str, Document]]:
        if name == "stop":
            self._read_again()
            self.report.unread = len(self._unread)
            yield from self._placed()
            yield name, doc
            return
        stream = self._streams.get(doc.get("descriptor", ""))
        if name == "event" and stream in self._names:
            self._event(stream, doc)
        elif name == "stream_resource":
            self._resources[doc["uid"]] = doc
        elif name == "stream_datum" and stream in self._names:
            self._unread.append(doc)
            self._read_again()
        if stream != self._names[1]:
            yield name, doc

    def _event(self, stream: str, doc: Document) -> None:
        data, (time_key, _) = doc["data"], self._stamps[stream]
        if stream == self._names[1] and self._keys is not None:
            if all(key in data for key in (time_key, *self._keys.position)):
                for key in (time_key, *self._keys.position):
                    self._rows.setdefault(key, []).append(float(data[key]))
                self._sample()
        elif time_key in data:
            self._expect([doc["seq_num"]], [float(data[time_key])])

    def _read_again(self) -> None:
        """Read the columns that are announced; those that can't be read yet wait."""
        waiting, self._unread = self._unread, []
        late: set[str] = set()
        for doc in waiting:
            resource = self._resources.get(doc["stream_resource"])
            if resource is None or resource["uid"] in late:
                self._unread.append(doc)
                continue
            try:
                self._column(doc, resource)
            except ScanFileError as err:
                # Rows of one column have an order.
                late.add(resource["uid"])
                self._unread.append(doc)
                logger.info("time stamps or positions are late: %s", err)

    def _column(self, doc: Document, resource: Document) -> None:
        stream, key = self._streams[doc["descriptor"]], resource["data_key"]
        start, stop = doc["indices"]["start"], doc["indices"]["stop"]
        time_key, _ = self._stamps[stream]
        if stream == self._names[1] and self._keys is not None:
            if key in (time_key, *self._keys.position):
                self._rows.setdefault(key, []).extend(self._files.column(resource, start, stop))
                self._sample()
        elif key == time_key:
            self._expect(
                range(doc["seq_nums"]["start"], doc["seq_nums"]["stop"]), self._files.column(resource, start, stop)
            )
        elif key == self._number_key:
            self._count(self._files.column(resource, start, stop))

    def _sample(self) -> None:
        """Hand on the samples of which all columns have come."""
        if self._keys is None:
            return
        time_key, seconds = self._stamps[self._names[1]]
        keys = (time_key, *self._keys.position)
        n = min(len(self._rows.get(key, ())) for key in keys)
        if n:
            times, y, x = (np.array(self._rows[key][:n]) for key in keys)
            for key in keys:
                del self._rows[key][:n]
            self.positions.sample(
                times * seconds - self._settings.offset_s, np.stack([y, x], 1) * self._keys.metres_per
            )

    def _expect(self, seq_nums: Any, stamps: list[float]) -> None:
        if self._keys is None:
            return
        _, seconds = self._stamps[self._names[0]]
        shift = MIDDLE[self._settings.frame_marks]
        middle_s = shift * self._keys.exposure_s if shift else 0.0
        self.positions.expect(seq_nums, np.array(stamps) * seconds + middle_s, self._keys.exposure_s)

    def _count(self, numbers: list[float]) -> None:
        for number in numbers:
            if self._last_number is not None and number > self._last_number + 1:
                self.report.dropped.extend(range(int(self._last_number) + 1, int(number)))
            self._last_number = number

    def _placed(self) -> Iterator[tuple[str, Document]]:
        """Yield events with the positions that are known by now, in the units of their keys."""
        keys = self._keys
        if keys is None:
            return
        for seq_num, position_m in self.positions.place():
            y, x = (float(value) for value in position_m / keys.metres_per)
            data = dict(zip(keys.position, (y, x), strict=True))
            yield "event", {"descriptor": self._described[self._names[0]]["uid"], "seq_num": seq_num, "data": data}
        self.report.waiting()


def _merged(frames: Document, samples: Document) -> dict[str, Any]:
    """Make one descriptor of two, with the uid and the name of the frames'."""
    return {
        **frames,
        **{
            part: {**samples.get(part, {}), **frames.get(part, {})}
            for part in ("data_keys", "object_keys", "configuration", "hints")
        },
    }


def _time_key(descriptor: Document, chosen: str | None) -> tuple[str, float]:
    """Find a stream's key of time stamps, and the seconds that one unit of it is.

    Raises
    ------
    DocumentError
        If it can't be told, or states no unit of time.
    """
    keys = descriptor["data_keys"]
    found = {key: seconds for key, spec in keys.items() if (seconds := seconds_per(spec.get("units"))) is not None}
    if chosen is not None and chosen in found:
        return chosen, found[chosen]
    if chosen is None and len(found) == 1:
        return next(iter(found.items()))
    raise DocumentError(
        f"the stream {descriptor['name']!r} must have time stamps: one data key that states a unit of time (s, ms, us, "
        f"ns){'' if chosen is None else f', under {chosen!r}'}; those that state one: {listed(found)}; all its keys: "
        f"{listed(keys)}. Name the key: documents.time_stamps.frame_key or position_key of the configuration."
    )
