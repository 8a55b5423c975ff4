"""What was proposed and what came back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.agent.patterns import IndexArray
from bluesky_cdi.errors import SearchSpaceError
from bluesky_cdi.protocols import FloatArray

BEST_POINTS = 10


class Observations:
    """Proposed and measured points, matched to each other.

    A measured point settles the proposal with its ``_id``, or else the nearest pending one. It is
    known again by its ``seq_num``, by the ``_id`` of a proposal, or by its exact position.

    Parameters
    ----------
    match_m : float
        Farthest that a point without a known ``_id`` may lie from the proposal it settles, metres.
    """

    def __init__(self, match_m: float) -> None:
        self._match_m = match_m
        self._issued: dict[Hashable, tuple[float, float]] = {}
        self._pending: dict[int, tuple[float, float]] = {}
        self._rows: dict[Hashable, int] = {}
        self._points: list[Mapping[str, Any]] = []
        self._positions: list[tuple[float, float]] = []
        self.ids: list[int | None] = []
        """For each measured point the ``_id`` of the proposal it settled."""

    def __len__(self) -> int:
        return len(self._points)

    @property
    def pending_m(self) -> FloatArray:
        """Positions proposed and not yet measured, shape (p, 2), metres."""
        return np.array(list(self._pending.values()), dtype=np.float64).reshape(-1, 2)

    @property
    def pending_ids(self) -> list[int]:
        """Ids of the positions proposed and not yet measured."""
        return list(self._pending)

    @property
    def positions_m(self) -> FloatArray:
        """Measured positions in the order of their first arrival, shape (n, 2), metres."""
        return np.array(self._positions, dtype=np.float64).reshape(-1, 2)

    def outcome(self, name: str) -> FloatArray:
        """Give one scalar outcome of all measured points, shape (n,); NaN where it is absent."""
        return np.fromiter((p.get(name, np.nan) for p in self._points), dtype=np.float64, count=len(self._points))

    @property
    def embedding(self) -> FloatArray:
        """Embeddings of all measured points, shape (n, d); NaN rows where absent or of another length than the last."""
        rows = [np.asarray(p.get("embedding", ()), dtype=np.float64).ravel() for p in self._points]
        if not rows:
            return np.empty((0, 0))
        absent = np.full(len(rows[-1]), np.nan)
        return np.stack([row if len(row) == len(absent) else absent for row in rows])

    def issue(self, positions_m: FloatArray) -> list[int]:
        """Give each proposed position an id, unique in these observations."""
        ids = list(range(len(self._issued), len(self._issued) + len(positions_m)))
        for key, (y, x) in zip(ids, positions_m.tolist(), strict=True):
            self._issued[key] = self._pending[key] = (y, x)
        return ids

    def withdraw(self, ids: Iterable[Hashable]) -> None:
        """Forget that proposals are on their way: they were not measured. Those that were, and ids not known, stay."""
        for key in ids:
            self._pending.pop(key, None)  # type: ignore[call-overload]

    def take(self, points: Sequence[Mapping[str, Any]]) -> bool:
        """Take measured points in; a known one gets its new outcome.

        Parameters
        ----------
        points : sequence of Mapping
            With ``y`` and ``x`` in metres, optionally ``_id`` and ``seq_num``, and outcomes. A point
            with the ``_id`` of a proposal may leave ``y`` and ``x`` out: it was measured there.

        Returns
        -------
        bool
            Whether a known point came back at another position.

        Raises
        ------
        SearchSpaceError
            If a position is absent or not finite.
        """
        moved = False
        for point in points:
            position = self._position(point)
            key = self._key(point, position)
            row = self._rows.get(key)
            if row is None:
                self._append(key, point, position)
                continue
            self._points[row] = point
            if self._positions[row] != position:
                self._positions[row], moved = position, True
        return moved

    def best(self) -> list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """Give the ten measured points of the largest novelty: (id, parameters, outcomes)."""
        novelty = np.nan_to_num(self.outcome("novelty"), nan=-np.inf)
        order: IndexArray = np.argsort(-novelty, kind="stable")[:BEST_POINTS]
        found: list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]] = []
        for row in order.tolist():
            point, own, (y, x) = self._points[row], self.ids[row], self._positions[row]
            found.append((point.get("_id") if own is None else own, {"y": y, "x": x}, _outcomes(point)))
        return found

    def _append(self, key: Hashable, point: Mapping[str, Any], position: tuple[float, float]) -> None:
        self._rows[key] = len(self._points)
        self._points.append(point)
        self._positions.append(position)
        self.ids.append(self._settle(point, position))

    def _key(self, point: Mapping[str, Any], position: tuple[float, float]) -> Hashable:
        if point.get("seq_num") is not None:
            return "seq_num", point["seq_num"]
        if point.get("_id") in self._issued:
            return "_id", point["_id"]
        return position

    def _settle(self, point: Mapping[str, Any], position: tuple[float, float]) -> int | None:
        key = point.get("_id")
        if key in self._pending:
            del self._pending[key]
            return int(key)
        if key in self._issued or not self._pending:
            return None
        distance = np.linalg.norm(self.pending_m - position, axis=1)
        if distance.min() > self._match_m:
            return None
        found = self.pending_ids[int(distance.argmin())]
        del self._pending[found]
        return found

    def _position(self, point: Mapping[str, Any]) -> tuple[float, float]:
        own_y, own_x = self._issued.get(point.get("_id"), (math.nan, math.nan))
        y, x = float(point.get("y", own_y)), float(point.get("x", own_x))
        if not (math.isfinite(y) and math.isfinite(x)):
            raise SearchSpaceError(
                f"a measured point needs finite y and x in metres; they are y={y}, x={x}. "
                "Leave frames without a position out of what the agent ingests."
            )
        return y, x


def as_suggestions(ids: Sequence[int], positions_m: FloatArray) -> list[Mapping[str, Any]]:
    """Write positions as the mappings that an agent suggests.

    Parameters
    ----------
    ids : sequence of int
        One for each position.
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.

    Returns
    -------
    list of Mapping
        With ``_id``, ``y``, ``x`` (metres).
    """
    return [{"_id": key, "y": y, "x": x} for key, (y, x) in zip(ids, positions_m.tolist(), strict=True)]


def positions_of(suggestions: Sequence[Mapping[str, Any]]) -> FloatArray:
    """Read the positions of suggestions, shape (n, 2), metres.

    Parameters
    ----------
    suggestions : sequence of Mapping
        ``y``, ``x`` (metres).

    Raises
    ------
    SearchSpaceError
        If a position is absent or not finite.
    """
    rows = [[float(point.get(axis, math.nan)) for axis in ("y", "x")] for point in suggestions]
    positions = np.array(rows, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(positions).all():
        raise SearchSpaceError(f"a suggestion needs finite y and x in metres; got {list(suggestions)}")
    return positions


def _outcomes(point: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in point.items() if name not in ("y", "x", "_id", "seq_num")}
