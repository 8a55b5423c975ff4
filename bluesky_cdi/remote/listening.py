"""Those who want to see estimates, and the thread that shows them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from bluesky_cdi.protocols import Estimate

logger = logging.getLogger(__name__)

CLOSE_S = 10.0

Listener = Callable[[Estimate], None]


class Listening:
    """Hands estimates to listeners in a thread of its own, so that a slow one holds nothing up.

    Parameters
    ----------
    listeners : sequence of callable
        One that raises hears no more.

    Attributes
    ----------
    latest : Estimate or None
        The newest that has come.
    is_wanted : bool
        Whether somebody wants estimates as they come.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.latest: Estimate | None = None
        self.is_wanted = bool(listeners)
        self._listeners = list(listeners)
        self._queue: queue.SimpleQueue[tuple[Estimate, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="bluesky_cdi-listening", daemon=True)
        self._thread.start()

    def want(self) -> bool:
        """Want estimates from now on; whether nobody did before."""
        first, self.is_wanted = not self.is_wanted, True
        return first

    def put(self, estimate: Estimate, done: Callable[[], None]) -> None:
        """Take an estimate.

        Parameters
        ----------
        estimate : Estimate
            The newest.
        done : callable
            Called when all listeners have had it.
        """
        self.latest = estimate
        self._queue.put((estimate, done))

    def close(self) -> None:
        """End the thread, after what has come; a listener that does not come back is left behind."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            estimate, done = item
            for listener in list(self._listeners):
                try:
                    listener(estimate)
                except Exception:
                    logger.exception("a listener failed and hears no more estimates: %r", listener)
                    self._listeners.remove(listener)
            done()
