"""Which run is the newest, and whether its reconstruction failed."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any


class NewestRun:
    """Names the derived runs, and keeps the error of the newest one alone.

    A plan may announce a run; its documents come later, perhaps after the next announcement. Foreign runs come
    without one. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uid = ""
        self._error: Exception | None = None
        self._announced: set[str] = set()
        self._announced_at = -math.inf
        self._fed: tuple[Any, str] = (None, "")

    @property
    def error(self) -> Exception | None:
        """Why the reconstruction of the newest run failed, if it did."""
        return self._error

    def announce(self, uid: str | None = None) -> str:
        """Take or make the uid of the derived run of a scan that is about to begin."""
        with self._lock:
            uid = uid or str(uuid.uuid4())
            self._announced.add(uid)
            self._uid, self._error, self._announced_at = uid, None, time.time()
        return uid

    def start(self, start: Mapping[str, Any]) -> str:
        """Find the uid of the derived run of a raw run whose frames come next, from its start document."""
        with self._lock:
            uid = self._named(start)
            self._fed = start.get("uid"), uid
        return uid

    def find(self, start: Mapping[str, Any]) -> str:
        """Find the uid of the derived run of a raw run, which may be that whose frames come, or not have started."""
        with self._lock:
            raw, uid = self._fed
            return uid if raw is not None and start.get("uid") == raw else self._named(start)

    def fail(self, uid: str, error: Exception) -> None:
        """Keep the error of a run if that is the newest.

        Parameters
        ----------
        uid : str
            Of its derived run.
        error : Exception
            Why its reconstruction failed.
        """
        with self._lock:
            if uid == self._uid:
                self._error = error

    def _named(self, start: Mapping[str, Any]) -> str:
        # A derived run belongs to one raw run: one that was not announced gets a uid of its own.
        announced = start.get("reconstruction_uid")
        if announced in self._announced:
            self._announced.remove(announced)
            return str(announced)
        uid = str(uuid.uuid4())
        if start.get("time", math.inf) >= self._announced_at:
            self._uid, self._error = uid, None
        return uid
