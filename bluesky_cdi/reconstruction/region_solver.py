"""What finds a region's object and probe: the network's prediction, then an engine with the prediction as the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.lsqml import Prior
from bluesky_cdi.engines.ptychography import Engine, Outcome, Schedule, Solution, iterate
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.frames import RegionFrames
from bluesky_cdi.reconstruction.object_map import RegionView, phase_towards
from bluesky_cdi.reconstruction.prediction import LEAST_GAIN, mean_deviance, predict_object
from bluesky_cdi.reconstruction.refinement import prior_of, refiner
from bluesky_cdi.reconstruction.region_courses import Course, RegionCourses
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.tiles import Region

# Frames from which on the probe is refined: fewer can't tell it from the object.
PROBE_FRAMES = 8
# Iterations over which it is looked whether the deviance still falls.
LATELY = 5


@dataclass(frozen=True, eq=False)
class Solved:
    """What became of a region.

    Attributes
    ----------
    object : Tensor, shape (1, Y, X), complex64
        On the outer box.
    refined : Solution or None
        None unless refinement explains the region's own frames clearly better.
    is_new : bool
        Whether the object is another than before.
    iterations : int
        Iterations since the prediction that are in it.
    """

    object: Tensor
    refined: Solution | None
    is_new: bool
    iterations: int = 0


class RegionSolver:
    """Find the object of a region from its frames, and refine it together with the probe.

    Parameters
    ----------
    config : ReconstructorConfig
    net : UnrolledNet, optional
        Predicts; without it the engine begins in vacuum.
    mixes : bool
        Whether the probe is shared with other regions.
    seed : int
        Seed of the order of frames.
    on_progress : callable, optional
        Called after each iteration with the iterations so far and the mean deviance.

    Attributes
    ----------
    net : UnrolledNet or None
    iterations : int
        Iterations of an engine so far.
    courses : RegionCourses
        How the last of them went.
    """

    def __init__(
        self,
        config: ReconstructorConfig,
        net: UnrolledNet | None,
        *,
        mixes: bool,
        seed: int = 0,
        on_progress: Callable[[int, float], None] | None = None,
    ) -> None:
        self.net = net
        self.iterations = 0
        self.courses = RegionCourses()
        self._config, self._mixes, self._seed, self._on_progress = config, mixes, seed, on_progress
        self._engine: Engine | None = None
        self._prior: Prior | None = None
        self._region: Region | None = None

    def forget(self) -> None:
        """Forget what an engine remembers: it belongs to the frames that it has seen."""
        self._engine = None

    def use_grid(self, *, mixes: bool) -> None:
        """Forget what belongs to the regions of another grid.

        Parameters
        ----------
        mixes : bool
            Whether the probe is shared with other regions from now on.
        """
        self._engine, self._prior, self._region, self._mixes = None, None, None, mixes
        self.courses.clear()

    def solve(
        self,
        frames: RegionFrames,
        view: RegionView,
        probe: SharedProbe,
        *,
        anew: bool,
        has_time: Callable[[], bool],
        warm: bool = True,
    ) -> Solved:
        """Predict a region's object where that is due, and refine it.

        Parameters
        ----------
        frames : RegionFrames
            Those of the region.
        view : RegionView
            What is known there.
        probe : SharedProbe
            Stays as it is; what is found is in the result.
        anew : bool
            Whether to begin from a new prediction.
        has_time : callable
            Whether another iteration may begin.
        warm : bool
            Whether a prediction may begin at what is known.
        """
        obj, before = view.object, self.courses.kept_in(frames.region.tiles)
        if anew or self._region != frames.region:
            self._engine, self._prior, self._region = None, None, frames.region
        if anew or (self.net is not None and self._prior is None):
            predicted = self._predicted(view, probe.modes, frames.data, warm)
            if anew:
                obj, goes_on = _better(view, predicted, probe.modes, frames.data)
                before = before if goes_on else 0
        refined = self._refined(obj, frames, view, probe, has_time, before)
        found = obj if refined is None else refined.object
        return Solved(found, refined, anew or refined is not None, self.courses.kept_in(frames.region.tiles))

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give what is told of the iterations; an engine's memory is not kept."""
        return {"iterations": np.array(self.iterations), **self.courses.checkpoint()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave."""
        self.iterations = int(state["iterations"])
        self.courses.restore(state)

    def _predicted(self, view: RegionView, probe: Tensor, data: Diffraction, warm: bool) -> Tensor:
        """Predict, in phase with the object where that is known; vacuum without a network."""
        if self.net is None:
            return torch.ones_like(view.object)
        found = predict_object(self.net, probe, data, view.object if warm else None)
        found = found * phase_towards(view.object, found, view.known)
        self._prior = prior_of(self.net, found, probe, data)
        return found

    def _refined(
        self,
        obj: Tensor,
        frames: RegionFrames,
        view: RegionView,
        probe: SharedProbe,
        has_time: Callable[[], bool],
        before: int,
    ) -> Solution | None:
        """Refine what `before` iterations have made; None unless that explains the region's frames clearly better."""
        if not self._config.refine_iterations:
            return None
        start = Solution.start(obj, probe.modes, frames.data, self.iterations)
        outcome = self._iterated(start, has_time)
        found = probe.shared(outcome.solution, frames.share) if self._mixes else outcome.solution
        own = frames.own | ~frames.own.any()
        had, has = (mean_deviance(view.embedded(each.object), each.probe, each.data, own) for each in (start, found))
        is_kept = bool(has < (1 - LEAST_GAIN) * had)
        tiles = frames.region.tiles
        falling = _falling(outcome.history, has / had) if is_kept else 0.0
        kept = before + is_kept * len(outcome.history)
        course = Course(outcome.ended, falling, len(frames.own_rows) / len(tiles), kept)
        self.courses.note(tiles, course)
        return found if is_kept else None

    def _iterated(self, start: Solution, has_time: Callable[[], bool]) -> Outcome:
        config = self._config
        if self._prior is not None:
            # Anew in each step: it begins in batches, which get further than all frames together.
            self._engine = refiner(self._prior, len(start.data), config.refine_iterations, self._seed, config.batch)
        elif self._engine is None:
            self._engine = make_engine(config.name, self._seed, config.batch)

        def in_time(epochs: int, solution: Solution) -> bool:
            if self._on_progress is not None:
                self._on_progress(solution.epochs, solution.mean_deviance)
            return has_time()

        outcome = iterate(self._engine, start, self._schedule(len(start.data)), in_time)
        self.iterations += len(outcome.history)
        if outcome.ended == "diverged":
            # Its memory is of the epochs that are not kept.
            self._engine = None
        return outcome

    def _schedule(self, frames: int) -> Schedule:
        config = self._config
        # Positions and fluxes once the image can tell them.
        later = config.refine_iterations // 4
        image = min(max(1, later), config.refine_iterations - 1)
        return Schedule(
            config.refine_iterations,
            probe_from=0 if config.refine_probe and frames >= PROBE_FRAMES else -1,
            positions_from=later if config.refine_positions else -1,
            flux_from=later if config.refine_flux else -1,
            outliers_from=-1 if config.refine_flux else image,
            tolerance=config.tolerance,
        )


def _falling(history: Sequence[float], gain: float) -> float:
    """Tell by which share each of the last iterations lowered the deviance.

    Of few iterations that is known from before and after only: what an engine meets on its way, frame by frame,
    is not what it ends with.

    Parameters
    ----------
    history : sequence of float
        Deviance after each iteration.
    gain : float
        Deviance after them over that before.
    """
    lately = history[-LATELY - 1 :]
    if len(history) > LATELY:
        return max(0.0, float(1 - (lately[-1] / lately[0]) ** (1 / LATELY)))
    return float(1 - gain ** (1 / max(len(history), 1)))


def _better(view: RegionView, predicted: Tensor, probe: Tensor, data: Diffraction) -> tuple[Tensor, bool]:
    """Choose the object that explains the frames better: as it was, continued by the prediction, or the prediction.

    Also whether it goes on from what was.
    """
    candidates = [torch.where(view.known, view.object, predicted), predicted]
    deviances = [mean_deviance(obj, probe, data) for obj in candidates]
    # What is not finite explains nothing.
    best = int(np.argmin(np.nan_to_num(deviances, nan=np.inf)))
    return candidates[best], best == 0
