"""New frames in the image at once: the network reads them alone, once, and what it makes of them is stitched in.

A full step reads every frame of the regions that new frames touch, refines and judges: its cost grows with the scan.
This costs the new frames only. What it leaves is as good as one pass of the network from fewer frames can be; the tiles
stay marked as waiting, so that the next full step does what it would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import deviance_of, noise_of
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.reconstruction.calibration import Judge
from bluesky_cdi.reconstruction.even_choice import evenly_spread
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.tiled_object import TiledObject
from bluesky_cdi.reconstruction.tiles import Box, IndexArray, box_of
from bluesky_cdi.reconstruction.uncertainty import under_frames

# What the U-Nets make of a pixel of the object takes as long as the physics of so many pixels of frames
# (`canvas-small`, two modes, on a CPU). They take their time however few frames there are: a reading has as many as
# take as long.
UNET_WORK = 16
# Weight of the newest reading in the mean time.
NEWEST = 0.5
# Frames of a reading of which it is computed between what their deviance lies; the others are taken to be like them.
BOUNDED = 32


class QuickReading:
    """Read frames that no step has seen yet, as many as time allows, spread evenly over the object.

    Parameters
    ----------
    frames : MeasuredFrames
        Of the run.
    metrics : FrameMetrics
        What is known of them.
    probe : SharedProbe
        Stays as it is.
    net : UnrolledNet
        Predicts.
    judge : Judge
        Predicts errors.
    clock : callable
        Tells the time, seconds.
    """

    def __init__(
        self,
        frames: MeasuredFrames,
        metrics: FrameMetrics,
        probe: SharedProbe,
        net: UnrolledNet,
        judge: Judge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frames, self._metrics, self._probe = frames, metrics, probe
        self._net, self._judge, self._clock = net, judge, clock
        # Seconds a pixel of work.
        self._work_s: float | None = None

    @property
    def waiting(self) -> IndexArray:
        """Rows of the frames that are in no image yet, in the order of their numbers."""
        rows = self._frames.light.newest
        return rows[~self._metrics.known[rows]]

    def read(self, tiled: TiledObject, budget_s: float) -> bool:
        """Read what waits; of more frames than fit into the time, some from everywhere.

        Parameters
        ----------
        tiled : TiledObject
            The object.
        budget_s : float
            About how long it may take, seconds; it takes longer where else most of its work would not be of frames.

        Returns
        -------
        bool
            Whether there was anything to read.
        """
        waiting, started = self.waiting, self._clock()
        if not len(waiting):
            return False
        room = self._room(self._groups(tiled, waiting), budget_s)
        groups = self._groups(tiled, waiting[evenly_spread(self._frames.table.positions_m[waiting], room)])
        for rows, box in groups:
            self._read_together(tiled, rows, box)
        took_s = (self._clock() - started) / (
            _of_object(groups) + self._of_frame() * sum(len(rows) for rows, _ in groups)
        )
        self._work_s = took_s if self._work_s is None else NEWEST * took_s + (1 - NEWEST) * self._work_s
        return True

    def _groups(self, tiled: TiledObject, rows: IndexArray) -> list[tuple[IndexArray, Box]]:
        """Give frames that are read together, and the part of the grid that they lie on."""
        corner, side = self._frames.table.corner, tiled.grid.frame_px
        home = tiled.tiling.home(corner[rows])
        regions = tiled.tiling.regions(np.unique(home).tolist())
        groups = [rows[np.isin(home, region.tiles)] for region in regions]
        return [(group, box_of(corner[group], side, tiled.grid.shape)) for group in groups]

    def _room(self, groups: list[tuple[IndexArray, Box]], budget_s: float) -> int:
        """Tell how many frames of some groups a reading takes."""
        least = _of_object(groups)
        room = least if self._work_s is None else max(least, budget_s / self._work_s - least)
        return math.ceil(room / self._of_frame())

    def _of_frame(self) -> int:
        """Give the work of a frame, pixels."""
        return int(self._probe.modes.shape[-1]) ** 2

    def _read_together(self, tiled: TiledObject, rows: IndexArray, box: Box) -> None:
        """Predict the object under some frames, stitch it in, and judge it."""
        probe = self._probe.modes
        data = self._frames.diffraction(rows, box)
        light = summed_illumination(probe, data)
        predicted = self._net(probe, data)[-1]
        obj, share = tiled.map.stitch(box, predicted, light)
        deviance = deviance_of(obj, probe, data)
        found = self._judge(
            obj, probe, data, tiled.map.illumination[box.pixels], deviance, self._noise(rows, data, obj), 0
        )
        std_rad = tiled.map.stitch_errors(box, found, share)
        self._metrics.put(rows, deviance, under_frames(std_rad.square()[None], probe, data.corner))
        self._metrics.put_embedding(rows, found.embedding)

    def _noise(self, rows: IndexArray, data: Diffraction, obj: Tensor) -> Tensor:
        """Compute the deviance that photon noise gives some frames, and what vacuum would give them; (n,)."""
        some = np.arange(0, len(rows), -(-len(rows) // BOUNDED))
        part, probe = data[torch.from_numpy(some).to(obj.device)], self._probe.modes
        noise = noise_of(obj, probe, part)
        self._metrics.put_bounds(rows[some], deviance_of(torch.ones_like(obj), probe, part), noise)
        return noise.mean().expand(len(rows))


def _of_object(groups: list[tuple[IndexArray, Box]]) -> int:
    """Give the work that is the same however few frames there are, pixels."""
    return sum(UNET_WORK * math.prod(box.shape) for _, box in groups)
