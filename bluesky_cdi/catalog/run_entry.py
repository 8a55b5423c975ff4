"""One run as an entry of a catalog: written there, and looked at."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.catalog.connect import reaching
from bluesky_cdi.catalog.masks import Masks, as_lists
from bluesky_cdi.catalog.run_writer import RunWriter
from bluesky_cdi.catalog.waiting_documents import Patience, WaitingDocuments, rows_of_page
from bluesky_cdi.errors import CatalogError

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

# Key of a run's metadata, beside its documents: when it was written in place of another entry, seconds since 1970.
WRITTEN_AGAIN = "written_again"


class RunEntry:
    """A run in a catalog, written from its first document on; what an earlier attempt left there is taken out.

    Parameters
    ----------
    catalog : Catalog
        Where the run goes.
    container : str
        ``raw`` or ``processed``.
    uid : str
        The run's.
    masks : Masks
        What is known of the masks of the run's arrays.
    patience : Patience, optional
        How long rows of files and events wait for others, which go out together with them; by default not at all.

    Attributes
    ----------
    events : Counter
        Events written, by the names of their streams.
    has_ended : bool
        Whether the stop document is written.

    Raises
    ------
    CatalogError
        If the catalog can't be reached; so do the methods that use it.
    """

    def __init__(
        self, catalog: Catalog, container: str, uid: str, masks: Masks, patience: Patience | None = None
    ) -> None:
        self._uri, self._uid, self._masks = catalog.uri, uid, masks
        self._waiting = None if patience is None else WaitingDocuments(patience)
        self._container = getattr(catalog, container)
        self._descriptors: dict[str, dict[str, Any]] = {}
        self._last_time = 0.0
        self.events: Counter[str] = Counter()
        self.has_ended = False
        with reaching(self._uri):
            self._is_again = uid in self._container
            if self._is_again:
                self._container.delete_contents(uid, recursive=True, external_only=False)
        self._writer = RunWriter(self._container)

    def meet(self, name: str, doc: dict[str, Any]) -> dict[str, Any]:
        """Learn of a document, written or not; descriptors are returned with the keys of the masks.

        Parameters
        ----------
        name : str
            What it is.
        doc : dict
            The document.
        """
        # A page of events has the times of all.
        times = () if doc.get("time") is None else doc["time"]
        self._last_time = float(np.max(times, initial=self._last_time))
        if name == "descriptor":
            doc = self._descriptors[doc["uid"]] = self._masks.describe(doc)
        return doc

    def shows_new_mask(self, name: str, doc: dict[str, Any]) -> bool:
        """Tell whether an event has a mask that its descriptor, written already, does not know of."""
        descriptor = self._descriptor_of(name, doc)
        return descriptor is not None and self._masks.learn(doc, descriptor)

    def write(self, name: str, doc: dict[str, Any]) -> None:
        """Write a document.

        Parameters
        ----------
        name : str
            What it is.
        doc : dict
            As `meet` gave it.

        Raises
        ------
        CatalogError
            If an array has not the shape that was announced, which Tiled's writer would mix with its neighbours.
        """
        if name == "event":
            _check_shapes(doc, self._descriptors[doc["descriptor"]])
        descriptor = self._descriptor_of(name, doc)
        plain = as_lists(doc) if descriptor is None else self._masks.plain(doc, descriptor)
        if self._waiting is None:
            self._send(name, [plain])
        elif name == "stream_datum":
            if not self._waiting.add_rows(plain):
                self.flush()
                self._waiting.add_rows(plain)
        elif name in ("event", "event_page"):
            for event in [plain] if name == "event" else rows_of_page(plain):
                self._waiting.add_event(event)
                if self._waiting.are_enough:
                    self.flush()
        else:
            self.flush()
            self._send(name, [plain])
        if name == "stop":
            self._tell_of_another()
            self.has_ended = True
        elif events := _events_of(name, doc):
            self.events[self._descriptors[doc["descriptor"]]["name"]] += events

    def keep_pace(self) -> None:
        """Write what waits, if it has waited for long enough."""
        if self._waiting is not None and self._waiting.are_due:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting is not None:
            for name, docs in self._waiting.take():
                self._send(name, docs)

    def made_up_stop(self, reason: str) -> dict[str, Any]:
        """Make up the end of a run that has none, and say why."""
        return {
            "uid": f"stop-{self._uid}", "run_start": self._uid, "time": self._last_time or time.time(),
            "exit_status": "fail", "reason": reason, "num_events": dict(self.events),
        }  # fmt: skip

    def arrived(self) -> tuple[dict[str, int], bool]:
        """Look how many events of each stream the catalog holds, and whether it has the run's end."""
        with reaching(self._uri):
            run = self._container[self._uid]
            return {stream: _rows(run, stream) for stream in self.events}, bool(run.metadata.get("stop"))

    def _tell_of_another(self) -> None:
        """Note in the entry that there was one before, whose documents somebody may know."""
        if self._is_again:
            with reaching(self._uri):
                self._container[self._uid].update_metadata({WRITTEN_AGAIN: time.time()}, drop_revision=True)

    def _send(self, name: str, docs: Sequence[Mapping[str, Any]]) -> None:
        with reaching(self._uri):
            self._writer.write(name, docs)

    def _descriptor_of(self, name: str, doc: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the descriptor of events, if it is known; None for other documents."""
        return self._descriptors.get(doc["descriptor"]) if _events_of(name, doc) else None


def _events_of(name: str, doc: Mapping[str, Any]) -> int:
    if name == "event_page":
        return len(doc["seq_num"])
    return int(name == "event")


def _check_shapes(event: Mapping[str, Any], descriptor: Mapping[str, Any]) -> None:
    """Refuse an array of another shape than announced."""
    for key, announced in descriptor["data_keys"].items():
        value = event["data"].get(key)
        if not isinstance(value, np.ndarray) or announced.get("external"):
            continue
        shape = announced.get("shape") or []
        if len(shape) != value.ndim or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
            raise CatalogError(
                f"{key!r} must have the shape {tuple(shape)} that its descriptor states; event "
                f"{event['seq_num']} has {value.shape}"
            )


def _rows(run: Any, stream: str) -> int:
    """Count the rows of a stream's table of events."""
    if stream not in run:
        return 0
    base = run[stream].base
    tables = [name for name in base if name.startswith("internal")]
    return len(base[tables[0]].read(["seq_num"])) if tables else 0
