"""Fresnel zone plate, central stop and order-sorting aperture: the field on the sample.

All three are round and share one axis, so the field depends on the radius alone. Between planes it is
propagated by the Fresnel integral in its radial form (a Hankel transform), evaluated directly: the
converging wave, whose fringes no two-dimensional grid of reasonable size could hold, is sampled as finely as
it asks for, and only the field on the sample lands on the grid of the sample pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.forward import fft2c, ifft2c
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.optics import aberration_phase, check_aperture

# Amplitudes sin(m pi / 2) / (m pi) of the orders of opaque zones (Kirz, J. Opt. Soc. Am. 64, 301 (1974)):
# 25 % of the light goes straight through, 10.1 % to the focus. Orders left out hold at most 1.1 % each.
OPAQUE_ZONES = {0: 0.5, 1: 1 / math.pi, -1: 1 / math.pi, 3: -1 / (3 * math.pi)}
# Gauss-Legendre panels of 16 nodes hold at most three fringes: five nodes a fringe, where the rule converges fast.
NODES_PER_PANEL = 16
FRINGES_PER_PANEL = 3
# Bessel functions evaluated at once (128 MB of float64).
KERNEL_ELEMENTS = 2**24


@dataclass(frozen=True)
class OrderSortingAperture:
    """Pinhole that lets the focused order pass, and stops what goes around the central stop's shadow.

    Parameters
    ----------
    diameter_m : float
        Metres.
    distance_m : float
        Distance upstream of the sample, metres, positive.

    Raises
    ------
    GeometryError
        If either is not above 0.
    """

    diameter_m: float
    distance_m: float

    def __post_init__(self) -> None:
        if not self.diameter_m > 0:
            raise GeometryError(f"an order-sorting aperture needs a diameter above 0 m; it is {self.diameter_m!r}")
        if not self.distance_m > 0:
            raise GeometryError(
                "the order-sorting aperture is on the wrong side: its distance_m upstream of the sample must be "
                f"above 0; it is {self.distance_m!r}"
            )


@dataclass(frozen=True)
class ZonePlate:
    """Fresnel zone plate under a plane wave.

    Parameters
    ----------
    outermost_zone_m : float
        Width of the outermost zone, metres.
    diameter_m : float
        Outer diameter, metres.
    stop_diameter_m : float
        Diameter of the central stop, metres.
    sorting : OrderSortingAperture, optional
        Aperture that lets the first order pass; none if absent.
    orders : Mapping of int to float
        Amplitude of each diffraction order; its square is the order's efficiency.

    Raises
    ------
    GeometryError
        If the zone plate has no open zone, or no first order.
    """

    outermost_zone_m: float
    diameter_m: float
    stop_diameter_m: float = 0.0
    sorting: OrderSortingAperture | None = None
    orders: Mapping[int, float] = field(default_factory=OPAQUE_ZONES.copy)

    def __post_init__(self) -> None:
        if not 0 < 2 * self.outermost_zone_m < self.diameter_m:
            raise GeometryError(
                "a zone plate needs an outermost zone above 0 and far below its diameter; they are "
                f"{self.outermost_zone_m!r} m and {self.diameter_m!r} m"
            )
        if not 0 <= self.stop_diameter_m < self.diameter_m:
            raise GeometryError(
                f"the central stop ({self.stop_diameter_m!r} m) must be smaller than the zone plate "
                f"({self.diameter_m!r} m)"
            )
        if not self.orders.get(1):
            raise GeometryError(f"a zone plate needs an amplitude for its first order; orders has {dict(self.orders)}")

    def focal_length_m(self, wavelength_m: float) -> float:
        """Compute the first order's focal length, ``diameter * outermost zone / wavelength`` (Kirz 1974), metres.

        Parameters
        ----------
        wavelength_m : float
            Metres.
        """
        return self.diameter_m * self.outermost_zone_m / wavelength_m

    def numerical_aperture(self, wavelength_m: float) -> float:
        """Compute the half opening angle of the first order, ``wavelength / (2 * outermost zone)``, radians.

        Parameters
        ----------
        wavelength_m : float
            Metres.
        """
        return wavelength_m / (2 * self.outermost_zone_m)


def zone_plate_field(
    geometry: Geometry,
    zone_plate: ZonePlate,
    *,
    defocus_m: float = 0.0,
    aberrations: Mapping[int, float] | None = None,
) -> Tensor:
    """Compute the field of a zone plate on the sample.

    Order m leaves the open zones as ``amplitude_m * exp(-i pi m r^2 / (wavelength f))``. The sum of all orders
    is propagated to the order-sorting aperture, cut, and propagated to the sample; without one, straight to the
    sample. What misses the frame's window on the sample is lost, as it is from the model of a scan; the cut
    at the window's border shows in the far field as a faint cross.

    Aberrations are a phase on the angular spectrum at the sample. This is exact for the pupil's own
    aberrations while the aperture passes the whole first order, and geometrical optics where it cuts it.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    zone_plate : ZonePlate
        With its stop and aperture.
    defocus_m : float
        Distance from the first order's focus to the sample, metres, positive downstream.
    aberrations : Mapping of int to float, optional
        Noll index to coefficient, radians; see `optics.aberration_phase`.

    Returns
    -------
    Tensor, shape (N, N), complex128
        Relative to the plane wave on the zone plate.

    Raises
    ------
    GeometryError
        If the first order is larger than the detector or the frame's window, the aperture does not lie between
        zone plate and sample, or it is within the stop's shadow in the first order.
    """
    wavelength = geometry.wavelength_m
    focal_length = zone_plate.focal_length_m(wavelength)
    numerical_aperture = zone_plate.numerical_aperture(wavelength)
    check_aperture(geometry, numerical_aperture, defocus_m)
    sample_m = focal_length + defocus_m
    _check_sorting(zone_plate, focal_length, sample_m)
    index = torch.arange(geometry.frame_px, dtype=torch.float64) - geometry.frame_px // 2
    radius = torch.hypot(index[:, None], index[None, :]) * geometry.pixel_m
    # At an eighth of a pixel, the finest wave that the detector sees is splined to 1e-4 of itself.
    knots = torch.arange(0, float(radius.max()) + geometry.pixel_m, geometry.pixel_m / 8, dtype=torch.float64)
    radial = _on_sample(zone_plate, wavelength, focal_length, sample_m, knots)
    landed = torch.from_numpy(CubicSpline(knots.numpy(), radial.numpy())(radius.numpy()))
    if aberrations:
        phase = aberration_phase(geometry, numerical_aperture, aberrations)
        landed = ifft2c(fft2c(landed) * torch.polar(torch.ones_like(phase), phase))
    return landed


def fresnel_radial(
    source: Tensor, radius_m: Tensor, weight_m: Tensor, target_m: Tensor, wavelength_m: float, distance_m: float
) -> Tensor:
    """Propagate a field that depends on the radius alone, by the Fresnel integral.

    ``u(r) = -i k / z exp(i k r^2 / 2z) int_0^inf u(s) exp(i k s^2 / 2z) J0(k r s / z) s ds`` with
    ``k = 2 pi / wavelength`` (Goodman, Introduction to Fourier Optics, 3rd ed., eqs. 4-17 and 2-31); the
    phase ``k z`` is left out.

    Parameters
    ----------
    source : Tensor, shape (n,), complex128
        Field at the nodes of a quadrature.
    radius_m, weight_m : Tensor, shape (n,), float64
        Nodes and weights of the quadrature, metres.
    target_m : Tensor, shape (m,), float64
        Radii at which the field is wanted, metres.
    wavelength_m, distance_m : float
        Metres.

    Returns
    -------
    Tensor, shape (m,), complex128
    """
    k = 2 * math.pi / wavelength_m
    weighed = source * _unit(k * radius_m**2 / (2 * distance_m)) * radius_m * weight_m  # (n,)
    pairs = torch.view_as_real(weighed)  # (n, 2)
    rows = max(1, KERNEL_ELEMENTS // len(radius_m))
    summed = [
        torch.special.bessel_j0(k / distance_m * part[:, None] * radius_m[None, :]) @ pairs
        for part in torch.split(target_m, rows)
    ]
    integral = torch.view_as_complex(torch.cat(summed))  # (m,)
    return -1j * k / distance_m * _unit(k * target_m**2 / (2 * distance_m)) * integral


def radial_nodes(low_m: float, high_m: float, fringes_per_m: float) -> tuple[Tensor, Tensor]:
    """Compute nodes and weights of a composite Gauss-Legendre rule on [low, high].

    Parameters
    ----------
    low_m, high_m : float
        Metres.
    fringes_per_m : float
        Most fringes that the integrand has in a metre.

    Returns
    -------
    radius_m, weight_m : Tensor, shape (n,), float64
    """
    panels = 1 + math.ceil((high_m - low_m) * fringes_per_m / FRINGES_PER_PANEL)
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(NODES_PER_PANEL))
    half = (high_m - low_m) / (2 * panels)
    middle = low_m + half * (2 * torch.arange(panels, dtype=torch.float64) + 1)
    return (middle[:, None] + half * x).reshape(-1), (half * w).repeat(panels)


def _on_sample(
    zone_plate: ZonePlate, wavelength: float, focal_length: float, sample_m: float, target: Tensor
) -> Tensor:
    if zone_plate.sorting is None:
        return _from_zones(zone_plate, wavelength, focal_length, sample_m, target)
    gap, rim = zone_plate.sorting.distance_m, zone_plate.sorting.diameter_m / 2
    reach = sample_m - gap
    # Slopes of the wave that comes from any zone, and of the one that goes to any target.
    slope = (rim + zone_plate.diameter_m / 2) / reach + (rim + float(target.max())) / gap
    radius, weight = radial_nodes(0, rim, slope / wavelength)
    passed = _from_zones(zone_plate, wavelength, focal_length, reach, radius)
    return fresnel_radial(passed, radius, weight, target, wavelength, gap)


def _from_zones(
    zone_plate: ZonePlate, wavelength: float, focal_length: float, distance: float, target: Tensor
) -> Tensor:
    """Sum all orders, propagated from the open zones to the radii `target`."""
    rim = zone_plate.diameter_m / 2
    bend = max(abs(1 / distance - order / focal_length) for order in zone_plate.orders)
    slope = rim * bend + float(target.max()) / distance
    radius, weight = radial_nodes(zone_plate.stop_diameter_m / 2, rim, slope / wavelength)
    phase = -math.pi * radius**2 / (wavelength * focal_length)
    leaving = torch.stack([amplitude * _unit(order * phase) for order, amplitude in zone_plate.orders.items()])
    return fresnel_radial(leaving.sum(dim=0), radius, weight, target, wavelength, distance)


def _check_sorting(zone_plate: ZonePlate, focal_length: float, sample_m: float) -> None:
    if sample_m <= 0:
        raise GeometryError(
            f"the sample must be downstream of the zone plate, whose focal length is {focal_length:.4g} m; the defocus "
            f"puts it at {sample_m:.4g} m"
        )
    if zone_plate.sorting is None:
        return
    gap = zone_plate.sorting.distance_m
    if gap >= sample_m:
        raise GeometryError(
            f"the order-sorting aperture, {gap:.4g} m upstream of the sample, is on the wrong side of the zone plate, "
            f"which is {sample_m:.4g} m upstream: move it between zone plate and sample"
        )
    shadow = zone_plate.stop_diameter_m * abs(sample_m - gap - focal_length) / focal_length
    if zone_plate.sorting.diameter_m <= shadow:
        raise GeometryError(
            f"the order-sorting aperture ({zone_plate.sorting.diameter_m:.3g} m) is within the stop's shadow in the "
            f"first order ({shadow:.3g} m) and blocks the focus: use a larger one, or put it nearer to the focus"
        )


def _unit(phase: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phase), phase)
