"""One run: from its documents to frames."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from event_model import unpack_event_page

from bluesky_cdi.callbacks._checks import check_frame
from bluesky_cdi.callbacks._frame_files import FrameFiles
from bluesky_cdi.callbacks._join import SeqNumJoin
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys
from bluesky_cdi.callbacks._tally import FrameTally
from bluesky_cdi.errors import DocumentError, FrameError, ScanFileError
from bluesky_cdi.protocols import Frame, RunInfo

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]
Check = Callable[[Frame, tuple[int, int]], None]


@dataclass(frozen=True)
class FileFrame:
    """A frame that waits in its file."""

    resource: Document
    index: int


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

    Attributes
    ----------
    start : Mapping
        The run's start document.
    started : bool
        Whether the sink has had the run's `start_run`.
    """

    def __init__(
        self,
        start: Document,
        stream: str,
        choice: KeyChoice,
        sink: FrameSink,
        file_timeout_s: float = 0.0,
        check: Check = check_frame,
    ) -> None:
        self.started = False
        self.start = start
        self._stream = stream
        self._choice = choice
        self._sink = sink
        self._check = check
        self._keys: StreamKeys | None = None
        self._exposures_s: dict[str, float] = {}
        self._exposure_of_event_s: dict[int, float] = {}
        self._join = SeqNumJoin(())
        self._files = FrameFiles(file_timeout_s)
        self._resources: dict[str, Document] = {}
        self._unread: defaultdict[str, list[Document]] = defaultdict(list)
        self._descriptors: list[Document] = []
        self._seq_num_of_datum: dict[str, int] = {}
        self._normalize: Callable[[str, Document], None] | None = None
        self._tally = FrameTally()

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
        """
        if name == "event_page":
            for event in unpack_event_page(doc):
                self.receive("event", event)
            return
        if self._normalize is None and _is_legacy(name, doc):
            self._normalize = self._normalizer()
        if self._normalize is None:
            self._accept(name, doc)
            return
        if name == "event" and self._keys is not None:
            # The normalizer numbers datums by their place in the file, which a point taken twice puts out of step.
            for key in (self._keys.frame, *self._keys.position, self._keys.monitor):
                if isinstance(datum_id := doc["data"].get(key), str):
                    self._seq_num_of_datum[datum_id] = doc["seq_num"]
        self._normalize(name, doc)

    def finish(self, stop: Document) -> None:
        """Hand on what the last documents complete."""
        self.receive("stop", stop)
        for seq_num, parts in self._join.renewed():
            self._hand_on(seq_num, parts)
        for seq_num in self._join.incomplete():
            missing = " and ".join(self._join.missing(seq_num))
            self._tally.leave_out("lack their frame or their position")
            self._sink.leave_out(
                seq_num,
                FrameError(
                    f"event {seq_num} must have a frame and a position; its {missing} never came. "
                    "Does the plan read all of them in each event?"
                ),
            )
        if told := self._tally.summary:
            logger.warning("run %s: %s", self.start.get("scan_id", self.start["uid"]), told)

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

    def _normalizer(self) -> Callable[[str, Document], None]:
        from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

        normalizer = RunNormalizer()
        normalizer("start", self.start)
        for descriptor in self._descriptors:
            normalizer("descriptor", descriptor)
        normalizer.subscribe(self._accept)
        return normalizer  # type: ignore[no-any-return]

    def _descriptor(self, doc: Document) -> None:
        self._descriptors.append(doc)
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
        self._sink.start_run(
            RunInfo(self.start["uid"], int(self.start.get("scan_id", 0)), self.start, keys.frame_shape)
        )
        self.started = True

    def _event(self, doc: Document) -> None:
        if doc["descriptor"] not in self._exposures_s:
            return
        parts = {part: doc["data"][key] for key, part in self._parts().items() if key in doc["data"]}
        if "frame" in parts:
            parts["frame"] = np.asarray(parts["frame"])
        self._add(doc["seq_num"], parts, doc["descriptor"])

    def _stream_datum(self, doc: Document) -> None:
        if doc["descriptor"] not in self._exposures_s:
            return
        resource = self._resources.get(doc["stream_resource"])
        if resource is None:
            self._unread[doc["stream_resource"]].append(doc)
            return
        part = self._parts().get(resource["data_key"])
        if part is None:
            return
        seq_nums, start, stop = self._seq_nums(doc), doc["indices"]["start"], doc["indices"]["stop"]
        values: list[Any]
        if part == "frame":
            values = [FileFrame(resource, index) for index in range(start, stop)]
        else:
            values = list(self._files.column(resource, start, stop))
        if len(seq_nums) != len(values):
            raise DocumentError(
                f"a stream_datum must have as many seq_nums as indices; that of {resource['data_key']!r} has "
                f"{len(seq_nums)} for the {len(values)} rows from {start}. One frame belongs to one event."
            )
        for seq_num, value in zip(seq_nums, values, strict=True):
            self._add(seq_num, {part: value}, doc["descriptor"])

    def _seq_nums(self, doc: Document) -> range:
        if (seq_num := self._seq_num_of_datum.get(doc["uid"])) is not None:
            return range(seq_num, seq_num + 1)
        return range(doc["seq_nums"]["start"], doc["seq_nums"]["stop"])

    def _parts(self) -> dict[str | None, str]:
        if self._keys is None:
            return {}
        y, x = self._keys.position
        parts: dict[str | None, str] = {self._keys.frame: "frame", y: "y", x: "x"}
        if self._keys.monitor is not None:
            parts[self._keys.monitor] = "monitor"
        return parts

    def _add(self, seq_num: int, parts: Mapping[str, Any], descriptor: str) -> None:
        self._exposure_of_event_s[seq_num] = self._exposures_s[descriptor]
        complete = self._join.add(seq_num, parts)
        if complete is not None:
            self._hand_on(seq_num, complete)

    def _hand_on(self, seq_num: int, parts: Mapping[str, Any]) -> None:
        if self._keys is None:
            return
        try:
            frame = self._frame(seq_num, parts, self._keys)
            self._check(frame, self._keys.frame_shape)
        except (FrameError, ScanFileError) as err:
            self._tally.leave_out("could not be used")
            self._sink.leave_out(seq_num, err)
        else:
            self._tally.take(seq_num)
            self._sink.put(frame)

    def _frame(self, seq_num: int, parts: Mapping[str, Any], keys: StreamKeys) -> Frame:
        where = parts["frame"]
        if isinstance(where, FileFrame):
            counts = self._files.frame(where.resource, where.index)
            self._tally.look(counts.dtype)
        else:
            counts = _squeezed(where)
        return Frame(
            seq_num=seq_num,
            position_m=np.array([_number(parts[axis], seq_num, axis) for axis in ("y", "x")]) * keys.metres_per,
            counts=counts,
            exposure_s=self._exposure_of_event_s[seq_num],
            flux=_number(parts.get("monitor", 1.0), seq_num, "monitor"),
        )


def _number(value: Any, seq_num: int, part: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as err:
        raise FrameError(f"frame {seq_num} must have a number for its {part}; it has {value!r}") from err


def _squeezed(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bring (1, H, W) to (H, W); any other shape is left to the check."""
    return counts[0] if counts.ndim == 3 and counts.shape[0] == 1 else counts


def _is_legacy(name: str, doc: Document) -> bool:
    """Tell whether a document needs the conversion to StreamResource and StreamDatum."""
    match name:
        case "resource" | "datum" | "datum_page":
            return True
        case "stream_resource":
            return "mimetype" not in doc
        case "descriptor":
            external = (key.get("external") for key in doc["data_keys"].values() if "external" in key)
            return any(not str(value).startswith("STREAM:") for value in external)
    return False


def _check_same_frames(old: StreamKeys, new: StreamKeys) -> None:
    if replace(new, exposure_s=old.exposure_s) != old:
        raise DocumentError(
            f"only the exposure of a stream's frames may change during a run; they were announced as {old}, "
            f"and now as {new}. Take the others in a run of their own."
        )
