"""What an agent learns from an estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bluesky_cdi.live.appraisal import structure_under_frames
from bluesky_cdi.physics.geometry import Canvas
from bluesky_cdi.protocols import Estimate


def points_of(estimate: Estimate) -> list[dict[str, Any]]:
    """Turn an estimate into the points that `Agent.ingest` takes, one for each frame.

    Each has ``seq_num``, ``y``, ``x`` (metres), ``embedding`` (d,), ``uncertainty`` (radians),
    ``structure`` (standard deviation of the object under the frame), ``novelty``, ``residual``.
    """
    probe = torch.from_numpy(np.asarray(estimate.probe))[None]
    canvas = Canvas(estimate.origin_m, estimate.object.shape, estimate.pixel_m, probe.shape[-1])
    corner, _ = canvas.place(estimate.positions_m)
    image = torch.from_numpy(np.asarray(estimate.object))[None]
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
        }
        for i in range(estimate.n_frames)
    ]
