"""What an agent learns from an estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bluesky_cdi.evaluation.resolution import confirmed_resolution_m
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.uncertainty import structure_under_frames


def points_of(estimate: Estimate) -> list[dict[str, Any]]:
    """Turn an estimate into the points that `Agent.ingest` takes, one for each frame.

    Each has ``seq_num``, ``y``, ``x`` (metres), ``embedding`` (d,), ``uncertainty`` (radians),
    ``structure`` (standard deviation of the object under the frame), ``novelty``, ``residual``; where a resolution is
    wanted, ``resolution_m``, that of the whole image as its last checks confirm it.
    """
    probe = torch.from_numpy(np.asarray(estimate.probe))[None]
    grid = ObjectGrid(estimate.origin_m, estimate.object.shape, estimate.pixel_m, probe.shape[-1])
    corner, _ = grid.place(estimate.positions_m)
    image = torch.from_numpy(np.asarray(estimate.object))[None]
    resolution_m = confirmed_resolution_m(estimate.source)
    of_image = {} if resolution_m is None else {"resolution_m": resolution_m}
    structure = structure_under_frames(image, probe, torch.from_numpy(corner))
    return [
        {
            "seq_num": int(estimate.frame_seq_nums[i]),
            "y": float(estimate.positions_m[i, 0]),
            "x": float(estimate.positions_m[i, 1]),
            "embedding": estimate.embedding[i],
            "uncertainty": float(estimate.frame_uncertainty[i]),
            "structure": float(structure[i]),
            "novelty": float(estimate.novelty[i]),
            "residual": float(estimate.residual[i]),
            **of_image,
        }
        for i in range(estimate.n_frames)
    ]
