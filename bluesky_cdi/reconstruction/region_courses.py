"""How the last iterations went, region by region, and what of it speaks for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Ends of the iterations in several regions: what is told if they ended in any of them so.
TOLD_FIRST = ("diverged", "epochs", "converged")


@dataclass(frozen=True)
class Course:
    """How the last iterations of a region went, as far as it is told of a tile.

    Attributes
    ----------
    ended : str
        Why they ended, as of `Outcome`.
    falling : float
        Share by which each of them lowered the deviance; 0 where they were not kept.
    frames : float
        Frames that this speaks of.
    kept : int
        Iterations since the prediction that are in the image.
    """

    ended: str
    falling: float
    frames: float
    kept: int = 0


class RegionCourses:
    """The courses of all regions, by tile."""

    def __init__(self) -> None:
        self._by_tile: dict[int, Course] = {}

    @property
    def ended(self) -> str:
        """Why the last iterations of the regions ended: as they did in that which needs most to be told of."""
        found = {course.ended for course in self._by_tile.values()}
        return next((ended for ended in TOLD_FIRST if ended in found), "")

    @property
    def falling(self) -> float:
        """Share by which each of the last iterations lowered the deviance, mean over the frames of all regions."""
        return self._mean(lambda course: course.falling)

    @property
    def diverged(self) -> float:
        """Share of the frames in whose region the last iterations diverged."""
        return self._mean(lambda course: float(course.ended == "diverged"))

    @property
    def kept(self) -> int:
        """Iterations since the prediction that are in the image, mean over the frames of all regions."""
        return round(self._mean(lambda course: course.kept))

    def kept_in(self, tiles: Iterable[int]) -> int:
        """Return the iterations since the prediction that are in the image of a region, the most of its tiles."""
        return max((self._by_tile[tile].kept for tile in tiles if tile in self._by_tile), default=0)

    def note(self, tiles: Iterable[int], course: Course) -> None:
        """Note how the last iterations of a region went.

        Parameters
        ----------
        tiles : iterable of int
            Its tiles.
        course : Course
            Of one of them.
        """
        self._by_tile.update(dict.fromkeys(tiles, course))

    def leave(self, tiles: Iterable[int]) -> None:
        """Forget how the iterations ended where no frames are any more."""
        for tile in tiles:
            self._by_tile.pop(tile, None)

    def clear(self) -> None:
        """Forget all: the tiles are those of another grid."""
        self._by_tile.clear()

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give all courses as one array for each of their parts."""
        rows = [asdict(course) for course in self._by_tile.values()]
        numbers = {name: np.array([row[name] for row in rows]) for name in ("falling", "frames", "kept")}
        ended = np.array([row["ended"] for row in rows], dtype=np.str_)
        return {"tile": np.array(list(self._by_tile)), "ended": ended, **numbers}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave."""
        # Checkpoints of before know of the last region only, or of it only why it ended; and not what was kept.
        before = {"tile": np.zeros(1), "falling": np.zeros(1), "frames": np.ones(1)}
        before["kept"] = np.zeros(len(np.atleast_1d(state["ended"])), np.int64)
        names = ("tile", "ended", "falling", "frames", "kept")
        columns = (np.atleast_1d({**before, **state}[name]).tolist() for name in names)
        self._by_tile = {int(tile): Course(*row) for tile, *row in zip(*columns, strict=True)}

    def _mean(self, of: Callable[[Course], float]) -> float:
        """Average over the frames that the tiles' courses speak of."""
        frames = sum(course.frames for course in self._by_tile.values())
        return sum(of(course) * course.frames for course in self._by_tile.values()) / frames if frames else 0.0
