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
from bluesky_cdi.models.unrolled import UnrolledNet, in_bf16_where_native
from bluesky_cdi.physics.forward import Diffraction, intensity
from bluesky_cdi.physics.illuminated_frames import room_for_probes
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.reconstruction.calibration import Judge
from bluesky_cdi.reconstruction.calibration.conditions import Conditions
from bluesky_cdi.reconstruction.even_choice import evenly_spread
from bluesky_cdi.reconstruction.frame_light import CHUNK
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
    """Read frames that no step has seen yet: as many as time allows, spread evenly over where they are.

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
    judge : callable
        Gives what predicts errors by now.
    clock : callable
        Tells the time, seconds.

    Attributes
    ----------
    clock : callable
    """

    def __init__(
        self,
        frames: MeasuredFrames,
        metrics: FrameMetrics,
        probe: SharedProbe,
        net: UnrolledNet,
        judge: Callable[[], Judge],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frames, self._metrics, self._probe = frames, metrics, probe
        self._net, self._judge, self.clock = net, judge, clock
        # Rows from it on are of frames that came since the last reading.
        self._passed = 0
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
        waiting, started = self.waiting, self.clock()
        if not len(waiting):
            return False
        groups = self._groups(tiled, self._chosen(tiled, waiting, budget_s))
        for rows, box in groups:
            self._read_together(tiled, rows, box, self._probe.modes)
        took_s = (self.clock() - started) / (
            _of_object(groups) + self._of_frame() * sum(len(rows) for rows, _ in groups)
        )
        self._work_s = took_s if self._work_s is None else NEWEST * took_s + (1 - NEWEST) * self._work_s
        return True

    def catch_up(self, tiled: TiledObject, rows: IndexArray, probe: Tensor) -> None:
        """Read those of some frames that are in no image, with the probe that they had.

        Parameters
        ----------
        tiled : TiledObject
            The object.
        rows : ndarray, shape (n,)
            The frames.
        probe : Tensor, shape (1, M, N, N), complex64
            Modes.
        """
        unread = rows[~self._metrics.known[rows] & ~np.isin(rows, self._frames.light.dark)]
        for part in np.split(unread, range(CHUNK, len(unread), CHUNK)) if len(unread) else []:
            for group, box in self._groups(tiled, part):
                self._read_together(tiled, group, box, probe)

    def _chosen(self, tiled: TiledObject, waiting: IndexArray, budget_s: float) -> IndexArray:
        """Choose what is read of that which waits: the frames since the last reading, and others where there is room.

        Those that were passed over lie all over the object: with them a reading would be of all of it, each time.
        """
        new = waiting[waiting >= self._passed]
        self._passed = len(self._frames)
        room = self._room(self._groups(tiled, new), budget_s)
        if len(new) <= room / 2:
            new, room = waiting, self._room(self._groups(tiled, waiting), budget_s)
        return new[evenly_spread(self._frames.table.positions_m[new], room)]

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

    def _read_together(self, tiled: TiledObject, rows: IndexArray, box: Box, probe: Tensor) -> None:
        """Predict the object under some frames, stitch it in, and judge it."""
        data = self._frames.diffraction(rows, box)
        if len(rows) * probe.nbytes <= room_for_probes(probe.device):
            data = data.with_probes(probe)
        light = summed_illumination(probe, data)
        with in_bf16_where_native(probe.device):
            predicted = self._net(probe, data)[-1]
        obj, share = tiled.map.stitch(box, predicted, light)
        deviance, illumination = deviance_of(obj, probe, data), tiled.map.illumination[box.pixels]
        misfit = deviance.mean() - self._noise(rows, data, obj, probe)
        conditions = _conditions(probe, illumination, misfit)
        judge = self._judge()
        with in_bf16_where_native(probe.device):
            found = judge.estimator(obj, probe, data, illumination, deviance)
        std_rad = tiled.map.stitch_errors(box, judge.sized(found, conditions), share)
        self._metrics.put(rows, deviance, under_frames(std_rad.square()[None], probe, data.corner))
        everyone = torch.ones(len(rows), dtype=torch.bool, device=probe.device)
        self._metrics.describe(rows, found, probe, data, everyone)
        # A step may have written a part of that already, with these frames: they would be in it twice.
        tiled.scheduler.touch(tiled.tiling.touched(self._frames.table.corner[rows], self._probe.dark_border()))

    def _noise(self, rows: IndexArray, data: Diffraction, obj: Tensor, probe: Tensor) -> Tensor:
        """Compute the mean deviance that photon noise gives frames, from some; note what vacuum would give these."""
        some = np.arange(0, len(rows), -(-len(rows) // BOUNDED))
        part = data[torch.from_numpy(some).to(obj.device)]
        noise = noise_of(obj, probe, part)
        self._metrics.put_bounds(rows[some], deviance_of(torch.ones_like(obj), probe, part), noise)
        return noise.mean()


def _of_object(groups: list[tuple[IndexArray, Box]]) -> int:
    """Give the work that is the same however few frames there are, pixels."""
    return sum(UNET_WORK * math.prod(box.shape) for _, box in groups)


def _conditions(probe: Tensor, illumination: Tensor, misfit: Tensor) -> Conditions:
    """Give nearly what `conditions_of` computes frame by frame: for frames that lie evenly and misfit alike.

    Parameters
    ----------
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    illumination : Tensor, shape (1, Y, X)
        Photons summed on each pixel of the object.
    misfit : Tensor, shape ()
        Mean deviance of the frames beyond photon noise.
    """
    light = intensity(probe)[0]
    of_a_frame = light.square().sum() / light.sum()
    error = misfit * light.numel() / (4 * light.sum())
    return Conditions(illumination[0], illumination[0] / of_a_frame, error.expand_as(illumination[0]), 0)
