"""Checks of what metrics are given."""

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
    image, target = np.asarray(estimate, np.complex128), np.asarray(truth, np.complex128)
    weight = np.asarray(mask_or_weight, np.float64)
    if image.ndim != 2 or image.shape != target.shape or image.shape != weight.shape:
        raise ValueError(
            "estimate, truth and weight must be images of one shape (Y, X); they are "
            f"{image.shape}, {target.shape} and {weight.shape}. `crop_to` cuts a truth to a canvas."
        )
    if not (np.isfinite(image).all() and np.isfinite(target).all()):
        raise ValueError("estimate and truth must be finite everywhere; NaN or infinity came")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise ValueError("the mask or weight must be finite, nowhere negative and somewhere positive")
    return image, target, weight


def checked_real(
    image: FloatArray, truth: FloatArray, what: str, value: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
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
    return float(np.sum(weight * (image.real**2 + image.imag**2)))
