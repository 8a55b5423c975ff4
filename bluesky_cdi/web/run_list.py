"""The list of a catalog's runs: read piece by piece, the newest first, and kept, so that a look costs little."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.catalog.schema import PLAN_NAME, sample_of

# So many runs are read at a time: about half a second.
CHUNK = 250
# Between two looks into the catalog, however many browsers ask, seconds.
FRESH_S = 0.8
# Runs without a stop document that are looked at again: the one that is measured now is among the newest.
OPEN_RUNS = 6

Metadata = Mapping[str, Any]


@dataclass
class _Entry:
    metadata: Metadata
    version: int


@dataclass
class _Known:
    """What is known of one container: the entries from `low` to `high` in its own order."""

    container: Any
    entries: dict[str, _Entry] = field(default_factory=dict)
    low: int = -1
    high: int = -1

    @property
    def whole(self) -> bool:
        """Whether all of it has been read."""
        return self.low == 0

    def read(self, version: int) -> bool:
        """Read what is new, what may have ended, and some of what is older; tell whether anything changed."""
        n = len(self.container)
        if self.low < 0 or n < self.high:
            # The first time, or runs were taken away.
            self.entries, self.low, self.high = {}, n, n
        found = dict(self.container.items()[self.high : n]) if n > self.high else {}
        self.high = n
        if self.low > 0:
            low = max(0, self.low - CHUNK)
            found |= dict(self.container.items()[low : self.low])
            self.low = low
        newest = sorted(self._open_runs(), key=lambda uid: self.entries[uid].metadata["start"]["time"])[-OPEN_RUNS:]
        found |= {uid: self.container[uid] for uid in newest if uid not in found}
        changed = False
        for uid, run in found.items():
            metadata, known = dict(run.metadata), self.entries.get(uid)
            if "start" in metadata and (known is None or known.metadata != metadata):
                self.entries[uid] = _Entry(metadata, version)
                changed = True
        return changed

    def _open_runs(self) -> list[str]:
        return [uid for uid, entry in self.entries.items() if not entry.metadata.get("stop")]


class RunList:
    """Knows the raw and the derived runs of a catalog by their metadata.

    Parameters
    ----------
    catalog : Catalog
        Where they are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._raw, self._derived = _Known(catalog.raw), _Known(catalog.processed)
        self._version, self._looked_at = 0, -FRESH_S
        # Of this list: after a restart versions count anew.
        self._epoch = secrets.token_hex(4)

    def changes(self, epoch: str, after: int) -> dict[str, Any]:
        """Give the runs that have changed since a version, as plain values.

        Parameters
        ----------
        epoch : str
            Of the answer that told the version; all runs are given if it is of another list.
        after : int
            The version.

        Returns
        -------
        dict
            ``epoch``, ``version``, ``whole`` (whether all of the catalog has been read) and ``runs``.
        """
        with self._lock:
            self._refresh()
            after = after if epoch == self._epoch else -1
            made_from = {entry.metadata["start"].get("raw_uid"): entry for entry in self._derived.entries.values()}
            rows = [
                self._derived_row(uid, entry.metadata)
                for uid, entry in self._derived.entries.items()
                if entry.version > after and entry.metadata["start"].get("plan_name") == PLAN_NAME
            ]
            for uid, entry in self._raw.entries.items():
                result = made_from.get(uid)
                # A run that has a result is told of once more, so that it goes from the list.
                if max(entry.version, -1 if result is None else result.version) > after:
                    rows.append({**_raw_row(uid, entry.metadata), "replaced": result is not None})
            return {
                "epoch": self._epoch,
                "version": self._version,
                "whole": self._raw.whole and self._derived.whole,
                "runs": rows,
            }

    def find(self, uid: str) -> tuple[Metadata | None, Metadata | None]:
        """Give the metadata of a raw run and of a derived run of it, by the uid of either.

        Of a raw run with several results the newest counts; what is absent is None. A uid that is not in the list goes
        no further: no part of the catalog is asked for by a name that came from outside.
        """
        with self._lock:
            self._refresh()
            while uid not in self._raw.entries and uid not in self._derived.entries:
                if self._raw.whole and self._derived.whole:
                    return None, None
                self._read()
            if uid in self._derived.entries:
                derived = self._derived.entries[uid].metadata
                raw = self._raw.entries.get(derived["start"].get("raw_uid", ""))
                return None if raw is None else raw.metadata, derived
            results = self.results_of(uid)
            return self._raw.entries[uid].metadata, results[-1] if results else None

    def results_of(self, raw_uid: str) -> list[Metadata]:
        """Give the derived runs of a raw run, oldest first."""
        found = [e.metadata for e in self._derived.entries.values() if e.metadata["start"].get("raw_uid") == raw_uid]
        return sorted(found, key=lambda metadata: float(metadata["start"]["time"]))

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_at >= FRESH_S or not (self._raw.whole and self._derived.whole):
            self._read()

    def _read(self) -> None:
        version = self._version + 1
        with self._catalog.reaching():
            # Both: neither may be left out because the other one changed.
            changed = [known.read(version) for known in (self._raw, self._derived)]
        self._version = version if any(changed) else self._version
        self._looked_at = time.monotonic()

    def _derived_row(self, uid: str, metadata: Metadata) -> dict[str, Any]:
        start, stop = metadata["start"], metadata.get("stop") or {}
        raw = self._raw.entries.get(start.get("raw_uid", ""))
        raw_start = {} if raw is None else raw.metadata["start"]
        verdict = stop.get("verdict") or {}
        return {
            "uid": uid,
            "raw_uid": start.get("raw_uid"),
            "scan_id": start.get("scan_id"),
            "plan": raw_start.get("plan_name"),
            "sample": sample_of(raw_start),
            "time": start["time"],
            "made_by": (start.get("source") or {}).get("reconstructor"),
            "n_frames": stop.get("n_frames"),
            "status": stop.get("exit_status"),
            "complete": bool(stop.get("complete")),
            "verdict": verdict.get("word"),
            "has_image": bool(stop.get("complete") or not stop),
            "replaced": False,
        }


def _raw_row(uid: str, metadata: Metadata) -> dict[str, Any]:
    start, stop = metadata["start"], metadata.get("stop") or {}
    return {
        "uid": uid,
        "raw_uid": uid,
        "scan_id": start.get("scan_id"),
        "plan": start.get("plan_name"),
        "sample": sample_of(start),
        "time": start["time"],
        "made_by": None,
        "n_frames": (stop.get("num_events") or {}).get("primary"),
        "status": stop.get("exit_status"),
        "complete": False,
        "verdict": None,
        "has_image": False,
    }
