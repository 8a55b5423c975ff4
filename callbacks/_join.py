"""Joining the parts of an event that travel in different documents."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np


class SeqNumJoin:
    """Collects the parts of each event by `seq_num`, in whatever order they come.

    An event is handed out when all its parts are there, and again when all of them have been
    renewed, as happens where a pause makes the RunEngine take a point twice. Of a part that
    comes twice the last one counts.

    Parameters
    ----------
    parts : collection of str
        Names of what makes an event complete.
    """

    def __init__(self, parts: Collection[str]) -> None:
        self._parts = frozenset(parts)
        self._new: dict[int, set[str]] = {}
        self._values: dict[int, dict[str, Any]] = {}

    def add(self, seq_num: int, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Take parts of one event; return all of them once the last one has come.

        Parameters
        ----------
        seq_num : int
            Number of the event.
        values : Mapping
            Its parts by name: a frame (in memory, or where it lies in a file) or a number.

        Returns
        -------
        Mapping or None
            All parts of the event; None while one is missing, or not yet renewed.
        """
        known = self._values.setdefault(seq_num, {})
        known.update(values)
        new = self._new.setdefault(seq_num, set())
        new.update(values)
        if new != self._parts:
            return None
        del self._new[seq_num]
        # Arrays are not kept: a whole scan of inline frames would not fit into memory.
        self._values[seq_num] = {k: v for k, v in known.items() if not isinstance(v, np.ndarray)}
        return known

    def known(self, seq_num: int) -> Mapping[str, Any]:
        """Give the parts of an event that are no arrays: numbers, and where its frame lies in a file."""
        return self._values[seq_num]

    def renewed(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the events that were complete once and of which only some parts came again."""
        for seq_num in sorted(self._new):
            if self._values[seq_num].keys() == self._parts:
                yield seq_num, self._values[seq_num]

    def missing(self, seq_num: int) -> list[str]:
        """List the parts of an event that never came."""
        return sorted(self._parts - self._values[seq_num].keys())

    def incomplete(self) -> list[int]:
        """List the numbers of the events of which a part never came."""
        return [s for s in sorted(self._new) if self._values[s].keys() != self._parts]
