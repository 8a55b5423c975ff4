"""Documents that wait to be written together: rows of files, and events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

# Of the time at most one part in so many goes into writing what did not wait for its full number.
SPARED = 5.0


@dataclass(frozen=True)
class Patience:
    """How long documents wait for others that are written with them.

    Attributes
    ----------
    events : int
        So many don't wait for more.
    longest_s : float
        Nor does any for longer than this, seconds, unless writing takes so long that it would take too much of the
        time; 0: none waits for what has not come yet.
    """

    events: int
    longest_s: float = 0.0


class WaitingDocuments:
    """Holds rows of files and events of one run until it is worth while to write them, or they have waited enough.

    Parameters
    ----------
    patience : Patience
        How long they wait.
    clock : callable
        Tells the time, seconds.
    """

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._rows: dict[str, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._since: float | None = None
        self._took_s = 0.0

    @property
    def are_enough(self) -> bool:
        """Whether there are so many that they don't wait for more."""
        return len(self._events) >= self._patience.events

    @property
    def are_due(self) -> bool:
        """Whether some have waited for long enough."""
        if self._since is None:
            return False
        longest_s = self._patience.longest_s
        return self._clock() - self._since >= (max(longest_s, SPARED * self._took_s) if longest_s else 0.0)

    def add_event(self, doc: dict[str, Any]) -> None:
        """Let an event wait."""
        self._events.append(doc)
        self._begin()

    def add_rows(self, doc: dict[str, Any]) -> bool:
        """Let rows of a file wait, behind those of the same file that do.

        Parameters
        ----------
        doc : dict
            A StreamDatum document.

        Returns
        -------
        bool
            False where they don't follow on those that wait: these are to be taken first.
        """
        before = self._rows.get(doc["stream_resource"])
        if before is not None:
            if before["indices"]["stop"] != doc["indices"]["start"]:
                return False
            ranges = ("indices", "seq_nums")
            doc = {**doc, **{name: {**before[name], "stop": doc[name]["stop"]} for name in ranges}}
        self._rows[doc["stream_resource"]] = doc
        self._begin()
        return True

    def take(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield all that wait by name, what belongs together at a time: rows first, which the events tell of."""
        began, self._since = self._clock(), None
        rows, self._rows = self._rows, {}
        events, self._events = self._events, []
        yield from (("stream_datum", [doc]) for doc in rows.values())
        for _, group in groupby(events, key=lambda doc: str(doc["descriptor"])):
            yield "event", list(group)
        self._took_s = self._clock() - began

    def _begin(self) -> None:
        if self._since is None:
            self._since = self._clock()


def rows_of_page(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the events of a page of events."""
    from event_model import unpack_event_page

    yield from (dict(event) for event in unpack_event_page(page))
