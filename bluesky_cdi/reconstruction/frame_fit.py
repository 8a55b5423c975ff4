"""What a result expects of one of its frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.evaluation.fit import FittedFrame
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.protocols import Estimate


def fitted_frame(
    estimate: Estimate,
    geometry: Geometry,
    seq_num: int,
    counts: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_] | None = None,
) -> FittedFrame:
    """Compute what a result expects of one of its frames.

    Parameters
    ----------
    estimate : Estimate
        The final one, which tells where the frame lies.
    geometry : Geometry
        Of the frames that it was made from.
    seq_num : int
        The frame's number.
    counts : ndarray, shape (N, N)
        The frame.
    valid : ndarray, shape (N, N), bool, optional
        Pixels that count; all where it is absent.

    Raises
    ------
    FrameError
        If the result does not rest on that frame.
    GeometryError
        If the frame has another shape than the probe, or lies beyond the object.
    """
    rows = np.flatnonzero(estimate.frame_seq_nums == seq_num)
    if not len(rows):
        numbers = estimate.frame_seq_nums
        known = f"they are numbered {numbers.min()} to {numbers.max()}" if len(numbers) else "there are none"
        raise FrameError(f"the result does not rest on a frame {seq_num}: of its {len(numbers)} frames, {known}")
    side = estimate.probe.shape[-1]
    if counts.shape != (side, side):
        raise GeometryError(
            f"the result was made from frames of {side} x {side} pixels, and this one has {counts.shape}: give the "
            "section `detector` as it was for the result"
        )
    height, width = estimate.object.shape
    corner, shift = ObjectGrid(estimate.origin_m, (height, width), estimate.pixel_m, side).place(
        estimate.positions_m[rows]
    )
    propagator = propagator_of(geometry)
    frame = torch.from_numpy(np.asarray(counts, np.float32))[None]
    mask = None if valid is None else torch.from_numpy(np.asarray(valid, bool))
    data = Diffraction(
        propagator.to_working(frame),
        torch.from_numpy(corner),
        torch.from_numpy(shift).float(),
        (1, height, width),
        mask=None if mask is None else propagator.to_working(mask),
        propagator=propagator,
    )
    light = data.rate(
        data.probes(torch.from_numpy(estimate.probe)[None]), data.patches(torch.from_numpy(estimate.object)[None])
    )
    dark = float(estimate.source.get("settings", {}).get("background", 0.0))
    # The photons of a frame tell its flux: of all fluxes this one is the likeliest, but for the background's share.
    photons, expected = (float(mean_over_valid(each, data.valid)) for each in (data.counts, light))
    flux = max(0.0, photons - dark) / max(expected, 1e-30)
    rate = flux * light + dark
    deviance = mean_over_valid(poisson_deviance(rate, data.counts), data.valid)
    return FittedFrame(
        int(seq_num),
        frame[0].numpy(),
        propagator.to_detector(rate)[0].numpy(),
        np.ones((side, side), bool) if valid is None else np.asarray(valid, bool),
        flux,
        float(deviance),
    )
