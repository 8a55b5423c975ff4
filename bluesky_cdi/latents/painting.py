"""Values of frames as an image of the object: each where its light fell."""

from __future__ import annotations

import numpy as np

from bluesky_cdi.protocols import Estimate, FloatArray

# Light weaker than this share of the probe's peak doesn't paint: it is most of the area and next to none of the light.
LEAST_SHARE = 0.02


def paint_frames(estimate: Estimate, values: FloatArray) -> FloatArray:
    """Average values of frames on each pixel of the object, weighted with the light of each frame there.

    Parameters
    ----------
    estimate : Estimate
        Says where the frames lie, and what their light is.
    values : ndarray, shape (n, c)
        Of the frames, in the estimate's order.

    Returns
    -------
    ndarray, shape (Y, X, c), float32
        NaN where no light fell.
    """
    light = (np.abs(estimate.probe) ** 2).sum(axis=0)
    light = np.where(light >= LEAST_SHARE * light.max(), light / max(float(light.max()), 1e-30), 0.0)
    rows, columns = (slice(int(k[0]), int(k[-1]) + 1) for k in (np.flatnonzero(light.any(axis=a)) for a in (1, 0)))
    centre = np.rint((estimate.positions_m - np.asarray(estimate.origin_m)) / estimate.pixel_m).astype(np.int64)
    corner = centre - light.shape[0] // 2 + (rows.start, columns.start)
    light, shape = light[rows, columns], estimate.object.shape
    total, weight = np.zeros((*shape, values.shape[1])), np.zeros(shape)
    for (y, x), value in zip(corner, values, strict=True):
        # Refined positions may lie beyond the grid's border.
        part = light[max(0, -y) : max(0, shape[0] - y), max(0, -x) : max(0, shape[1] - x)]
        y, x = max(0, y), max(0, x)
        here = slice(y, y + part.shape[0]), slice(x, x + part.shape[1])
        total[here] += part[..., None] * value
        weight[here] += part
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(weight[..., None] > 0, total / weight[..., None], np.nan), np.float32)
