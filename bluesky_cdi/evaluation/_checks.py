"""Checks of what metrics are given, and sums that several share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import ComplexArray, FloatArray

BoolArray = npt.NDArray[np.bool_]
Weight = npt.NDArray[Any]


def checked(
    estimate: ComplexArray, truth: ComplexArray, mask_or_weight: Weight
) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128], npt.NDArray[np.float64]]:
    """Check and return images and weight in double precision.

    Parameters
    ----------
    estimate, truth : ndarray, shape (Y, X), complex
        The images.
    mask_or_weight : ndarray, shape (Y, X)
        Pixels that count, or how much each does.

    Returns
    -------
    tuple of ndarray
        Estimate, truth (complex128) and weight (float64).

    Raises
    ------
    ValueError
        If they are of several shapes, an image is not finite, or no pixel counts.
    """
    image, target = np.asarray(estimate, np.complex128), np.asarray(truth, np.complex128)
    weight = np.asarray(mask_or_weight, np.float64)
    if image.ndim != 2 or image.shape != target.shape or image.shape != weight.shape:
        raise ValueError(
            "estimate, truth and weight must be images of one shape (Y, X); they are "
            f"{image.shape}, {target.shape} and {weight.shape}. `crop_to` cuts a truth to a grid."
        )
    if not (np.isfinite(image).all() and np.isfinite(target).all()):
        raise ValueError("estimate and truth must be finite everywhere; NaN or infinity came")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise ValueError("the mask or weight must be finite, nowhere negative and somewhere positive")
    return image, target, weight


def checked_real(
    image: FloatArray, truth: FloatArray, what: str, value: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Check and return real images in double precision.

    Parameters
    ----------
    image, truth : ndarray, shape (Y, X)
        The images.
    what : str
        What `value` is called in a message.
    value : float
        A peak or a range, in the unit of the images.

    Returns
    -------
    tuple of ndarray
        Image and truth, float64.

    Raises
    ------
    ValueError
        If an image is complex or not finite, the shapes differ, or `value` is not positive.
    """
    if np.iscomplexobj(image) or np.iscomplexobj(truth):
        raise ValueError("a real image is needed; a complex one came: compare np.abs and np.angle separately")
    x, y = np.asarray(image, np.float64), np.asarray(truth, np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"image and truth must be of one shape (Y, X); they are {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("image and truth must be finite everywhere; NaN or infinity came")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be finite and positive; it is {value}")
    return x, y


def weighted_energy(image: npt.NDArray[np.complex128], weight: npt.NDArray[np.float64]) -> float:
    """Sum the weighted squared modulus.

    Parameters
    ----------
    image : ndarray, shape (Y, X), complex128
        The image.
    weight : ndarray, shape (Y, X)
        How much each pixel counts.
    """
    return float(np.sum(weight * (image.real**2 + image.imag**2)))


def window_sums(values: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Sum over each square window, from a summed-area table.

    Parameters
    ----------
    values : ndarray, shape (Y, X)
        What is summed.
    side : int
        Pixels along a side of the window.

    Returns
    -------
    ndarray, shape (Y - side + 1, X - side + 1)
        By the window's first pixel.
    """
    table = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return np.asarray(table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side])
