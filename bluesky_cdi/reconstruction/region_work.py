"""What is done with a region: its frames solved, and all that they say taken over into the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import deviance_of, noise_of
from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.calibration import HalfPixels, Judge, checked_estimate, half_pixels, judged_again
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.frames import MeasuredFrames, RegionFrames
from bluesky_cdi.reconstruction.region_solver import RegionSolver, Solved
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.tiled_object import TiledObject
from bluesky_cdi.reconstruction.tiles import Region
from bluesky_cdi.reconstruction.uncertainty import HalfObjects, UncertaintyEstimate, under_frames


class RegionWork:
    """Solve regions of an object, and write what is found: object, errors, probe, and what is known of the frames.

    Parameters
    ----------
    frames : MeasuredFrames
        Of the run.
    metrics : FrameMetrics
        What is known of them.
    probe : SharedProbe
        Of all regions.
    solver : RegionSolver
        Finds the object of a region.
    judge : Judge
        Predicts its errors.
    final : callable or None
        Gives what predicts them when the run has ended, and asks the given whether to come back; None: `judge` does.
    refine_positions : bool
        Whether refined positions are kept.

    Attributes
    ----------
    halves : HalfObjects or None
        Of the region with most frames, as the last errors of a run were predicted by them; None: they were not.
    """

    def __init__(
        self,
        frames: MeasuredFrames,
        metrics: FrameMetrics,
        probe: SharedProbe,
        solver: RegionSolver,
        judge: Judge,
        final: Callable[[Callable[[], bool]], Judge] | None,
        *,
        refine_positions: bool,
    ) -> None:
        self._frames, self._metrics, self._probe = frames, metrics, probe
        self._solver, self._refine_positions = solver, refine_positions
        self.judge, self._final = judge, final
        self.halves: HalfObjects | None = None

    def do(self, tiled: TiledObject, region: Region, has_time: Callable[[], bool]) -> None:
        """Solve a region, and take over what is found.

        Parameters
        ----------
        tiled : TiledObject
            The object.
        region : Region
            A part of it.
        has_time : callable
            Whether another iteration may begin.
        """
        scheduler = tiled.scheduler
        anew = scheduler.must_predict(region.tiles)
        frames = self._frames.of_region(region, tiled.tiling)
        if not len(frames.rows):
            tiled.map.clear(region)
            scheduler.forget(region.tiles)
            if not np.isin(tiled.tiling.home(self._frames.table.corner[self._frames.light.lit]), region.tiles).any():
                self._solver.courses.leave(region.tiles)
            return
        tiled.map.clear(region, but=frames.region)
        view = tiled.map.view(frames.region, self._probe.modes)
        # An object that was made under another probe can be a worse start than none.
        warm = not scheduler.are_outdated(region.tiles)
        solved = self._solver.solve(frames, view, self._probe, anew=anew, warm=warm, has_time=has_time)
        scheduler.done(region.tiles, settled=solved.refined is None)
        self._take_refined(tiled, solved, frames)
        if solved.is_new:
            self._write(tiled, solved, frames)

    def half_pixels(self, tiled: TiledObject, interrupted: Callable[[], bool] = lambda: False) -> HalfPixels | None:
        """Reconstruct once more from each half of the frames, in the region that has most of them.

        Parameters
        ----------
        tiled : TiledObject
            The object.
        interrupted : callable, optional
            Asked now and then whether to give up.

        Returns
        -------
        HalfPixels or None
            None where the frames are too few, or it was interrupted.
        """
        frames = self._of_fullest_region(tiled)
        data, obj = frames.data, tiled.map.object[frames.region.outer.pixels]
        kept, net = self._solver.courses.kept, self._solver.net
        probe, estimator = self._probe.modes, self.judge.estimator
        return half_pixels(obj, probe, data, net, estimator, kept, len(self._frames), interrupted=interrupted)

    def rescale(self, tiled: TiledObject, interrupted: Callable[[], bool]) -> Mapping[str, float] | None:
        """Give all predicted errors, those to come too, the size that halves of the frames tell where most of them are.

        Parameters
        ----------
        tiled : TiledObject
            The object.
        interrupted : callable
            Asked now and then whether to give up.

        Returns
        -------
        Mapping of str to float, or None
            What the errors of ``amplitude`` and ``phase`` are multiplied by. None where it was interrupted, no step has
            seen all of these frames yet, or nothing else predicts the errors of a finished run.
        """
        frames = self._of_fullest_region(tiled)
        if self._final is None or np.isin(frames.region.tiles, tiled.scheduler.waiting).any():
            return None
        judge = self._final(interrupted)
        found, _ = self._predicted(tiled, frames, judge, self._solver.courses.kept_in(frames.region.tiles))
        if interrupted():
            return None
        box = frames.region.outer.pixels
        lit = torch.from_numpy(illuminated_mask(tiled.map.illumination[box][0].cpu().numpy()))
        both = {
            "amplitude": (found.std_amplitude, tiled.map.std_amplitude[box]),
            "phase": (found.std_phase_rad, tiled.map.std_phase_rad[box]),
        }
        factors = {part: (now.cpu()[lit] / before.cpu()[lit]).median().item() for part, (now, before) in both.items()}
        self.judge = self.judge.scaled(factors)
        tiled.map.scale_errors(factors["amplitude"], factors["phase"])
        self._metrics.uncertainty *= factors["phase"]
        return factors

    def checked(self, tiled: TiledObject, estimate: Estimate, interrupted: Callable[[], bool]) -> Estimate:
        """Predict the errors of a run's object anew by halves of its frames, or hold those that are known against them.

        Parameters
        ----------
        tiled : TiledObject
            The object.
        estimate : Estimate
            Of it as it is now.
        interrupted : callable
            Asked now and then whether to leave them as they are.
        """
        if self._final is not None:
            return self._judged_again(tiled, estimate, self._final(interrupted), interrupted)
        if not self.judge.calibration.source["calibrated"]:
            return estimate
        pixels = None if interrupted() else self.half_pixels(tiled, interrupted)
        return estimate if interrupted() else checked_estimate(estimate, self.judge.calibration, pixels)

    def uncertainty(self, tiled: TiledObject) -> dict[str, Any]:
        """Say what predicts errors, whether they are calibrated, and how wide their intervals are."""
        return self._said(self.judge, tiled)

    def _said(self, judge: Judge, tiled: TiledObject) -> dict[str, Any]:
        widths = judge.calibration.intervals(tiled.map.illumination, self._solver.courses.kept)
        scaled = {"scale": dict(judge.scale)} if set(judge.scale.values()) != {1.0} else {}
        return {**judge.calibration.source, "intervals": widths, **scaled}

    def _of_fullest_region(self, tiled: TiledObject) -> RegionFrames:
        """Give the frames of the region that has most of them."""
        tiling, known = tiled.tiling, self._frames
        homes = np.bincount(tiling.home(known.table.corner[known.light.newest]), minlength=len(tiling))
        [region] = tiling.regions([int(homes.argmax())])
        return known.of_region(region, tiling)

    def _judged_again(
        self, tiled: TiledObject, estimate: Estimate, judge: Judge, interrupted: Callable[[], bool]
    ) -> Estimate:
        """Predict the errors of all regions anew; the estimate as it is, if interrupted."""
        had = tiled.map.std_amplitude.clone(), tiled.map.std_phase_rad.clone(), self._metrics.uncertainty.copy()
        is_whole, most, self.halves = False, 0, None
        try:
            for region in tiled.tiling.regions(range(len(tiled.tiling))):
                frames = self._frames.of_region(region, tiled.tiling)
                if len(frames.rows) and not interrupted():
                    found = self._put_errors(tiled, frames, judge, self._solver.courses.kept_in(region.tiles))
                    if len(frames.rows) > most:
                        most, self.halves = len(frames.rows), found.halves
            is_whole = not interrupted()
        finally:
            if not is_whole:
                # A run that goes on must not have errors of two kinds.
                tiled.map.std_amplitude, tiled.map.std_phase_rad, self._metrics.uncertainty = had
                self.halves = None
        if not is_whole:
            return estimate
        images, rows = tiled.map.checkpoint(), self._frames.table.rows_of(estimate.frame_seq_nums)
        errors = images["std_amplitude"], images["std_phase_rad"], self._metrics.uncertainty[rows]
        return judged_again(estimate, *errors, self._said(judge, tiled))

    def _take_refined(self, tiled: TiledObject, solved: Solved, frames: RegionFrames) -> None:
        """Keep the refined probe, positions and fluxes of a region."""
        if solved.refined is None:
            return
        self._probe.modes = solved.refined.probe
        # Vacuum, which is all that there is to predict without a network, is the same under any probe.
        if (self._solver.net is not None or not tiled.is_whole) and self._probe.has_moved():
            tiled.scheduler.outdate()
        table, data = self._frames.table, solved.refined.data[frames.own]
        if self._refine_positions:
            table.take_positions(data, frames.own_rows, frames.region.outer)
        flux = table.flux.mean
        self._metrics.forget_vacuum(table.flux.take(data, frames.own_rows))
        self._probe.follow_flux(flux, table.flux.mean)

    def _write(self, tiled: TiledObject, solved: Solved, frames: RegionFrames) -> None:
        """Write a region's core, and judge it: predicted errors, embeddings of its own frames, residual of all."""
        region = frames.region
        # Again: positions and fluxes may be refined, and with them which frames are whose.
        frames = self._frames.of_region(region, tiled.tiling, frames.rows)
        data, probe = frames.data, self._probe.modes
        tiled.map.write(tiled.map.view(region, probe), solved.object, summed_illumination(probe, data))
        found = self._put_errors(tiled, frames, self.judge, solved.iterations)
        self._metrics.describe(frames.own_rows, found, probe, data, frames.own)

    def _put_errors(
        self, tiled: TiledObject, frames: RegionFrames, judge: Judge, iterations: int
    ) -> UncertaintyEstimate:
        """Predict the errors of a region's object as it is now, and take them over; the residuals of its frames too."""
        found, deviance = self._predicted(tiled, frames, judge, iterations)
        variance = tiled.map.write_errors(frames.region, found).square()
        self._metrics.put(frames.rows, deviance, under_frames(variance[None], self._probe.modes, frames.data.corner))
        return found

    def _predicted(
        self, tiled: TiledObject, frames: RegionFrames, judge: Judge, iterations: int
    ) -> tuple[UncertaintyEstimate, Tensor]:
        """Predict the errors of a region's object as it is now; beside them the deviance of its frames."""
        rows, data, probe = frames.rows, frames.data, self._probe.modes
        obj, illumination = tiled.map.object[frames.region.outer.pixels], summed_illumination(probe, data)
        deviance = deviance_of(obj, probe, data)
        if len(new := np.flatnonzero(np.isnan(self._metrics.vacuum[rows]))):
            some = data[torch.from_numpy(new).to(obj.device)]
            vacuum, noise = deviance_of(torch.ones_like(obj), probe, some), noise_of(obj, probe, some)
            self._metrics.put_bounds(rows[new], vacuum, noise)
        noise = torch.from_numpy(self._metrics.noise[rows]).to(obj.device)
        return judge(obj, probe, data, illumination, deviance, noise, iterations), deviance
