"""Small picture of an object, for lists of results."""

from __future__ import annotations

import base64
import io

import numpy as np

from bluesky_cdi.evaluation.gauge import measured_area, phase_rad
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.viz.panels import BoolArray, bounds_of, limits_of

# Longest side; the smaller ones are for what does not compress, such as noise.
SIDES_PX = (160, 128, 96)
# Of the text that it becomes in metadata, in characters.
MOST_CHARACTERS = 16384
# Grey level of what is not measured, which is transparent.
CLEAR = 0


def thumbnail_png(estimate: Estimate) -> bytes:
    """Draw the phase of the measured area in grey, row 0 above, as a small PNG; what is not measured is transparent.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.

    Returns
    -------
    bytes
        Of at most `SIDES_PX[0]` pixels a side, and of at most `MOST_CHARACTERS` characters as base64.
    """
    covered = measured_area(estimate.coverage) & np.isfinite(estimate.object)
    rows, columns = bounds_of(covered)
    inside = covered[rows, columns]
    light = np.where(inside, np.exp(1j * phase_rad(estimate.object, covered)[rows, columns]), 0.0)
    drawn = b""
    for side in SIDES_PX:
        drawn = _png(light, inside, side)
        if len(base64.b64encode(drawn)) <= MOST_CHARACTERS:
            break
    return drawn


def _png(light: np.ndarray[tuple[int, ...], np.dtype[np.complexfloating]], inside: BoolArray, side: int) -> bytes:
    """Draw unit phasors, 0 where nothing is measured, at most so many pixels a side."""
    from PIL import Image

    share = min(1.0, side / max(inside.shape))
    shape = tuple(max(1, round(share * n)) for n in inside.shape)
    # Averaged as phasors, so that a phase that wraps is no edge.
    small = _reduced(light.real, shape) + 1j * _reduced(light.imag, shape)
    seen = _reduced(inside.astype(np.float32), shape) >= 0.5
    phase = np.angle(small)
    low, high = limits_of(np.ma.array(phase, mask=~seen))
    grey = np.rint(1 + 254 * np.clip((phase - low) / (high - low), 0, 1))
    image = Image.fromarray(np.where(seen, grey, CLEAR).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=CLEAR)
    return file.getvalue()


def _reduced(image: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    from PIL import Image

    rows, columns = shape
    small = Image.fromarray(image.astype(np.float32)).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(small)
