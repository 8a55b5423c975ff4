"""From documents of many runs to those that are followed."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from bluesky_cdi.callbacks import KeyChoice, SharedFolders, StreamKeys, frame_key_of, position_stream
from bluesky_cdi.catalog.schema import PLAN_NAME
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import BlueskyCDIError, DocumentError, NoPtychographyError
from bluesky_cdi.follow.offsets import Offsets
from bluesky_cdi.follow.selection import Selection
from bluesky_cdi.follow.source import PARENTS, Complaints, Cut, Message

logger = logging.getLogger(__name__)

# Names of files are made of it, and it comes from elsewhere.
UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# So many documents of a run may come before it is known whether it has frames.
HELD_MAX = 1000
# So many runs that have not ended are remembered.
OPEN_MAX = 10_000
# How the uid of a stop document begins that this package has made up.
MADE_UP = "made-up-"
# What documents of a wrong form raise on their way.
_BAD_INPUT = (BlueskyCDIError, LookupError, TypeError, ValueError, AttributeError)


class RunSink(Protocol):
    """Takes the documents of the runs that are followed."""

    def begin(self, start: Mapping[str, Any]) -> None:
        """Take a run's first document."""

    def add(self, uid: str, name: str, doc: Mapping[str, Any]) -> None:
        """Take a further one, of the run `uid`; the last is its stop document."""


@dataclass(eq=False)
class _Run:
    start: dict[str, Any]
    place: str
    state: Literal["held", "followed", "passed over"] = "held"
    held: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    frame_key: str | None = None
    # Whether it is known where the frames lie.
    is_placed: bool = False
    # Of each stream the highest number of an event; of each descriptor its stream.
    events: dict[str, int] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    # When its last document came, and whether another run has begun at its place since.
    heard_s: float = 0.0
    is_passed: bool = False

    @property
    def uid(self) -> str:
        return str(self.start["uid"])

    @property
    def name(self) -> str:
        """For people."""
        return f"run {self.start.get('scan_id', '?')} ({self.uid[:8]})"

    def learn(self, name: str, doc: Mapping[str, Any]) -> None:
        """Remember streams, and which of their events have come."""
        if name == "descriptor":
            self.streams[str(doc["uid"])] = str(doc["name"])
        elif name in ("event", "event_page", "stream_datum") and (stream := self.streams.get(doc["descriptor"])):
            self.events[stream] = max(self.events.get(stream, 0), _last_number(name, doc))

    def lacks(self, stream: str, stop: Mapping[str, Any]) -> str:
        """Say what it lacks to be followed, when all of it has come."""
        if self.frame_key is not None:
            return f"nothing tells where the frames of {self.frame_key!r} lie"
        if (stop.get("num_events") or {}).get(stream):
            return f"the descriptor of its stream {stream!r} never came, lost on the way"
        return f"it has no stream {stream!r}"


class Intake:
    """Tells runs apart by their uids, and hands on those that are scans of frames.

    A run is held until the stream of its frames is described, and until it is known where these lie; then it is
    followed, or passed over with a line of the log. Nothing that a document holds raises.

    Parameters
    ----------
    sink : RunSink
        Takes the runs.
    documents : DocumentsConfig
        What of a run's documents makes a frame.
    selection : Selection
        Which runs are wanted.
    paths : SharedFolders
        Where their files are here.
    metadata : Mapping
        What start documents get that they lack, such as the geometry.
    is_known : callable, optional
        Whether the run of a uid need not be reconstructed once more; asked of runs that may come again.
    clock : callable
        Gives seconds.

    Attributes
    ----------
    takes_new : bool
        Whether further runs are taken.
    offsets : Offsets
        How far each place is done with; whoever reconstructs the runs releases them.
    """

    def __init__(
        self,
        sink: RunSink,
        documents: DocumentsConfig,
        selection: Selection,
        paths: SharedFolders,
        metadata: Mapping[str, Any],
        is_known: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.takes_new = True
        self._sink, self._documents, self._selection, self._paths = sink, documents, selection, paths
        self._choice = KeyChoice(
            documents.frame_key, documents.position_keys, documents.position_unit, documents.monitor_key
        )
        self._metadata, self._is_known, self._clock = dict(metadata), is_known, clock
        self._runs: dict[str, _Run] = {}
        self._run_of: dict[str, str] = {}
        self._complaints = Complaints()
        self.offsets = Offsets()

    @property
    def followed(self) -> list[str]:
        """Uids of the runs that are followed and have not ended."""
        return [uid for uid, run in self._runs.items() if run.state == "followed"]

    def take(self, message: Message) -> None:
        """Take a document.

        Parameters
        ----------
        message : Message
            It, and where it comes from.
        """
        if message.offset >= 0:
            self.offsets.see(message.place, message.offset)
        try:
            if message.name == "start":
                self._start(message)
            elif (run := self._run(message)) is not None:
                self._further(run, message.name, message.doc)
        except _BAD_INPUT as err:
            self._complaints.tell(
                ("form", message.name, type(err)),
                "a %s document is left out, which has not the form that event-model describes: %r. Further ones are "
                "left out in silence.",
                message.name,
                err,
            )

    def cut(self, item: Cut) -> None:
        """Let go the runs of a place from which nothing more comes."""
        for run in [run for run in self._runs.values() if run.place == item.place]:
            self.let_go(run.uid, item.why)
        self.offsets.leave(item.place)

    def let_go(self, uid: str, why: str) -> None:
        """End a run of which no stop document has come: one is made up, with the exit status ``abort``.

        Parameters
        ----------
        uid : str
            The run's.
        why : str
            What has happened; its reason.
        """
        run = self._runs[uid]
        if run.state == "followed":
            logger.warning("%s is ended without its stop document: %s", run.name, why)
            self._sink.add(uid, "stop", made_up_stop(uid, run.events, why))
        self._forget(uid)

    def let_go_silent(self, silent_s: float) -> None:
        """Let go the runs whose stop document was lost, by all appearances.

        Parameters
        ----------
        silent_s : float
            Nothing has come of it for so long, seconds, and another run has begun at its place since.
        """
        now = self._clock()
        for run in [run for run in self._runs.values() if run.is_passed and now - run.heard_s >= silent_s]:
            self.offsets.release(run.uid)
            self.let_go(run.uid, f"no document has come for {silent_s:g} s, and a later run has begun")

    def is_open(self, uid: str) -> bool:
        """Tell whether documents of a run come."""
        return uid in self._runs

    def _start(self, message: Message) -> None:
        start, place = message.doc, message.place
        uid = start["uid"]
        if not (isinstance(uid, str) and UID.fullmatch(uid)):
            raise DocumentError(f"a run's uid must be letters, digits and hyphens; got {uid!r:.200}")
        if uid in self._runs:
            raise DocumentError(f"the run {uid} begins a second time before it has ended")
        for run in self._runs.values():
            run.is_passed |= run.place == place
        if len(self._runs) >= OPEN_MAX:
            self._forget(next(each for each, run in self._runs.items() if run.state != "followed"))
        run = self._runs[uid] = _Run({**self._metadata, **start}, place, heard_s=self._clock())
        if message.offset >= 0:
            self.offsets.hold(uid, place, message.offset)
        if not self.takes_new:
            # It stays pending: who comes next has it.
            run.state = "passed over"
        elif start.get("plan_name") == PLAN_NAME:
            self._pass_over(run, "it is a reconstruction", logging.DEBUG)
        elif why := self._selection.why_not(start):
            self._pass_over(run, why)
        elif message.offset >= 0 and self._is_known(uid):
            self._pass_over(run, "the catalog has it already, with its image")

    def _run(self, message: Message) -> _Run | None:
        """Find the run of a document that is no start; None where its beginning never came, which is told."""
        key = PARENTS[message.name]
        parent = message.doc.get(key)
        if parent is None and key == "run_start":
            # Resources of older schemas name no run: they belong to the latest one.
            return next((run for run in reversed(self._runs.values()) if run.place == message.place), None)
        uid = self._run_of.get(str(parent), str(parent))
        if uid in self._runs:
            return self._runs[uid]
        if key == "run_start":
            self._run_of_unknown(message, uid)
        else:
            self._complaints.tell(
                parent, "documents come of a %s (%.8s) that never came: they are left out", key, str(parent)
            )
        return None

    def _run_of_unknown(self, message: Message, uid: str) -> None:
        """Tell of a run that was under way before, once; what belongs to it is left out in silence."""
        self._complaints.tell(
            uid,
            "the run %.8s began before this follower, or its start document was lost: it can't be had whole, and is "
            "left out. The next one is taken.",
            uid,
        )
        if message.name == "stop":
            return
        if len(self._runs) < OPEN_MAX:
            run = self._runs[uid] = _Run({"uid": uid}, message.place, "passed over", heard_s=self._clock())
            self._learn(run, message.name, message.doc)

    def _further(self, run: _Run, name: str, doc: dict[str, Any]) -> None:
        run.heard_s, run.is_passed = self._clock(), False
        if run.state == "passed over":
            self._learn(run, name, doc)
            if name == "stop":
                self._forget(run.uid)
            return
        try:
            doc = self._paths.translate(name, doc)
        except BlueskyCDIError as err:
            if run.state == "followed":
                self.let_go(run.uid, str(err))
                self.offsets.release(run.uid)
            else:
                self._pass_over(run, str(err), logging.WARNING)
            return
        self._learn(run, name, doc)
        if run.state == "held":
            run.held.append((name, doc))
            self._decide(run, name, doc)
        else:
            self._sink.add(run.uid, name, doc)
        if name == "stop":
            self._forget(run.uid)

    def _learn(self, run: _Run, name: str, doc: Mapping[str, Any]) -> None:
        """Remember what later documents name, and which events have come."""
        if name in ("descriptor", "resource", "stream_resource"):
            self._run_of[str(doc["uid"])] = run.uid
        run.learn(name, doc)

    def _decide(self, run: _Run, name: str, doc: Mapping[str, Any]) -> None:
        """Follow a run that is held, or pass it over, once that can be told."""
        if name == "descriptor" and doc["name"] == self._documents.stream:
            try:
                run.frame_key = frame_key_of(doc, self._choice.frame_key)
                if position_stream(run.start, self._documents.time_stamps) is None:
                    StreamKeys.from_documents(run.start, doc, self._choice)
            except BlueskyCDIError as err:
                level = logging.INFO if isinstance(err, NoPtychographyError) else logging.WARNING
                self._pass_over(run, str(err), level)
                return
            run.is_placed |= not doc["data_keys"][run.frame_key].get("external")
        elif name == "resource" or (name == "stream_resource" and doc.get("data_key", run.frame_key) == run.frame_key):
            run.is_placed = True
        if run.frame_key is not None and run.is_placed:
            try:
                self._sink.begin(run.start)
            except BlueskyCDIError as err:
                # It stays pending: it may be had again.
                logger.error("%s is passed over: %s", run.name, err)
                run.state, run.held = "passed over", []
                return
            run.state = "followed"
            logger.info("%s is followed: frames in %r", run.name, run.frame_key)
            held, run.held = run.held, []
            for each in held:
                self._sink.add(run.uid, *each)
        elif name == "stop" or len(run.held) > HELD_MAX:
            self._pass_over(run, run.lacks(self._documents.stream, doc if name == "stop" else {}))

    def _pass_over(self, run: _Run, why: str, level: int = logging.INFO) -> None:
        logger.log(level, "%s is passed over: %s", run.name, why)
        run.state, run.held = "passed over", []
        self.offsets.release(run.uid)

    def _forget(self, uid: str) -> None:
        del self._runs[uid]
        self._run_of = {parent: run for parent, run in self._run_of.items() if run != uid}


def _last_number(name: str, doc: Mapping[str, Any]) -> int:
    """Give the highest number of the events of a document."""
    if name == "stream_datum":
        return int(doc["seq_nums"]["stop"]) - 1
    return int(doc["seq_num"]) if name == "event" else max(map(int, doc["seq_num"]), default=0)


def made_up_stop(uid: str, events: Mapping[str, int], why: str) -> dict[str, Any]:
    """Make the stop document of a run of which none came.

    Parameters
    ----------
    uid : str
        The run's.
    events : Mapping
        Of each stream, the highest number of an event that came.
    why : str
        Its reason.
    """
    return {
        "uid": f"{MADE_UP}{uuid.uuid4()}",
        "run_start": uid,
        "time": time.time(),
        # Of a run that counts as failed no image is complete; this one's rests on what came.
        "exit_status": "abort",
        "reason": why,
        "num_events": dict(events),
    }
