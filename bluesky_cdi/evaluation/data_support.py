"""A map of what in an object the data support, and what is there by a prior, or by noise, alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.protocols import ComplexArray

# Blur of local powers, pixels: some periods of what lies beyond a detector's aperture.
BLUR_PX = 3.0


def unsupported_share(
    supported: ComplexArray, unsupported: ComplexArray, illuminated: BoolArray
) -> npt.NDArray[np.float64]:
    """Compute which share of the contrast about each pixel no data support.

    It is ``|u|^2 / (|u|^2 + |s - mean(s)|^2)``, both powers blurred over a few pixels.

    Parameters
    ----------
    supported : ndarray, shape (Y, X), complex
        The part of the object that data support, s.
    unsupported : ndarray, shape (Y, X), complex
        The rest of it, u: what a prior has added, for example.
    illuminated : ndarray, shape (Y, X), bool
        Pixels that count.

    Returns
    -------
    ndarray, shape (Y, X), float64
        0 where all is supported, 1 where nothing is; NaN on pixels that don't count.

    Raises
    ------
    ValueError
        If no pixel counts, or shapes differ.
    """
    if supported.shape != unsupported.shape or supported.shape != illuminated.shape or not illuminated.any():
        raise ValueError(
            "both parts of an object and the mask of its illuminated pixels must have one shape, and the mask a pixel; "
            f"got {supported.shape}, {unsupported.shape}, {illuminated.shape} with {int(illuminated.sum())} pixels"
        )
    contrast = np.where(illuminated, supported - supported[illuminated].mean(), 0)
    power, more = (
        gaussian_filter(np.square(np.abs(each)).astype(np.float64), BLUR_PX)
        for each in (contrast, np.where(illuminated, unsupported, 0))
    )
    share = np.divide(more, power + more, out=np.zeros_like(power), where=power + more > 0)
    return np.where(illuminated, share, np.nan)
