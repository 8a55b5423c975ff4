"""Synthetic samples: seeded transmission functions for simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import HC_EV_M
from bluesky_cdi.physics.materials import transmission
from bluesky_cdi.physics.patterns import (
    FloatImage,
    Shape,
    dead_leaves,
    facets,
    gratings,
    labyrinth,
    natural_scene,
    particles,
    power_law_texture,
    siemens_star,
    wiring,
)

ComplexImage = npt.NDArray[np.complex64]

# What a full thickness adds to the logarithm of the transmission. A light material at some keV shifts by 0.9 rad and
# absorbs 8 % of the amplitude; the others are n - 1 at 8 keV times i k times a thickness.
LIGHT = -0.08 - 0.9j
COPPER = 2 * (-0.021832 - 1.003119j)
"""2 µm of copper at 8 keV."""
SILICON = 20 * (-0.0072767 - 0.3107537j)
"""20 µm of silicon at 8 keV: one turn of the phase."""
GOLD = 4 * (-0.187224 - 1.917175j)
"""4 µm of gold at 8 keV: absorbs 78 % of the photons and turns the phase more than once around."""
PHASE_ONLY = -1.5j


@dataclass(frozen=True)
class SampleKind:
    """Structure and material of a kind of sample.

    Parameters
    ----------
    thickness : Callable
        Draws a map 0..1 of shape (Y, X) with a random generator.
    exponent : complex
        Logarithm of the transmission at thickness 1.
    substrate : complex
        Logarithm of the transmission of a uniform substrate.
    """

    thickness: Callable[[Shape, np.random.Generator], FloatImage]
    exponent: complex = LIGHT
    substrate: complex = 0


def make_sample(kind: str, shape: Shape, seed: int = 0, *, thickness: float = 1.0) -> ComplexImage:
    """Make the transmission function of a synthetic sample.

    Parameters
    ----------
    kind : str
        A key of `SAMPLES`:

        - 'star': a Siemens star with isolated particles around it;
        - 'particles': sparse spheres on vacuum;
        - 'cells': dense smooth texture;
        - 'blank': vacuum;
        - 'natural': power falling as ``k ** -2``, with edges;
        - 'leaves': discs of all sizes that hide each other;
        - 'lines': gratings of several pitches and directions;
        - 'circuit': layers of copper wires with vias, on silicon;
        - 'phase': winding bands that absorb nothing;
        - 'gold': gold crystals, absorbing strongly, with phases beyond one turn.
    shape : tuple of int
        (Y, X) pixels.
    seed : int
        Of what is random in the sample.
    thickness : float
        How many times thicker than the kind usually is.

    Returns
    -------
    ndarray, shape (Y, X), complex64
        Transmission function; vacuum is 1.

    Raises
    ------
    ValueError
        If the kind is not known.
    """
    made = _kind(kind)
    there = thickness * made.thickness(shape, np.random.default_rng(seed))
    return np.asarray(np.exp(there * made.exponent + made.substrate), dtype=np.complex64)


def material_sample(
    kind: str,
    shape: Shape,
    *,
    pixel_m: float,
    energy_ev: float,
    material: str,
    thickness_m: float,
    density_g_cm3: float | None = None,
    seed: int = 0,
) -> ComplexImage:
    """Make a sample of a stated material: the structure of a kind, with tabulated refraction and absorption.

    A substrate or a window is one more factor: multiply by `materials.transmission`.

    Parameters
    ----------
    kind : str
        As `make_sample`.
    shape : tuple of int
        (Y, X) pixels.
    pixel_m : float
        Sample pixel, metres: decides how thick a thin sample may be.
    energy_ev : float
        Photon energy, eV.
    material : str
        Chemical formula, or a name that xraydb knows.
    thickness_m : float
        Largest thickness.
    density_g_cm3 : float, optional
        Density, g/cm^3; the tables' own for elements and named materials.
    seed : int
        Of what is random in the sample.

    Returns
    -------
    ndarray, shape (Y, X), complex64
        ``exp(-i k delta t) exp(-k beta t)``; vacuum is 1.

    Raises
    ------
    ValueError
        If the kind is not known.
    ConfigError
        If the material, its density or the energy is not usable.
    GeometryError
        If the sample is negative or too thick to be described by one transmission function: thicker than the depth
        of field ``5.2 pixel^2 / wavelength`` (Tsai et al., Opt. Express 24, 29089 (2016)).
    """
    made = _kind(kind)
    depth = 5.2 * pixel_m**2 * energy_ev / HC_EV_M
    if thickness_m > depth:
        raise GeometryError(
            f"a sample of {thickness_m:.3g} m is thicker than the depth of field at this pixel and energy "
            f"({depth:.3g} m), so one transmission function can't describe it: make it thinner"
        )
    thickness = made.thickness(shape, np.random.default_rng(seed)) * thickness_m
    return transmission(thickness, energy_ev=energy_ev, material=material, density_g_cm3=density_g_cm3)


def _kind(kind: str) -> SampleKind:
    if kind not in SAMPLES:
        raise ValueError(f"a sample is one of {', '.join(SAMPLES)}; got {kind!r}")
    return SAMPLES[kind]


def _star(shape: Shape, rng: np.random.Generator) -> FloatImage:
    star = siemens_star(shape, radius_px=0.2 * min(shape), spokes=12)
    around = particles(shape, rng, 14, (0.012 * min(shape), 0.03 * min(shape)))
    return np.maximum(star, around)


def _particles(shape: Shape, rng: np.random.Generator) -> FloatImage:
    return particles(shape, rng, 14, (0.015 * min(shape), 0.04 * min(shape)))


def _blank(shape: Shape, rng: np.random.Generator) -> FloatImage:
    del rng
    return np.zeros(shape)


def _leaves(shape: Shape, rng: np.random.Generator) -> FloatImage:
    return dead_leaves(shape, rng, (max(1.5, 0.012 * min(shape)), 0.2 * min(shape)))


def _bands(shape: Shape, rng: np.random.Generator) -> FloatImage:
    return labyrinth(shape, rng, period_px=max(8.0, 0.07 * min(shape)))


def _crystals(shape: Shape, rng: np.random.Generator) -> FloatImage:
    return facets(shape, rng, 40, (0.03 * min(shape), 0.12 * min(shape)))


SAMPLES: dict[str, SampleKind] = {
    "star": SampleKind(_star),
    "particles": SampleKind(_particles),
    "cells": SampleKind(power_law_texture),
    "blank": SampleKind(_blank),
    "natural": SampleKind(natural_scene),
    "leaves": SampleKind(_leaves),
    "lines": SampleKind(gratings),
    "circuit": SampleKind(wiring, COPPER, SILICON),
    "phase": SampleKind(_bands, PHASE_ONLY),
    "gold": SampleKind(_crystals, GOLD),
}
