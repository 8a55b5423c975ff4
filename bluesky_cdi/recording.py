"""Keeping what a RunEngine measures: in the journal, with an eye on the disks, in memory where the journal fails."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi.errors import JournalError, RefusedError
from bluesky_cdi.journal import Journal

logger = logging.getLogger(__name__)


class Recording:
    """Appends documents to a journal and pauses the scan before, or at the latest when, there is no room for them.

    A callback for ``RE.subscribe``; it never raises into the RunEngine. A document that can't be written is kept in
    memory and written before the next one; the RunEngine pauses at its next checkpoint, and goes on when it is resumed.
    One that can never be written is left out, and told; so is one that there was not memory enough to pack before a
    pause, and still is not after it.

    Parameters
    ----------
    journal : Journal
        Takes the documents.
    engine : RunEngine
        Is paused.
    folders : Mapping
        The folders that the run fills, by what they hold.
    reserve_bytes : int
        Free space that must remain on each of their disks.
    """

    def __init__(self, journal: Journal, engine: Any, folders: Mapping[str, Path], reserve_bytes: int) -> None:
        self._journal, self._engine = journal, engine
        self._folders, self._reserve = dict(folders), reserve_bytes
        self._unwritten: deque[tuple[str, Mapping[str, Any]]] = deque()
        # Whether they wait because there was no memory to pack the first of them.
        self._short_of_memory = False
        self._points = 0
        self._request = self._pausing()
        self._reported = ""

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Keep a document.

        Parameters
        ----------
        name : str
            Its kind.
        doc : Mapping
            The document.
        """
        self._unwritten.append((name, doc))
        try:
            self._write()
        except JournalError as err:
            self._pause(f"{err} {len(self._unwritten)} document(s) wait in memory until then.")
            return
        try:
            self._look_after(name, doc)
        except (OSError, LookupError, TypeError, ValueError, OverflowError) as err:
            # Of a disk that is asked for its room, or of what the documents state. The documents themselves are kept.
            if str(err) != self._reported:
                self._reported = str(err)
                logger.warning("can't tell whether there is room for the run: %s", err)

    def close(self) -> None:
        """Write what waits in memory; what there is no memory to pack is left out.

        Raises
        ------
        JournalError
            If that is still not possible.
        """
        try:
            self._write(at_end=True)
        except JournalError as err:
            raise JournalError(f"{len(self._unwritten)} document(s) of the last run could not be kept: {err}") from err

    def _write(self, *, at_end: bool = False) -> None:
        while self._unwritten:
            try:
                self._journal(*self._unwritten[0])
            except JournalError as err:
                if not (isinstance(err, RefusedError) or self._is_beyond_memory(err, at_end)):
                    raise
                # Those behind it must not wait for ever.
                logger.error("left out: %s", err)
            self._unwritten.popleft()
        self._short_of_memory = False

    def _is_beyond_memory(self, err: JournalError, at_end: bool) -> bool:
        """Tell whether there is no memory for the first document that waits, as before a pause that is over.

        Parameters
        ----------
        err : JournalError
            Why it can't be written.
        at_end : bool
            No pause comes any more.
        """
        if not isinstance(err.__cause__, MemoryError):
            return False
        # One alone has come just now, and has waited for nothing yet.
        if at_end or (self._short_of_memory and len(self._unwritten) > 1 and not self._is_pausing):
            return True
        self._short_of_memory = True
        return False

    def _look_after(self, name: str, doc: Mapping[str, Any]) -> None:
        """Look whether there is room for the run that a document belongs to."""
        if name == "start":
            self._points = 0
            self._points = int(doc.get("num_points") or 0)
        elif name == "descriptor":
            self._look(self._points * _bytes_of(doc), "the run is expected to need")
        elif name in ("event", "event_page", "stream_datum"):
            self._look(0, "the run still needs")

    def _look(self, expected: int, whose: str) -> None:
        """Pause where a disk has not the room that is expected to be needed, and the reserve."""
        for what, folder in self._folders.items():
            free = free_bytes(folder)
            if free < expected + self._reserve:
                needed = f"{expected / 1e6:.0f} MB and a reserve" if expected else "a reserve"
                self._pause(
                    f"the disk of {what} ({folder}) has {free / 1e6:.0f} MB left; {whose} {needed} of "
                    f"{self._reserve / 1e6:.0f} MB (catalog.reserve_mb). Make room there."
                )
                return

    def _pause(self, why: str) -> None:
        """Pause the scan at its next checkpoint, and say why; again if it is resumed and nothing has changed."""
        if self._is_pausing:
            return
        logger.error("the scan pauses: %s Then RE.resume() goes on, or RE.abort() ends the run in order.", why)
        # Not in this thread, which is the RunEngine's own: the request waits for it.
        self._request = self._pausing()
        self._request.start()

    @property
    def _is_pausing(self) -> bool:
        """Whether a pause has been asked for and is not there yet."""
        engine = self._engine
        return self._request.is_alive() or engine.deferred_pause_requested or engine.state == "pausing"

    def _pausing(self) -> threading.Thread:
        return threading.Thread(target=self._request_pause, name="bluesky_cdi-pause", daemon=True)

    def _request_pause(self) -> None:
        from bluesky.run_engine import TransitionError

        with contextlib.suppress(TransitionError):  # nothing runs any more
            self._engine.request_pause(defer=True)


def free_bytes(folder: Path) -> int:
    """Tell how much room a folder's disk has for this user; where the folder is not made yet, its parent's."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _bytes_of(descriptor: Mapping[str, Any]) -> int:
    """Compute how many bytes an event's arrays take."""
    total = 0
    for key in descriptor["data_keys"].values():
        shape = [n or 1 for n in key.get("shape") or ()]
        if len(shape) > 1:
            dtype = key.get("dtype_numpy")
            size = np.dtype(dtype).itemsize if isinstance(dtype, str) else 8
            total += math.prod(shape) * size
    return total
