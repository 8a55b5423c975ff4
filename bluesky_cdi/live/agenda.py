"""Which tiles of a canvas need work, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.protocols import FloatArray


class Agenda:
    """Tiles with frames that were not read yet, and tiles whose refining still pays.

    Where no new frames wait, work goes in rounds: each tile that is open comes once a round.

    Parameters
    ----------
    tiles : int
        Number of tiles.
    least_gain : float
        A round that lowers the sum of all burdens by less than this share is the last: what tiles then gain by
        themselves their neighbours lose.

    Attributes
    ----------
    version : int
        Of the probe; a tile that was read with another one is read again when no new frames wait.
    """

    def __init__(self, tiles: int, least_gain: float) -> None:
        self._least_gain = least_gain
        # In the order in which they were touched first: no tile waits for ever, however fast frames come.
        self._unread: dict[int, None] = {}
        self._settled = np.ones(tiles, dtype=bool)
        self._read_with = np.full(tiles, -1)
        self._visited = np.ones(tiles, dtype=bool)
        self._began_with: float | None = None
        self.version = 0

    @property
    def has_new_frames(self) -> bool:
        """Whether there are frames that were not read yet."""
        return bool(self._unread)

    def touch(self, tiles: Iterable[int]) -> None:
        """There are new frames on tiles."""
        self._unread.update(dict.fromkeys(int(tile) for tile in tiles))
        self._visited[:], self._began_with = True, None

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
        if not (self._is_open() & ~self._visited).any():
            self._begin_round(float(burden.sum()))
        open_ones = np.flatnonzero(self._is_open() & ~self._visited)
        return [int(tile) for tile in open_ones[np.argsort(-burden[open_ones], kind="stable")]]

    def must_read(self, tiles: Sequence[int]) -> bool:
        """Whether the frames of one of these tiles must be read, anew or for the first time."""
        stale = self._is_stale()
        return any(tile in self._unread or stale[tile] for tile in tiles)

    def done(self, tiles: Sequence[int], *, settled: bool) -> None:
        """Tiles were worked on together."""
        if self.must_read(tiles):
            self._read_with[list(tiles)] = self.version
        self._settled[list(tiles)], self._visited[list(tiles)] = settled, True
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
            "visited": self._visited.copy(),
            "began_with": self._began_with,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._unread = dict.fromkeys(state["unread"])
        self._settled, self._read_with = np.array(state["settled"]), np.array(state["read_with"])
        self._visited, self._began_with = np.array(state["visited"]), state["began_with"]
        self.version = int(state["version"])

    def _begin_round(self, burden: float) -> None:
        """Begin a round with a sum of burdens, or end all work where the last one did not pay."""
        before, self._began_with = self._began_with, burden
        # A tile alone has no neighbours: whether its refining pays is all that counts.
        if len(self._settled) > 1 and before is not None and burden > (1 - self._least_gain) * before:
            self._settled[:] = True
            self._read_with[self._read_with >= 0] = self.version
        self._visited[:] = False

    def _is_open(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray(~self._settled | self._is_stale())

    def _is_stale(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray((self._read_with >= 0) & (self._read_with != self.version))
