"""Keeping predicted errors true to size while a scan goes on that stops at one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.region_work import RegionWork
from bluesky_cdi.reconstruction.targets import are_enough
from bluesky_cdi.reconstruction.tiled_object import TiledObject
from bluesky_cdi.reconstruction.tiles import IndexArray

logger = logging.getLogger(__name__)

# Predicted errors below so many times the target are held against halves of the frames: the critic's are up to so much
# too large where many photons have made the object nearly perfect.
NEAR = 4.0


class ErrorWatch:
    """Holds predicted errors against halves of the frames now and then, once they are near what is wanted.

    Parameters
    ----------
    target_rad : float
        Median predicted phase error of the frames at which the scan stops; 0: nothing is ever looked at.
    """

    def __init__(self, target_rad: float) -> None:
        self._target_rad, self._looked_at = target_rad, 0

    def is_due(self, uncertainty_rad: np.ndarray) -> bool:
        """Tell whether frames of which these errors are predicted are to be looked at, radians."""
        if not self._target_rad or not are_enough(len(uncertainty_rad), self._looked_at):
            return False
        return bool(np.median(uncertainty_rad) <= NEAR * self._target_rad)

    def look(
        self,
        work: RegionWork,
        tiled: TiledObject,
        metrics: FrameMetrics,
        rows: IndexArray,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Give the predicted errors the size that halves of the frames tell, if that is due.

        Parameters
        ----------
        work : RegionWork
            Predicts errors.
        tiled : TiledObject
            The object.
        metrics : FrameMetrics
            Of the frames.
        rows : ndarray, shape (n,)
            Frames that the object rests on.
        interrupted : callable, optional
            Asked now and then whether to give up.
        """
        if not self.is_due(metrics.uncertainty[rows]):
            return
        factors = work.rescale(tiled, interrupted)
        if factors is None:
            return
        self._looked_at = len(rows)
        logger.info("two halves of %d frames make the predicted phase errors %.2f times", len(rows), factors["phase"])
