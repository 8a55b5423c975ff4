"""The online reconstructor: network first where there is one, physics always, nothing twice.

The object is reconstructed in regions, which new frames make where they are and which alone they cost
(`tiles.Tiling`; a small object is one region). In each the work starts from the better of two objects: the
network's prediction from its frames with the probe as it is known now, or the object as it was, continued into
newly illuminated places. A few iterations of an engine, with the prediction as the prior (`refinement`), then refine
object and probe together, and count only if they explain the frames clearly better. The judge is always the Poisson
deviance of the frames. Without a network the prediction is vacuum, and what remains is the engine alone.

One probe serves all regions. Where no new frames wait, regions whose refinement still pays go on, and those are
predicted again that rest on a worse probe, the worst explained first. The assumed probe is checked beside all that
(`probe_checkin.live`), and again where the beam changes during the run. The frames since are an epoch of their own
then: the probe is theirs, and what earlier frames have shown stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.protocols import ComplexArray, Estimate, Frame
from bluesky_cdi.reconstruction.beside import Beside
from bluesky_cdi.reconstruction.calibration import Calibrating, HalfPixels, final_judge, live_judge
from bluesky_cdi.reconstruction.causes import CauseWatch
from bluesky_cdi.reconstruction.checkpoint_parts import CheckpointParts, Part
from bluesky_cdi.reconstruction.error_watch import ErrorWatch
from bluesky_cdi.reconstruction.estimate import estimate_of, progress_of, source_of
from bluesky_cdi.reconstruction.fine_tuning import RunTuner
from bluesky_cdi.reconstruction.frame_embedding import FrameEmbedding
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.frames import BAD_PIXEL_FRAMES, MeasuredFrames
from bluesky_cdi.reconstruction.probe_checkin.live import LiveCheckIn
from bluesky_cdi.reconstruction.probe_watch import ProbeWatch, Taken
from bluesky_cdi.reconstruction.quick_reading import QuickReading
from bluesky_cdi.reconstruction.region_solver import RegionSolver
from bluesky_cdi.reconstruction.region_work import RegionWork
from bluesky_cdi.reconstruction.resolution_watch import ResolutionWatch
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.targets import Targets
from bluesky_cdi.reconstruction.tiled_object import TiledObject

BoolArray = npt.NDArray[np.bool_]


class PtychoReconstructor:
    """Reconstruct object and probe from a growing set of frames: a `Reconstructor`.

    Parameters
    ----------
    grid : ObjectGrid
        Where the object is reconstructed.
    probe : ndarray, shape (modes, N, N), complex
        First guess; its photons are set from the first frames.
    config : ReconstructorConfig
    trained : Trained, optional
        The network; the engine alone without it.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels known beforehand; hot and dead pixels that the frames show are added.
    propagator : Propagator
        From the sample to the detector.
    device : torch.device
    seed : int
        Seed of the order of frames.
    check_in : LiveCheckIn, optional
        Checks the first guess; without it that is trusted.
    on_progress : callable, optional
        Called after each iteration with the iterations so far and the mean deviance.
    saturation : float, optional
        Counts from which on a pixel is saturated and left out of its frame.
    targets : Targets
        At what the scan stops, for which two halves of the frames are checked.
    notes : Mapping, optional
        What the source of its estimates says besides.
    calibration : Calibrating, optional
        What makes predicted errors true to size; by default the record of the network, or of engines.
    embedding : FrameEmbedding, optional
        What describes frames; by default what predicts errors.

    Raises
    ------
    GeometryError
        If the probe does not have the frames' shape.
    ConfigError, WeightsError
        If the uncertainty estimator that is configured needs what is not there, or the resolution is below two pixels.
    """

    def __init__(
        self,
        grid: ObjectGrid,
        probe: ComplexArray,
        config: ReconstructorConfig,
        *,
        trained: Trained | None = None,
        mask: BoolArray | None = None,
        propagator: Propagator = FAR_FIELD,
        device: torch.device | str = "cpu",
        seed: int = 0,
        check_in: LiveCheckIn | None = None,
        on_progress: Callable[[int, float], None] | None = None,
        saturation: float | None = None,
        targets: Targets = Targets(),  # noqa: B008 (frozen)
        notes: Mapping[str, Any] | None = None,
        calibration: Calibrating | None = None,
        embedding: FrameEmbedding | None = None,
    ) -> None:
        device, net = torch.device(device), trained.unrolled_net if trained else None
        _check(probe, grid.frame_px)
        self._config, self._device = config, device
        self._frames = MeasuredFrames(
            grid, device, config.background, saturation, propagator, config.memory_mb * 2**20, mask
        )
        self._metrics, self._probe = FrameMetrics(device, embedding), SharedProbe(probe, device)
        self._tiled = TiledObject.on(grid, config.window_px, device)
        self._watch, self._causes, self._beside = ProbeWatch(self._probe, check_in), CauseWatch(), Beside()
        self._solver = RegionSolver(config, net, mixes=not self._tiled.is_whole, seed=seed, on_progress=on_progress)
        judge = live_judge(config, trained, device, calibration)
        known, final = (self._frames, self._metrics, self._probe, self._solver), final_judge(config, trained)
        self._work = RegionWork(*known, judge, final, refine_positions=config.refine_positions)
        self.quick = None if net is None else QuickReading(*known[:3], net, lambda: self._work.judge)
        self._resolution = ResolutionWatch(targets.resolution_m, grid.pixel_m, config)
        others: dict[str, Part] = {"solver": self._solver, "check_in": self._watch, "causes": self._causes}
        self._parts = CheckpointParts(*known[:3], lambda: self._tiled, self._work, others)
        self._errors, self._tuner = ErrorWatch(targets.std_rad), RunTuner(seed, config.fine_tune_s)
        self._source = {**source_of(config, trained, seed, str(device), embedding), **(notes or {})}

    def add(self, frames: Sequence[Frame]) -> None:
        """Take frames in; see `MeasuredFrames.add` for the errors."""
        if not frames:
            return
        table = self._frames.table
        known, flux = len(table), table.flux.mean
        left = table.corner[table.rows_of(frame.seq_num for frame in frames)]
        rows = self._frames.add(frames)
        self._metrics.make_room(len(table))
        self._metrics.forget(rows)
        self._probe.follow_flux(flux, table.flux.mean)
        self._solver.forget()
        changed = known < BAD_PIXEL_FRAMES and self._frames.find_bad_pixels()
        dark, lit = self._frames.light.find_dark()
        self._metrics.forget(dark)
        self._beside.do("light", self._causes.look_for_light, self._frames)
        if self._probe.follow_light(self._frames.light.mean_photons(), found_dark=len(dark) > 0):
            self._tiled.scheduler.outdate()
        corner = table.corner
        self._tiled.touch(corner[rows], corner if changed else corner[rows], self._probe.dark_border())
        self._tiled.scheduler.touch(self._tiled.tiling.touched(np.concatenate([left, corner[dark], corner[lit]])))
        self._watch.begin(self._frames)

    @torch.no_grad()
    def step(self, budget_s: float, interrupted: Callable[[], bool] | None = None) -> Estimate | None:
        """Predict from new frames, refine, and judge, region by region.

        Parameters
        ----------
        budget_s : float
            No further iteration, and no further region, begins after this time; the regions that are left
            come first in the next step. Fine-tuning has a time of its own.
        interrupted : callable, optional
            Where it gives true, the time is over at once.

        Returns
        -------
        Estimate or None
            None before the first frame, and when neither new frames nor refinement change anything. Frames
            whose region was left for the next step are not in the estimate yet.
        """
        started, learning = time.monotonic(), bool(self._tiled.scheduler.waiting)
        is_interrupted = interrupted or (lambda: False)
        self._take_checked()
        due, checking = self._tiled.due(self._frames, self._metrics), self._watch.is_running
        if checking and not due:
            # The last frame is in, and all is done but for the check of the probe.
            self._watch.wait(is_interrupted)
            self._take_checked()
            due, started = self._tiled.due(self._frames, self._metrics), time.monotonic()
        if not due:
            return self._estimate(started) if checking or self._watch.has_news else None

        def has_time() -> bool:
            return time.monotonic() < started + budget_s and not is_interrupted()

        for region in self._tiled.tiling.regions(due):
            self._work.do(self._tiled, region, has_time)
            if is_interrupted():
                self._tiled.scheduler.reopen(region.tiles)
            if not has_time():
                break
        tunes = learning and self._tuner.is_wanted and not is_interrupted()
        if tunes and self._tuner.tune(self._solver, self._probe, self._frames):
            self._tiled.scheduler.outdate()
        if learning and not is_interrupted():
            rows, obj = self._metrics.reconstructed(self._frames.light.newest), self._tiled.map.object
            embedding, probe = self._metrics.embedding[rows], self._probe.modes
            self._beside.do("causes", self._causes.look, self._frames, rows, embedding, obj, probe, is_interrupted)
            self._watch.look(self._frames, rows, obj, not self._tiled.is_whole)
            self._beside.do("resolution", self._resolution.look, self._frames, rows, self._solver.net, probe, obj)
            self._beside.do("errors", self._errors.look, self._work, self._tiled, self._metrics, rows, is_interrupted)
        return self._estimate(started)

    @torch.no_grad()
    def read_quickly(self, budget_s: float) -> Estimate | None:
        """Read new frames alone, without refinement; see `QuickReader`."""
        started = time.monotonic()
        self._take_checked()
        return self._estimate(started) if self.quick and self.quick.read(self._tiled, budget_s) else None

    def settle(self, interrupted: Callable[[], bool]) -> bool:
        """Wait for the check of the probe, if one is being made, and go on with what it finds; see `LooksBeside`."""
        while self._watch.is_running and self._watch.wait(interrupted):
            self._take_checked()
        return not self._watch.is_running

    def give_up(self) -> None:
        """Take no further probe of a check; see `LooksBeside`."""
        self._watch.close()

    def estimate(self) -> Estimate | None:
        """Give what is known by now, without any work; None before the first frame is reconstructed."""
        return self._estimate(time.monotonic()) if self._metrics.known.any() else None

    def half_pixels(self) -> HalfPixels | None:
        """Reconstruct once more from each half of the frames, where most of them are; None where they are too few."""
        return self._work.half_pixels(self._tiled)

    def checked(self, estimate: Estimate, interrupted: Callable[[], bool] | None = None) -> Estimate:
        """Hold the predicted errors of the last estimate against its frames; see `Reconstructor`.

        What two halves of the frames agree on is noted too.
        """
        is_over = interrupted or (lambda: False)
        checked = self._work.checked(self._tiled, estimate, is_over)
        rows, obj = self._metrics.reconstructed(self._frames.light.newest), self._tiled.map.object
        known = self._frames, rows, self._solver.net, self._probe.modes, obj, self._work.halves
        self._beside.do("resolution", self._resolution.conclude, *known, is_over)
        return replace(checked, source={**checked.source, **self._resolution.source()})

    def checkpoint(self) -> Mapping[str, npt.NDArray[Any]]:
        """Give object, probe and what is known of the frames, as arrays named ``part/name``; not the counts."""
        return self._parts.checkpoint()

    def restore(self, state: Mapping[str, npt.NDArray[Any]], frames: Sequence[Frame]) -> None:
        """Go on from a checkpoint of one with the same grid; an engine's memory and tuning of a network begin anew.

        Parameters
        ----------
        state : Mapping
            What `checkpoint` gave.
        frames : sequence of Frame
            The run's; those that the checkpoint does not know are new. Those that only the checkpoint knows are
            forgotten, and the whole object is worked on again. It is restored into a reconstructor without frames.

        Raises
        ------
        WorkerError
            If the checkpoint's grid or probe has another shape, or its grid other tiles.
        """
        self.add(self._parts.restore(state, frames))
        self._watch.begin(self._frames)

    def close(self) -> None:
        """End a check of the probe that is being made."""
        self.give_up()

    def _take_checked(self) -> None:
        """Go on with the probe of a check that has ended, if it is better; predict anew from the frames that had it."""
        had = self._probe.modes
        if (taken := self._watch.take()) is Taken.NOTHING:
            return
        self._solver.forget()
        self._causes.begin()
        if taken is Taken.ONWARD:
            if self.quick is not None:
                self.quick.catch_up(self._tiled, self._watch.before, had)
            before = self._metrics.reconstructed(self._watch.before)
            self._tiled.begin_epoch(self._frames, before, had, self._probe.dark_border())
        self._metrics.assume_other_probe(self._frames.light.newest)
        self._tiled.scheduler.outdate()

    def _estimate(self, started: float) -> Estimate:
        seconds, table = time.monotonic() - started, self._frames.table
        source = {
            **self._source,
            **progress_of(self._solver, self._frames, refine_flux=self._config.refine_flux),
            "fine_tuning_steps": self._tuner.steps,
            "causes": self._causes.notes(len(self._frames)),
            "uncertainty": self._work.uncertainty(self._tiled),
            **self._watch.source(),
            **self._resolution.source(),
        }
        return estimate_of(table, self._metrics, self._tiled.map, self._probe, seconds=seconds, source=source)


def _check(probe: ComplexArray, side: int) -> None:
    """Refuse a probe that does not fit the frames."""
    if np.ndim(probe) != 3 or np.shape(probe)[1:] != (side, side):
        raise GeometryError(f"a probe must be (modes, {side}, {side}); it is {np.shape(probe)}")
