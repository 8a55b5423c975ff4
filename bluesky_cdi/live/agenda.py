"""Which tiles of a canvas need work, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.protocols import FloatArray


class Agenda:
    """Tiles with frames that were not read yet, and tiles whose refining still pays.

    Parameters
    ----------
    tiles : int
        Number of tiles.

    Attributes
    ----------
    version : int
        Of the probe; a tile that was read with another one is read again when no new frames wait.
    """

    def __init__(self, tiles: int) -> None:
        # In the order in which they were touched first: no tile waits for ever, however fast frames come.
        self._unread: dict[int, None] = {}
        self._settled = np.ones(tiles, dtype=bool)
        self._read_with = np.full(tiles, -1)
        self.version = 0

    def touch(self, tiles: Iterable[int]) -> None:
        """There are new frames on tiles."""
        self._unread.update(dict.fromkeys(int(tile) for tile in tiles))

    def due(self, burden: FloatArray) -> list[int]:
        """The tiles to work on.

        Parameters
        ----------
        burden : ndarray, shape (tiles,)
            Tiles with new frames come in the order in which the frames came. Where there are none, the
            others come with the highest burden first.
        """
        if self._unread:
            return list(self._unread)
        open_ones = np.flatnonzero(~self._settled | self._is_stale())
        return [int(tile) for tile in open_ones[np.argsort(-burden[open_ones], kind="stable")]]

    def must_read(self, tiles: Sequence[int]) -> bool:
        """Whether the frames of one of these tiles must be read, anew or for the first time."""
        stale = self._is_stale()
        return any(tile in self._unread or stale[tile] for tile in tiles)

    def done(self, tiles: Sequence[int], *, settled: bool) -> None:
        """Tiles were worked on together."""
        if self.must_read(tiles):
            self._read_with[list(tiles)] = self.version
        self._settled[list(tiles)] = settled
        for tile in tiles:
            self._unread.pop(tile, None)

    def forget(self, tiles: Sequence[int]) -> None:
        """Tiles have no frames any more."""
        self.done(tiles, settled=True)
        self._read_with[list(tiles)] = -1

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
