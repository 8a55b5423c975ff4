"""From Bluesky documents to diffraction frames with their positions."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from event_model import EventModelError
from jsonschema import ValidationError  # type: ignore[import-untyped]

from bluesky_cdi.callbacks._checks import BoolImage, check_frame, check_raw_frame
from bluesky_cdi.callbacks._frame_files import Elsewhere
from bluesky_cdi.callbacks._frame_maker import Check, Several
from bluesky_cdi.callbacks._preprocessing import PreprocessingSink
from bluesky_cdi.callbacks._run_feed import RunFeed
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys
from bluesky_cdi.config import TimeStampsConfig
from bluesky_cdi.errors import BlueskyCDIError, DocumentError, NoPtychographyError
from bluesky_cdi.io import Preprocessing

logger = logging.getLogger(__name__)

# What documents of a wrong form raise somewhere on their way; none of it may abort the scan that sent them.
_BAD_INPUT = (
    BlueskyCDIError, EventModelError, ValidationError,
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, OSError,
)  # fmt: skip

# The field that names a document's parent, where the document doesn't name its run itself.
_PARENT = {
    "event": "descriptor",
    "event_page": "descriptor",
    "stream_datum": "descriptor",
    "datum": "resource",
    "datum_page": "resource",
}


class FrameAssembler:
    """Joins each frame with its position and hands the frames of a run to a sink.

    A callback for ``RE.subscribe``. It takes frames inside events and event pages, in HDF5 files
    announced by StreamResource and StreamDatum, and in those of the older Resource and Datum;
    positions in events or, for fly scans, in StreamDatum columns: a row a frame, or samples with time
    stamps in a stream of their own, which are interpolated to the middles of exposures. A frame is held until its
    position is known, whatever the order of the documents; of a `seq_num` that comes twice the
    last one counts.

    It computes nothing: a document costs a few dictionary look-ups and, once for each frame, the
    reading of that frame from its file. Even so, subscribe it through
    ``bluesky.callbacks.buffer.BufferingWrapper``, so that a slow file system can't slow the scan.

    It never raises into the RunEngine, where an exception would abort the scan. A frame that can't be used (another
    shape, NaN, negative counts, no position, no file) is left out, and told to the sink by ``leave_out``; it may be
    read again after the run, by ``RunInfo.read_again``. Documents
    from which no frame can come are logged, kept in `error`, and told to the sink by one call of ``fail``; the rest of
    that run is then left out. The run itself goes on being recorded. A run that is no scan of frames (without frames,
    without two axes that move) is nobody's fault: one line of the log says why it is left out.

    Runs may be interleaved, but one at a time is fed: a run that opens its stream while another
    one is being fed is left out with a warning. If nothing came of that other one since this run began, its
    process has probably died before it could send a stop document: it is ended, with a warning, and this run is fed.

    Parameters
    ----------
    sink : FrameSink
        Receives the frames.
    stream : str
        Name of the stream that holds them.
    frame_key : str, optional
        Data key of the frames; without it, the only data key with one 2-D frame an event, else with several.
    several : {'sum', 'each'}
        What becomes of several images an event: their sum is the frame, or each is a frame, with numbers of their own
        (event k of n images: n (k - 1) + 1 to n k).
    position_keys : tuple of str, optional
        Data keys of the position, (y, x); without them, the two motors that the plan scans.
        The data keys state the unit of length.
    position_unit : str, optional
        Unit of length of positions that state none.
    monitor_key : str, optional
        Data key of the incident flux; without it, the start document's `monitor`, if it has one.
    file_timeout_s : float
        How long to wait for a file, or for rows of one, that documents announce and that are not there yet, seconds.
        Each wait in vain halves the next one for that file.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels of the detector; others may hold flags (NaN, negative numbers) in place of counts.
    every_run : bool
        Whether all runs are meant to be reconstructed: one that is no scan of frames is an error then.
    preprocessing : Preprocessing, optional
        What is done to frames before the sink gets them; None: nothing.
    time_stamps : TimeStampsConfig or Mapping, optional
        How frames find positions that have a stream and time stamps of their own.
    elsewhere : Elsewhere, optional
        Of documents of another machine: knows its files.

    Attributes
    ----------
    error : BlueskyCDIError or None
        What was wrong with the latest run: `DocumentError`, `FrameError` or `ScanFileError`.
    """

    def __init__(
        self,
        sink: FrameSink,
        *,
        stream: str = "primary",
        frame_key: str | None = None,
        several: Several = "sum",
        position_keys: tuple[str, str] | None = None,
        position_unit: str | None = None,
        monitor_key: str | None = None,
        file_timeout_s: float = 0.0,
        mask: BoolImage | None = None,
        every_run: bool = False,
        preprocessing: Preprocessing | None = None,
        time_stamps: TimeStampsConfig | Mapping[str, Any] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.error: BlueskyCDIError | None = None
        self._sink, self._check = sink, cast(Check, partial(check_frame, mask=mask))
        if preprocessing is not None:
            # What its pixels hold is looked at when flags are masked.
            self._sink, self._check = PreprocessingSink(sink, preprocessing, mask), check_raw_frame
        self._stream = stream
        self._choice = KeyChoice(frame_key, position_keys, position_unit, monitor_key)
        self._every_run = every_run
        self._time_stamps = TimeStampsConfig.model_validate(time_stamps or {})
        self._several, self._file_timeout_s, self._elsewhere = several, file_timeout_s, elsewhere
        self._feeds: dict[str, RunFeed] = {}
        self._left_out: set[str] = set()
        # Runs of which nothing came since another one began, and those that were ended for that.
        self._silent: set[str] = set()
        self._ended: set[str] = set()
        self._run_of: dict[str, str] = {}
        self._orphans: defaultdict[str, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of any open run."""
        if name == "start":
            self.error = None
            self._silent.update(self._feeds)
            self._feeds[doc["uid"]] = RunFeed(
                doc, self._stream, self._choice, self._sink, self._file_timeout_s, self._check, self._several,
                self._time_stamps, self._elsewhere,
            )  # fmt: skip
        elif name == "stop":
            self._stop(doc)
        else:
            self._route(name, doc)

    def _route(self, name: str, doc: Mapping[str, Any]) -> None:
        run = self._run_uid(name, doc)
        if run is None:
            self._orphans[doc[_PARENT[name]]].append((name, doc))
            return
        if name in ("descriptor", "resource"):
            self._run_of[doc["uid"]] = run
        self._receive(run, name, doc)
        for orphan in self._orphans.pop(doc.get("uid", ""), ()):
            self._receive(run, *orphan)

    def _run_uid(self, name: str, doc: Mapping[str, Any]) -> str | None:
        """Find the run of a document; None while its parent hasn't come."""
        if name in _PARENT:
            return self._run_of.get(doc[_PARENT[name]])
        # Resources of older schemas name no run: they belong to the latest one.
        return doc.get("run_start") or next(reversed(self._feeds), None)

    def _receive(self, run: str, name: str, doc: Mapping[str, Any]) -> None:
        if run not in self._feeds or run in self._left_out:
            return
        self._silent.discard(run)
        if name == "descriptor" and doc["name"] == self._stream and (other := self._fed_beside(run)) is not None:
            if other not in self._silent or not self._has_frames(run, doc):
                logger.warning("run %s is left out of the reconstruction: another one is being fed", run)
                self._left_out.add(run)
                return
            logger.warning("run %s sent no stop document before run %s began: it is taken for ended", other, run)
            self._ended.add(other)
            self._left_out.add(other)
            self._feeds[other].close()
            if self._feeds[other].started:
                self._sink.end_run("fail", "no stop document came before the next run", self._feeds[other].notes)
        self._guard(run, name, self._feeds[run].receive, name, doc)

    def _fed_beside(self, run: str) -> str | None:
        """Find the run that is being fed, if that is another one."""
        fed = (
            uid
            for uid, feed in self._feeds.items()
            if feed.started or (feed.is_fed and uid not in self._left_out)
            if uid not in self._ended
        )
        return next((uid for uid in fed if uid != run), None)

    def _has_frames(self, run: str, descriptor: Mapping[str, Any]) -> bool:
        """Tell whether frames can be made of a stream; what is wrong otherwise is told when it is fed."""
        if self._feeds[run].stamped is not None:
            # Its positions are described elsewhere.
            return True
        try:
            StreamKeys.from_documents(self._feeds[run].start, descriptor, self._choice)
        except _BAD_INPUT:
            return False
        return True

    def _stop(self, doc: Mapping[str, Any]) -> None:
        run = doc["run_start"]
        feed = self._feeds.get(run)
        if feed is None:
            return
        if run not in self._left_out:
            self._guard(run, "stop", feed.finish, doc)
        feed.close()
        is_fed = feed.started and run not in self._ended
        self._forget(run)
        if is_fed:
            self._sink.end_run(doc["exit_status"], doc.get("reason") or "", feed.notes)

    def _forget(self, run: str) -> None:
        del self._feeds[run]
        for runs in (self._left_out, self._silent, self._ended):
            runs.discard(run)
        self._run_of = {uid: owner for uid, owner in self._run_of.items() if owner != run}
        if not self._feeds:
            self._orphans.clear()

    def _guard(self, run: str, name: str, step: Callable[..., None], *args: Any) -> None:
        """Do a step; turn what goes wrong into one call of the sink's ``fail``."""
        try:
            step(*args)
        except NoPtychographyError as err:
            if self._every_run or _is_announced(self._feeds[run].start):
                self._fail(run, err)
                return
            self._left_out.add(run)
            logger.log(
                logging.WARNING if err.has_frames else logging.INFO,
                "run %s is recorded, and not reconstructed: %s",
                self._feeds[run].start.get("scan_id", run),
                err,
            )
        except _BAD_INPUT as err:
            self._fail(run, err if isinstance(err, BlueskyCDIError) else _unreadable(name, err))

    def _fail(self, run: str, error: BlueskyCDIError) -> None:
        self.error = error
        logger.error(
            "run %s can't be reconstructed (it goes on being recorded): %s", run, error, exc_info=error.__cause__
        )
        self._left_out.add(run)
        self._sink.fail(error, self._feeds[run].start)


def _is_announced(start: Mapping[str, Any]) -> bool:
    """Tell whether a plan means its run to be reconstructed."""
    return "reconstruction_uid" in start or start.get("window_m") is not None


def _unreadable(name: str, err: Exception) -> DocumentError:
    error = DocumentError(
        f"a {name} document doesn't have the form that event-model describes: {type(err).__name__}: {err}. "
        "Check the device that made it with event_model.schema_validators."
    )
    error.__cause__ = err
    return error
