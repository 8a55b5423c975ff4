"""Refractive indices from tables, and the transmission of thin matter."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ConfigError, GeometryError
from bluesky_cdi.physics.geometry import HC_EV_M

# Chantler's tables reach further down, but below 30 eV matter is not the sum of free atoms that they assume.
ENERGY_RANGE_EV = (30.0, 4e5)


def refractive_index(material: str, energy_ev: float, density_g_cm3: float | None = None) -> complex:
    """Look up the refractive index ``1 - delta + i beta`` of a material for X-rays.

    From Chantler's tables of atomic scattering factors (J. Phys. Chem. Ref. Data 29, 597 (2000)) as
    the package xraydb holds them. `beta` counts absorbed photons alone, as is customary; scattered ones stay
    in the beam.

    Parameters
    ----------
    material : str
        Chemical formula (``'Fe2O3'``) or a name that xraydb knows (``'kapton'``).
    energy_ev : float
        Photon energy, eV.
    density_g_cm3 : float, optional
        Density, g/cm^3; xraydb's own for the elements and named materials.

    Returns
    -------
    complex

    Raises
    ------
    ConfigError
        If the material is not known, its density is not known or not positive, or the energy is outside the tables.
    """
    import xraydb

    low, high = ENERGY_RANGE_EV
    if not low <= energy_ev <= high:
        raise ConfigError(f"refractive indices are tabulated from {low:g} to {high:g} eV; the energy is {energy_ev!r}")
    found = xraydb.get_material(material)
    formula, density = (material, None) if found is None else found
    density = density if density_g_cm3 is None else density_g_cm3
    if not xraydb.validate_formula(formula):
        raise ConfigError(f"a material is a chemical formula or a name that xraydb knows; got {material!r}")
    if density is None or not 0 < density < math.inf:
        raise ConfigError(
            f"the density of {material!r} must be a finite number above 0 g/cm^3; it is {density!r}. "
            "Pass density_g_cm3: tables have it for elements and named materials only."
        )
    delta, beta, _ = xraydb.xray_delta_beta(formula, density, energy_ev)
    return complex(1 - delta, beta)


def transmission(
    thickness_m: npt.ArrayLike, *, energy_ev: float, material: str, density_g_cm3: float | None = None
) -> npt.NDArray[np.complex64]:
    """Compute the transmission of thin matter relative to vacuum, ``exp(-i k delta t) exp(-k beta t)``.

    ``k = 2 pi / wavelength``; the sign belongs to waves ``exp(+i k z)``, as everywhere in the package (Paganin,
    Coherent X-Ray Optics (2006), section 2.2, the projection approximation). Films one behind the other multiply.

    Parameters
    ----------
    thickness_m : array_like, shape (...)
        Projected thickness t, metres, not negative.
    energy_ev : float
        Photon energy, eV.
    material : str
        Chemical formula, or a name that xraydb knows.
    density_g_cm3 : float, optional
        Density, g/cm^3; xraydb's own for the elements and named materials.

    Returns
    -------
    ndarray, shape (...), complex64

    Raises
    ------
    ConfigError
        As `refractive_index`.
    GeometryError
        If a thickness is negative or not finite.
    """
    thickness = np.asarray(thickness_m, np.float64)
    if not (np.isfinite(thickness).all() and (thickness >= 0).all()):
        raise GeometryError("a thickness must be finite and not negative, in metres; at least one is not")
    index = refractive_index(material, energy_ev, density_g_cm3)
    k = 2 * math.pi * energy_ev / HC_EV_M
    return np.asarray(np.exp(1j * k * (index - 1) * thickness), np.complex64)
