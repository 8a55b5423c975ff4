"""Synthetic samples: seeded transmission functions for simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

ComplexImage = npt.NDArray[np.complex64]
FloatImage = npt.NDArray[np.float64]


def make_sample(kind: str, shape: tuple[int, int], seed: int = 0) -> ComplexImage:
    """Make a sample.

    Parameters
    ----------
    kind : {'star', 'particles', 'cells', 'blank'}
        A Siemens star with isolated particles around it; sparse particles on vacuum;
        dense smooth texture; vacuum.
    shape : tuple of int
        (Y, X) pixels.
    seed : int

    Returns
    -------
    ndarray, shape (Y, X), complex64
        Transmission function; vacuum is 1.

    Raises
    ------
    ValueError
        If the kind is not known.
    """
    if kind not in SAMPLES:
        raise ValueError(f"a sample is one of {', '.join(SAMPLES)}; got {kind!r}")
    thickness = SAMPLES[kind](shape, np.random.default_rng(seed))
    # Phase and absorption grow with thickness in the ratio of a light material at some keV:
    # a full-thickness feature shifts by 0.9 rad and absorbs 8 % of the amplitude.
    return np.asarray(np.exp(thickness * (-0.08 - 0.9j)), dtype=np.complex64)


def siemens_star(shape: tuple[int, int], radius_px: float, spokes: int = 16, hub: float = 0.12) -> FloatImage:
    """Thickness 0..1 of a Siemens star with a solid hub and one ring gap, centred, shape (Y, X)."""
    y, x, r = _polar_grid(shape)
    angle = np.arctan2(y, x)
    # Edges one pixel soft: distance to the spoke's edge along the circle.
    along = np.sin(spokes * angle) * r / spokes
    spoke = np.clip(along + 0.5, 0, 1)
    ring = np.clip(np.abs(r - 0.55 * radius_px) - 0.035 * radius_px + 0.5, 0, 1)
    star = np.maximum(spoke * ring, np.clip(hub * radius_px - r + 0.5, 0, 1))
    # One spoke is missing over its outer half, so that no flip or rotation maps the star on itself.
    gap = (np.abs(angle - math.pi / (2 * spokes)) < math.pi / spokes) & (r > 0.6 * radius_px)
    return np.asarray(star * np.clip(radius_px - r + 0.5, 0, 1) * ~gap)


def particles(
    shape: tuple[int, int], rng: np.random.Generator, number: int, radius_px: tuple[float, float]
) -> FloatImage:
    """Thickness 0..1 of spheres at random places, shape (Y, X)."""
    rows, columns = np.indices(shape)
    out = np.zeros(shape)
    for _ in range(number):
        radius = rng.uniform(*radius_px)
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        squared = 1 - ((rows - cy) ** 2 + (columns - cx) ** 2) / radius**2
        out = np.maximum(out, rng.uniform(0.5, 1) * np.sqrt(np.clip(squared, 0, None)))
    return out


def power_law_texture(shape: tuple[int, int], rng: np.random.Generator, exponent: float = 1.4) -> FloatImage:
    """Random field 0..1 whose amplitude spectrum falls as ``k ** -exponent``, shape (Y, X)."""
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    k = np.hypot(ky, kx)
    k[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * k**-exponent).real
    return np.asarray(1 / (1 + np.exp(-2 * (noise - noise.mean()) / noise.std())))


def _polar_grid(shape: tuple[int, int]) -> tuple[FloatImage, FloatImage, FloatImage]:
    y = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2 + np.zeros(shape)
    x = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2 + np.zeros(shape)
    return y, x, np.hypot(y, x)


def _star(shape: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    star = siemens_star(shape, radius_px=0.2 * min(shape), spokes=12)
    around = particles(shape, rng, 14, (0.012 * min(shape), 0.03 * min(shape)))
    return np.maximum(star, around)


def _particles(shape: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    return particles(shape, rng, 14, (0.015 * min(shape), 0.04 * min(shape)))


def _blank(shape: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    del rng
    return np.zeros(shape)


SAMPLES: dict[str, Callable[[tuple[int, int], np.random.Generator], FloatImage]] = {
    "star": _star,
    "particles": _particles,
    "cells": power_law_texture,
    "blank": _blank,
}
