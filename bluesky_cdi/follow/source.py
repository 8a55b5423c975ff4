"""Where documents come from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)

# The field that names a document's parent, for each kind of documents but the first of a run.
PARENTS = {
    "stop": "run_start",
    "descriptor": "run_start",
    "resource": "run_start",
    "stream_resource": "run_start",
    "event": "descriptor",
    "event_page": "descriptor",
    "stream_datum": "descriptor",
    "datum": "resource",
    "datum_page": "resource",
}
# So many different complaints are remembered.
TOLD_MAX = 1000


@dataclass(frozen=True, eq=False)
class Message:
    """A document on its way.

    Attributes
    ----------
    name : str
        Its kind: ``start``, ``descriptor``, ...
    doc : dict
        The document.
    place : str
        Where it came from: documents of one place keep their order, and a run lies in one place. A prefix of 0MQ, a
        partition of Kafka.
    offset : int
        Its number there, by which it can be had again; -1: it can't.
    """

    name: str
    doc: dict[str, Any]
    place: str = ""
    offset: int = -1


@dataclass(frozen=True)
class Cut:
    """Says that no more documents come from a place.

    Attributes
    ----------
    place : str
        Which.
    why : str
        What has happened.
    """

    place: str
    why: str


def is_document(name: object, doc: object) -> bool:
    """Tell whether two values can be a document and its kind."""
    return isinstance(name, str) and (name == "start" or name in PARENTS) and isinstance(doc, dict)


class Source(Protocol):
    """Gives documents one after the other; used by one thread."""

    def next(self, timeout_s: float) -> Message | Cut | None:
        """Give what comes next; None where nothing has come.

        Parameters
        ----------
        timeout_s : float
            How long to wait, seconds.
        """

    def done_before(self, offsets: Mapping[str, int]) -> None:
        """Learn what need not come again.

        Parameters
        ----------
        offsets : Mapping
            By place, the first offset that may be needed once more.
        """

    def close(self) -> None:
        """End the subscription."""


class Complaints:
    """Logs each complaint once."""

    def __init__(self) -> None:
        self._told: set[object] = set()

    def tell(self, about: object, text: str, *args: object) -> None:
        """Log a warning, unless one about the same thing was logged.

        Parameters
        ----------
        about : hashable
            What it is about.
        text : str
            The message.
        *args : object
            Its values, as for a logger.
        """
        if about not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(about)
            logger.warning(text, *args)

    def forget(self, about: object) -> None:
        """Tell of it again, should it come once more."""
        self._told.discard(about)
