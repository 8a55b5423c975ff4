"""Watching the resolution that two halves of the frames agree on, while a scan goes on and at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.evaluation.resolution import KEY, ResolutionCheck, check_halves, resolution_notes
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.targets import are_enough
from bluesky_cdi.reconstruction.tiles import Box, IndexArray
from bluesky_cdi.reconstruction.uncertainty import HalfObjects, half_objects
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import reconstructed

logger = logging.getLogger(__name__)

# Of a larger scan the frames in the middle are looked at, so that a check never costs more than a pass of these.
MOST_FRAMES = 1024
# Iterations of LSQ-ML where no network makes a first object: each half begins in vacuum, for whatever it began with
# would be in both.
FROM_VACUUM = 12


class ResolutionWatch:
    """Reconstructs from two halves of the frames now and then, and correlates what comes out.

    Parameters
    ----------
    target_m : float
        The wanted resolution, metres; 0: none, and nothing is looked at before the end.
    pixel_m : float
        Sample pixel, metres.
    config : ReconstructorConfig
        How many iterations go after the network.

    Raises
    ------
    ConfigError
        If the target is below two pixels.
    """

    def __init__(self, target_m: float, pixel_m: float, config: ReconstructorConfig) -> None:
        if target_m and target_m < 2 * pixel_m:
            raise ConfigError(
                f"agent.target_resolution_m must be at least two sample pixels, {2 * pixel_m:.3g} m, beyond which no "
                f"ring lies; it is {target_m:.3g} m. Raise it, or choose a geometry with a smaller pixel."
            )
        self._target_m, self._pixel_m, self._config = target_m, pixel_m, config
        self._looked_at = 0
        self._checks: list[ResolutionCheck] = []
        self._why = ""

    def is_due(self, n_frames: int) -> bool:
        """Tell whether so many frames are to be looked at."""
        return bool(self._target_m) and are_enough(n_frames, self._looked_at)

    def look(
        self, frames: MeasuredFrames, rows: IndexArray, net: UnrolledNet | None, probe: Tensor, obj: Tensor
    ) -> None:
        """Check the resolution, if that is due.

        Parameters
        ----------
        frames : MeasuredFrames
            Of the run.
        rows : ndarray, shape (n,)
            Those that the object rests on and that have the probe.
        net : UnrolledNet or None
            Makes the halves' first objects.
        probe : Tensor, shape (1, M, N, N), complex64
            Its modes, as they are known by now.
        obj : Tensor, shape (1, Y, X), complex64
            The object, whose gauge the halves get.
        """
        if self.is_due(len(rows)):
            self._look(frames, rows, net, probe, obj, lambda: False)

    @torch.no_grad()
    def conclude(
        self, frames: MeasuredFrames, rows: IndexArray, net: UnrolledNet | None, probe: Tensor, obj: Tensor,
        halves: HalfObjects | None, interrupted: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Check the resolution at the end of a run, whether one is wanted or not.

        Parameters
        ----------
        frames, rows, net, probe, obj
            As in `look`.
        halves : HalfObjects or None
            Objects of two halves that are there already; None: they are made.
        interrupted : callable
            Whether to leave it out.
        """
        if self._checks and self._looked_at == len(rows):
            return
        if halves is not None:
            self._keep(self._checked(halves), halves.n_frames)
        elif interrupted():
            self._why = "the time for the end of the run was over, or a newer run came"
        else:
            self._look(frames, rows, net, probe, obj, interrupted)

    def _look(
        self, frames: MeasuredFrames, rows: IndexArray, net: UnrolledNet | None, probe: Tensor, obj: Tensor,
        interrupted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._looked_at = len(rows)
        corner = frames.table.corner[rows]
        if len(rows) > MOST_FRAMES:
            chosen = nearest_to_middle(corner, MOST_FRAMES)
            rows, corner = rows[chosen], corner[chosen]
        (top, left), (bottom, right) = corner.min(axis=0), corner.max(axis=0) + probe.shape[-1]
        box = Box((int(top), int(left)), (int(bottom), int(right)))
        started = time.process_time()
        halves = self._halves(frames.diffraction(rows, box), net, probe, obj[box.pixels], interrupted)
        if interrupted():
            self._why = "the time for the end of the run was over, or a newer run came"
            return
        self._keep(None if halves is None else self._checked(halves), len(rows), time.process_time() - started)

    def source(self) -> dict[str, Any]:
        """Give all checks for the source of an estimate, or why there are none; nothing before the first is due."""
        if not self._checks:
            return {KEY: {"says": self._why}} if self._why else {}
        return {KEY: resolution_notes(self._checks, self._target_m)}

    def _keep(self, check: ResolutionCheck | None, n_frames: int, seconds: float = 0.0) -> None:
        if check is None:
            self._why = f"halves of {n_frames} frames have too little in common"
            logger.info("halves of %d frames have too little in common for a ring correlation", n_frames)
            return
        self._checks.append(replace(check, seconds=seconds))
        logger.info(
            "two halves of %d frames agree down to %.3g nm (half-bit ring correlation)%s",
            check.n_frames,
            1e9 * check.resolution_m,
            f"; wanted are {1e9 * self._target_m:.3g} nm" if self._target_m else "",
        )

    def _halves(
        self, data: Diffraction, net: UnrolledNet | None, probe: Tensor, obj: Tensor, interrupted: Callable[[], bool]
    ) -> HalfObjects | None:
        vacuum = torch.ones_like(obj)
        iterations = FROM_VACUUM if net is None else self._config.refine_iterations

        def from_half(half: Diffraction) -> Tensor:
            return reconstructed(net, vacuum, probe, half, iterations, interrupted)

        return half_objects(data, probe, from_half, obj)

    def _checked(self, halves: HalfObjects) -> ResolutionCheck | None:
        first, second, both = (each.cpu().numpy() for each in (halves.first, halves.second, halves.both))
        measured = illuminated_mask(halves.light.sum(dim=0).cpu().numpy())
        return check_halves(first, second, both, measured, self._pixel_m, halves.n_frames)
