"""What a session adds to a RunEngine, and takes away again."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bluesky_cdi.errors import ConfigError

if TYPE_CHECKING:
    from bluesky import RunEngine

logger = logging.getLogger(__name__)

_ABSENT = object()
# Two sessions would keep each run twice, in the same files.
_attached: weakref.WeakSet[Any] = weakref.WeakSet()


class Attachment:
    """Subscriptions, metadata and the source of scan numbers that a RunEngine has while a session is open.

    Only what was added is taken away: subscriptions, suspenders, preprocessors and metadata of others stay. A key of
    the metadata gets its former value, unless somebody has changed it meanwhile.

    Parameters
    ----------
    engine : RunEngine
        Idle, and of no other open session.

    Raises
    ------
    ConfigError
        If it is not.
    """

    def __init__(self, engine: RunEngine) -> None:
        check_free(engine)
        self._engine = engine
        self._stack = contextlib.ExitStack()
        _attached.add(engine)
        self._stack.callback(_attached.discard, engine)

    def subscribe(self, callback: Callable[[str, Any], Any], name: str = "all") -> None:
        """Subscribe a callback until the session is closed.

        Parameters
        ----------
        callback : callable
            Takes (name, document).
        name : str
            Kind of the documents that it gets.
        """
        self._stack.callback(self._engine.unsubscribe, self._engine.subscribe(callback, name))

    def state(self, metadata: Mapping[str, Any]) -> None:
        """Put keys into the RunEngine's metadata."""
        for key, value in metadata.items():
            before = self._engine.md.get(key, _ABSENT)
            if before is not _ABSENT and before != value:
                logger.warning(
                    "RE.md[%r] is %r while the session is open, as the session states it; it was %r", key, value, before
                )
            self._engine.md[key] = value
            self._stack.callback(self._put_back, key, value, before)

    def number_runs(self, source: Callable[[Mapping[str, Any]], Any]) -> None:
        """Take the scan numbers from this source."""
        self._stack.callback(setattr, self._engine, "scan_id_source", self._engine.scan_id_source)
        self._engine.scan_id_source = source

    def detach(self) -> None:
        """Take everything away; of a run that is not over, what comes later is not kept."""
        if self._engine.state != "idle":
            logger.warning(
                "the session is closed while its RunEngine is %s: what the run measures from now on is not kept",
                self._engine.state,
            )
        self._stack.close()

    def _put_back(self, key: str, stated: Any, before: Any) -> None:
        metadata = self._engine.md
        if metadata.get(key, _ABSENT) != stated:
            return
        if before is _ABSENT:
            del metadata[key]
        else:
            metadata[key] = before


def check_free(engine: RunEngine) -> None:
    """Check that a session can begin on a RunEngine.

    Raises
    ------
    ConfigError
        If it is not idle, or another open session has it.
    """
    if engine in _attached:
        raise ConfigError(
            "a RunEngine belongs to one session at a time; this one's is open: close it first (session.close())"
        )
    if engine.state != "idle":
        raise ConfigError(
            f"a session begins between two runs, with an idle RunEngine; this one is {engine.state}. "
            "End its run first: RE.resume(), RE.stop() or RE.abort()."
        )
