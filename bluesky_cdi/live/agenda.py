"""Which regions of a canvas need work, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bluesky_cdi.protocols import FloatArray


class Agenda:
    """Regions with frames that were not read yet, and regions whose refining still pays.

    Parameters
    ----------
    regions : int
        Number of regions.

    Attributes
    ----------
    version : int
        Of the probe; a region that was read with another one is read again when no new frames wait.
    """

    def __init__(self, regions: int) -> None:
        # In the order in which they were touched first: no region waits for ever, however fast frames come.
        self._unread: dict[int, None] = {}
        self._settled = np.ones(regions, dtype=bool)
        self._read_with = np.full(regions, -1)
        self.version = 0

    def touch(self, regions: Iterable[int]) -> None:
        """There are new frames on regions."""
        self._unread.update(dict.fromkeys(int(number) for number in regions))

    def due(self, burden: FloatArray) -> list[int]:
        """The regions to work on.

        Parameters
        ----------
        burden : ndarray, shape (regions,)
            Regions with new frames come in the order in which the frames came. Where there are none, the
            others come with the highest burden first.
        """
        if self._unread:
            return list(self._unread)
        open_ones = np.flatnonzero(~self._settled | self._is_stale())
        return [int(number) for number in open_ones[np.argsort(-burden[open_ones], kind="stable")]]

    def must_read(self, number: int) -> bool:
        """Whether a region's frames must be read, anew or for the first time."""
        return number in self._unread or bool(self._is_stale()[number])

    def done(self, number: int, *, settled: bool) -> None:
        """A region was worked on."""
        if self.must_read(number):
            self._read_with[number] = self.version
        self._unread.pop(number, None)
        self._settled[number] = settled

    def forget(self, number: int) -> None:
        """A region has no frames any more."""
        self._unread.pop(number, None)
        self._settled[number], self._read_with[number] = True, -1

    def state(self) -> dict[str, Any]:
        """All as plain values and arrays."""
        return {
            "unread": list(self._unread),
            "settled": self._settled.copy(),
            "read_with": self._read_with.copy(),
            "version": self.version,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._unread = dict.fromkeys(state["unread"])
        self._settled, self._read_with = np.array(state["settled"]), np.array(state["read_with"])
        self.version = int(state["version"])

    def _is_stale(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray((self._read_with >= 0) & (self._read_with != self.version))
