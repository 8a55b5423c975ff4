"""Which tiles of an object grid need work, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray


class Predictions:
    """Know which tiles are predicted, and whose prediction rests on a probe or a network that has changed since.

    Parameters
    ----------
    tiles : int
        Number of tiles.
    """

    def __init__(self, tiles: int) -> None:
        # The version that a tile's prediction rests on; -1: there is none.
        self._made_with = np.full(tiles, -1)
        self._version = 0

    @property
    def are_outdated(self) -> npt.NDArray[np.bool_]:
        """Of each tile, whether it was predicted with another probe or network than there is now."""
        return np.asarray((self._made_with >= 0) & (self._made_with != self._version))

    def outdate(self) -> None:
        """Note that probe or network changed."""
        self._version += 1

    def make(self, tiles: Sequence[int]) -> None:
        """Note that tiles are predicted with what there is now."""
        self._made_with[list(tiles)] = self._version

    def accept(self) -> None:
        """Let all predictions pass for ones made now."""
        self._made_with[self._made_with >= 0] = self._version

    def forget(self, tiles: Sequence[int]) -> None:
        """Note that tiles have no prediction."""
        self._made_with[list(tiles)] = -1

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give all as arrays."""
        return {"predicted_with": self._made_with.copy(), "version": np.array(self._version)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave."""
        self._made_with, self._version = state["predicted_with"].copy(), int(state["version"])


class TileScheduler:
    """Keep the tiles with new frames, those whose refinement still pays, and those whose prediction is outdated.

    Where no new frames wait, work goes in rounds: each tile that is open comes once a round.

    Parameters
    ----------
    tiles : int
        Number of tiles.
    least_gain : float
        A round that lowers the sum of all misfits by less than this share is the last: what tiles then win by
        themselves their neighbours lose.
    """

    def __init__(self, tiles: int, least_gain: float) -> None:
        self._least_gain = least_gain
        # In the order in which they were touched first: no tile waits for ever, however fast frames come.
        self._waiting: dict[int, None] = {}
        self._settled = np.ones(tiles, dtype=bool)
        self._predictions = Predictions(tiles)
        self._visited = np.ones(tiles, dtype=bool)
        self._round_misfit: float | None = None

    @property
    def waiting(self) -> list[int]:
        """Tiles with new frames that no work has seen yet, in the order in which they were touched first."""
        return list(self._waiting)

    def touch(self, tiles: Iterable[int]) -> None:
        """Note new frames on tiles."""
        self._waiting.update(dict.fromkeys(int(tile) for tile in tiles))
        self._visited[:], self._round_misfit = True, None

    def outdate(self) -> None:
        """Note that probe or network changed: tiles predicted before are predicted again when no new frames wait."""
        self._predictions.outdate()

    def due(self, misfit: FloatArray) -> list[int]:
        """List the tiles to work on.

        Parameters
        ----------
        misfit : ndarray, shape (tiles,)
            Summed deviance of each tile's frames. Tiles with new frames come in the order in which the frames came.
            Where there are none, the others come with the highest misfit first.
        """
        if self._waiting:
            return self.waiting
        if not self._left_in_round().size:
            # A round begins, or all work ends where the last one did not pay.
            before, self._round_misfit = self._round_misfit, float(misfit.sum())
            # A tile alone has no neighbours: whether its refinement pays is all that counts.
            several = len(self._settled) > 1
            if several and before is not None and self._round_misfit > (1 - self._least_gain) * before:
                self._settled[:] = True
                self._predictions.accept()
            self._visited[:] = False
        left = self._left_in_round()
        return [int(tile) for tile in left[np.argsort(-misfit[left], kind="stable")]]

    def must_predict(self, tiles: Sequence[int]) -> bool:
        """Tell whether one of these tiles needs a prediction, anew or for the first time."""
        outdated = self._predictions.are_outdated
        return any(tile in self._waiting or outdated[tile] for tile in tiles)

    def done(self, tiles: Sequence[int], *, settled: bool) -> None:
        """Note that tiles were worked on together.

        Parameters
        ----------
        tiles : sequence of int
            Their numbers.
        settled : bool
            Whether refining them further does not pay.
        """
        if self.must_predict(tiles):
            self._predictions.make(tiles)
        self._settled[list(tiles)], self._visited[list(tiles)] = settled, True
        for tile in tiles:
            self._waiting.pop(tile, None)

    def reopen(self, tiles: Sequence[int]) -> None:
        """Note that refining tiles was cut short: whether it pays is not known."""
        self._settled[list(tiles)] = False

    def take_over(self, tiles: Sequence[int], outdated: bool) -> None:
        """Note that tiles were predicted on another grid: they are open.

        Parameters
        ----------
        tiles : sequence of int
            Their numbers.
        outdated : bool
            Whether they wait to be predicted again.
        """
        self.reopen(tiles)
        self._predictions.make(tiles)
        if outdated:
            self.outdate()

    @property
    def has_outdated(self) -> bool:
        """Whether a prediction waits to be made again."""
        return bool(self._predictions.are_outdated.any())

    def are_outdated(self, tiles: Sequence[int]) -> bool:
        """Whether one of these tiles was predicted with another probe or network than there is now."""
        return bool(self._predictions.are_outdated[list(tiles)].any())

    def forget(self, tiles: Sequence[int]) -> None:
        """Note that tiles have no frames any more."""
        self.done(tiles, settled=True)
        self._predictions.forget(tiles)

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give all as arrays."""
        return {
            "waiting": np.array(self.waiting, dtype=np.int64),
            "settled": self._settled.copy(),
            "visited": self._visited.copy(),
            "round_misfit": np.array(np.nan if self._round_misfit is None else self._round_misfit),
            **self._predictions.checkpoint(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave."""
        self._waiting = dict.fromkeys(state["waiting"].tolist())
        self._settled, self._visited = state["settled"].copy(), state["visited"].copy()
        self._predictions.restore(state)
        misfit = float(state["round_misfit"])
        self._round_misfit = None if np.isnan(misfit) else misfit

    def _left_in_round(self) -> npt.NDArray[np.int64]:
        """List the open tiles that have not come in this round."""
        return np.flatnonzero((~self._settled | self._predictions.are_outdated) & ~self._visited)
