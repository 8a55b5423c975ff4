"""The list of a catalog's runs: what its rows need is read once, the newest first, and kept."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.catalog.listing import ResultSummary, Selected, raw_row, read_selected, result_row
from bluesky_cdi.catalog.schema import PLAN_NAME
from bluesky_cdi.web.kept import Kept

# So many runs are read at a time.
CHUNK = 600
# Between two looks into the catalog, however many browsers ask, seconds.
FRESH_S = 0.8
# Runs without a stop document that are looked at again: the one that is measured now is among the newest.
OPEN_RUNS = 6
# So many of the newest are read at each look. A run that is written again stands behind those that it stood before; the
# last one tells it (`run_entry.WRITTEN_AGAIN`).
TAIL = 6
# Runs whose whole metadata are kept.
WHOLE = 64


class Found(NamedTuple):
    """A raw run and a derived run of it, with all their metadata.

    Attributes
    ----------
    raw, derived : BlueskyRun or None
        The runs; None where there is none.
    raw_key, derived_key : tuple
        Of each as it is: another one once it has ended, or was written again.
    """

    raw: Any
    derived: Any
    raw_key: tuple[str, int | None]
    derived_key: tuple[str, int | None]


@dataclass
class _Entry:
    selected: Selected
    version: int


@dataclass
class _Known:
    """What is known of one container: the entries from `low` to `high` in its own order."""

    container: Any
    entries: dict[str, _Entry] = field(default_factory=dict)
    low: int = -1
    high: int = -1
    tail: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether all of it has been read."""
        return self.low == 0

    def version_of(self, uid: str) -> int | None:
        """Tell the version of an entry; None where there is none."""
        return self.entries[uid].version if uid in self.entries else None

    def read(self, version: int) -> bool:
        """Read what is new, what may have ended, and some of what is older; tell whether anything changed."""
        newest = [] if self.low < 0 else list(read_selected(self.container, self.high - len(self.tail)))
        if self.low < 0 or _uids(newest)[: len(self.tail)] != self.tail:
            # The first time, or runs were taken away, or written again.
            n = len(self.container)
            self.entries, self.low, self.high, self.tail, newest = {}, n, n, [], []
        self.high += len(newest) - len(self.tail)
        older: list[Selected] = []
        if self.low > 0:
            low = max(0, self.low - CHUNK)
            older, self.low = list(read_selected(self.container, low, self.low)), low
        self.tail = _uids(newest or older)[-TAIL:]
        found = newest + older
        found += self._open_again(set(_uids(found)))
        changed = [each for each in found if self._is_news(each)]
        self.entries |= {each["start"]["uid"]: _Entry(each, version) for each in changed}
        return bool(changed)

    def _open_again(self, known: set[str]) -> list[Selected]:
        """Read the newest runs that had not ended once more."""
        from tiled.queries import In

        still = [uid for uid, entry in self.entries.items() if not entry.selected["stop"]]
        newest = sorted(still, key=lambda uid: float(self.entries[uid].selected["start"]["time"]))[-OPEN_RUNS:]
        wanted = [uid for uid in newest if uid not in known]
        return list(read_selected(self.container.search(In("start.uid", wanted)))) if wanted else []

    def _is_news(self, selected: Selected) -> bool:
        known = self.entries.get(selected["start"]["uid"])
        return known is None or known.selected != selected


class RunList:
    """Knows the raw and the derived runs of a catalog by what a list shows of them.

    Parameters
    ----------
    catalog : Catalog
        Where they are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._raw, self._derived = _Known(catalog.raw), _Known(catalog.processed)
        self._whole = Kept(WHOLE)
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
            ``epoch``, ``version``, ``whole`` (whether all of the catalog has been read) and ``runs``: the keys of a
            `ResultSummary`, with the raw run's uid where there is no result, ``has_image``, and ``replaced``.
        """
        with self._lock:
            self._refresh()
            after = after if epoch == self._epoch else -1
            rows, made_from = [], {}
            for entry in self._results():
                raw_uid = entry.selected["start"]["raw_uid"]
                made_from[raw_uid] = entry
                raw = self._raw.entries.get(raw_uid)
                # The raw run tells sample and plan; it may have been read later.
                if max(entry.version, -1 if raw is None else raw.version) > after:
                    rows.append(_plain(result_row(entry.selected, None if raw is None else raw.selected)))
            for uid, entry in self._raw.entries.items():
                result = made_from.get(uid)
                # A run that has a result is told of once more, so that it goes from the list.
                if max(entry.version, -1 if result is None else result.version) > after:
                    rows.append({**_plain(raw_row(entry.selected)), "replaced": result is not None})
            return {
                "epoch": self._epoch,
                "version": self._version,
                "whole": self._raw.whole and self._derived.whole,
                "runs": rows,
            }

    def find(self, uid: str) -> Found:
        """Give a raw run and a derived run of it by the uid of either.

        Of a raw run with several results the newest counts; what is absent is None. A uid that is not in the list goes
        no further: no part of the catalog is asked for by a name that came from outside.
        """
        with self._lock:
            raw_uid, derived = self._named(uid)
            versions = self._raw.version_of(raw_uid), self._derived.version_of(derived)
        return Found(
            self._whole_run(self._raw, raw_uid, versions[0]),
            self._whole_run(self._derived, derived, versions[1]),
            (raw_uid, versions[0]),
            (derived, versions[1]),
        )

    def find_result(self, uid: str) -> Found:
        """Give the derived run alone that `find` gives."""
        with self._lock:
            _, derived = self._named(uid)
            version = self._derived.version_of(derived)
        return Found(None, self._whole_run(self._derived, derived, version), ("", None), (derived, version))

    def results_of(self, raw_uid: str) -> list[ResultSummary]:
        """Give the derived runs of a raw run, oldest first."""
        with self._lock:
            return [result_row(entry.selected, None) for entry in self._results_of(raw_uid)]

    def _results(self) -> list[_Entry]:
        return [e for e in self._derived.entries.values() if e.selected["start"]["plan_name"] == PLAN_NAME]

    def _results_of(self, raw_uid: str) -> list[_Entry]:
        found = [entry for entry in self._results() if entry.selected["start"]["raw_uid"] == raw_uid]
        return sorted(found, key=lambda entry: float(entry.selected["start"]["time"]))

    def _named(self, uid: str) -> tuple[str, str]:
        """Give the uids of a raw run and of its result by that of either; empty where there is none in the list."""
        self._refresh()
        while uid not in self._raw.entries and uid not in self._derived.entries:
            if self._raw.whole and self._derived.whole:
                return "", ""
            self._read()
        if uid in self._derived.entries:
            return str(self._derived.entries[uid].selected["start"]["raw_uid"]), uid
        results = self._results_of(uid)
        return uid, results[-1].selected["start"]["uid"] if results else ""

    def _whole_run(self, known: _Known, uid: str, version: int | None) -> Any:
        """Read a run of the list with all its metadata, once for each version of it."""
        if version is None:
            return None

        def read() -> Any:
            with self._catalog.reaching():
                return known.container[uid]

        return self._whole.get((id(known), uid, version), read)

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


def _uids(found: Iterable[Selected]) -> list[str]:
    return [each["start"]["uid"] for each in found]


def _plain(row: ResultSummary) -> dict[str, Any]:
    """Give a row as a browser reads it."""
    has_image = row.uid is not None and (row.complete or row.exit_status is None)
    return {**asdict(row), "uid": row.uid or row.raw_uid, "has_image": has_image, "replaced": False}
