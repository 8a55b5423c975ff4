"""A recorded scan reconstructed from its file, without a beamline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import FrameError
from bluesky_cdi.protocols import Estimate, Frame, RunInfo

if TYPE_CHECKING:
    from bluesky_cdi.io import Scan


def reconstruct(
    scan: Scan, config: Config, iterations: int, told: Callable[[int, Estimate], None] | None = None
) -> Estimate:
    """Reconstruct all frames of a scan.

    Parameters
    ----------
    scan : Scan
        Its geometry, mask and probe (if it has one) are used.
    config : Config
        Its sections `reconstructor` (which engine) and `probe` (number of modes, and the lens
        where the scan has no probe).
    iterations : int
        Most rPIE iterations; fewer where they stop explaining the frames better. 0: the network alone.
    told : callable, optional
        Called after each step with the iterations so far and the estimate.

    Returns
    -------
    Estimate

    Raises
    ------
    FrameError
        If the scan has no frames.
    GeometryError
        If probe or mask do not fit.
    """
    from bluesky_cdi.live.build import build_reconstructor

    each = min(config.reconstructor.refine_iterations, iterations)
    settings = config.reconstructor.model_copy(update={"refine_iterations": each})
    config = config.model_copy(update={"reconstructor": settings})
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    metadata = {"geometry": scan.geometry.as_metadata(), "window_m": [low.tolist(), high.tolist()]}
    side = scan.geometry.frame_px
    reconstructor = build_reconstructor(
        RunInfo(scan.name, 0, metadata, (side, side)), config, probe=scan.probe, mask=scan.mask
    )
    reconstructor.add([Frame(i + 1, scan.positions_m[i], np.asarray(scan.counts[i])) for i in range(len(scan))])
    estimate: Estimate | None = None
    for step in range(1, (iterations // each if each else 1) + 1):
        newer = reconstructor.step(np.inf)
        if newer is None:
            break
        estimate = newer
        if told is not None:
            told(step * each, estimate)
    if estimate is None:
        raise FrameError(f"{scan.name or 'the scan'} has no frames to reconstruct from")
    return estimate
