"""Documents on their way to a slow callback, which takes them in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class DocumentBuffer:
    """Hands documents to a callback in a thread of its own, in their order; whoever sends them never waits.

    What still waits when the interpreter exits is handed on first.

    Parameters
    ----------
    target : callable
        Takes (name, document). What it raises is logged; the next document follows.
    """

    def __init__(self, target: Callable[[str, Any], Any]) -> None:
        from bluesky.callbacks.buffer import BufferingWrapper

        self._target = target
        self._changed = threading.Condition()
        self._taken = self._handed_on = 0
        self._buffer = BufferingWrapper(self._hand_on)

    def __call__(self, name: str, doc: Any) -> None:
        """Take a document; returns at once.

        Parameters
        ----------
        name : str
            Its kind: ``start``, ``descriptor``, ...
        doc : Mapping
            The document.

        Raises
        ------
        RuntimeError
            If the buffer is closed.
        """
        with self._changed:
            # In this order, and in one piece: else a `drain` could count a document that it doesn't wait for.
            self._buffer(name, doc)
            self._taken += 1

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything taken so far is handed on; False where that takes longer than `timeout_s` seconds."""
        with self._changed:
            wanted = self._taken
            return self._changed.wait_for(lambda: self._handed_on >= wanted, timeout_s)

    def close(self) -> None:
        """Hand on what waits, then end the thread and refuse further documents."""
        self._buffer.shutdown()

    def _hand_on(self, name: str, doc: Any) -> None:
        try:
            self._target(name, doc)
        finally:
            with self._changed:
                self._handed_on += 1
                self._changed.notify_all()
