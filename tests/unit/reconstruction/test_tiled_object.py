"""Which tiles need work."""

from types import SimpleNamespace

import numpy as np
import torch

from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.reconstruction.tiled_object import TiledObject


class Frames:
    """Two of an earlier epoch in the first tile, and one of the newest there and in the second."""

    def __init__(self, tile_px):
        self.table = SimpleNamespace(corner=np.array([[8, 8], [8, 8], [8, 8], [8, tile_px + 8]]))
        self.light = SimpleNamespace(newest=np.array([2, 3]))

    def __len__(self):
        return 4


def test_what_earlier_epochs_leave_unexplained_asks_for_no_work():
    tiled = TiledObject.on(ObjectGrid((0.0, 0.0), (64, 512), 1e-8, 32), 128, torch.device("cpu"))
    frames = Frames(tiled.tiling.tile_px[1])
    first, second = tiled.tiling.home(frames.table.corner[2:]).tolist()
    assert first != second
    tiled.scheduler.touch([first, second])
    for newest in ([1.0, 2.0], [0.9, 1.8], [0.81, 1.62]):
        tiled.scheduler.done([first, second], settled=False)
        metrics = SimpleNamespace(residual=np.array([100.0, 100.0, *newest]))
        # The worst explained comes first, and a tenth less is a gain.
        assert tiled.due(frames, metrics) == [second, first]
