"""Focusing optics: from a pupil, seen in angle, to the coherent field on the sample.

A field is the inverse FFT of its pupil, whose pixels are the angles ``theta`` (y, x) of the waves that make up
the field, ``wavelength / (N * pixel)`` apart: in the far field, the detector's pixels as the sample sees them.
Propagating from the focus by ``z`` multiplies the pupil by ``exp(-i pi z theta^2 / wavelength)`` (Fresnel
propagation; Goodman, Introduction to Fourier Optics, 3rd ed., eq. 4-21).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.forward import ifft2c
from bluesky_cdi.physics.geometry import Geometry


def pupil_step(geometry: Geometry) -> float:
    """Compute the angle between neighbouring pixels of the pupil, radians.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    """
    return geometry.wavelength_m / (geometry.frame_px * geometry.pixel_m)


def pupil_angles(geometry: Geometry) -> Tensor:
    """Compute the angle of each row or column of the pupil from the axis, radians, shape (N,), float64.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    """
    index = torch.arange(geometry.frame_px, dtype=torch.float64) - geometry.frame_px // 2
    return index * pupil_step(geometry)


def lens_field(
    geometry: Geometry,
    *,
    numerical_aperture: float,
    central_stop: float = 0.0,
    defocus_m: float = 0.0,
    aberrations: Mapping[int, float] | None = None,
) -> Tensor:
    """Compute the field of a round lens with a central stop, some distance from its focus.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    numerical_aperture : float
        Half opening angle, radians.
    central_stop : float
        Radius of the stop as a share of the aperture's.
    defocus_m : float
        Distance from the focus to the sample, metres, positive downstream.
    aberrations : Mapping of int to float, optional
        Noll index to coefficient, radians; see `aberration_phase`.

    Returns
    -------
    Tensor, shape (N, N), complex128

    Raises
    ------
    GeometryError
        If the aperture has no detector pixel, or is larger than the detector, or the defocused beam
        is wider than the frame's window on the sample.
    """
    angle = pupil_angles(geometry)
    squared = angle[:, None] ** 2 + angle[None, :] ** 2
    check_aperture(geometry, numerical_aperture, defocus_m)
    radius = squared.sqrt()
    aperture = _inside(geometry, numerical_aperture - radius)
    if central_stop:
        aperture = aperture * _inside(geometry, radius - central_stop * numerical_aperture)
    if float(aperture.sum()) == 0:
        raise GeometryError(
            f"the aperture between stop and edge covers no detector pixel (numerical aperture {numerical_aperture:.3g})"
        )
    phase = -math.pi * defocus_m * squared / geometry.wavelength_m
    if aberrations:
        phase = phase + aberration_phase(geometry, numerical_aperture, aberrations)
    return ifft2c(torch.polar(aperture, phase))


def mirror_pair_field(
    geometry: Geometry,
    *,
    numerical_aperture: tuple[float, float],
    defocus_m: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Compute the field of a Kirkpatrick-Baez pair: each mirror focuses one direction, at its own distance.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    numerical_aperture : tuple of float
        Half opening angles of the mirrors that focus along (y, x), radians.
    defocus_m : tuple of float
        Distances (y, x) from each mirror's line focus to the sample, metres, positive downstream; their difference
        is the astigmatism.

    Returns
    -------
    Tensor, shape (N, N), complex128

    Raises
    ------
    GeometryError
        As `lens_field`, for either direction.
    """
    angle = pupil_angles(geometry)
    lines = []
    for aperture, distance in zip(numerical_aperture, defocus_m, strict=True):
        check_aperture(geometry, aperture, distance)
        bright = _inside(geometry, aperture - angle.abs())
        if float(bright.sum()) == 0:
            raise GeometryError(f"a mirror's aperture covers no detector pixel (numerical aperture {aperture:.3g})")
        lines.append(torch.polar(bright, -math.pi * distance * angle**2 / geometry.wavelength_m))
    return ifft2c(lines[0][:, None] * lines[1][None, :])


def zernike(index: int, rho: Tensor, theta: Tensor) -> Tensor:
    """Evaluate the Zernike polynomial of a Noll index, orthonormal on the unit disc: its mean square there is 1.

    Parameters
    ----------
    index : int
        Noll's j, from 1 (Noll, J. Opt. Soc. Am. 66, 207 (1976), eqs. 1-2).
    rho, theta : Tensor, same shape
        Radius, and angle from the x axis (columns) towards the y axis (rows), radians.

    Returns
    -------
    Tensor, same shape

    Raises
    ------
    GeometryError
        If the index is below 1.
    """
    if index < 1:
        raise GeometryError(f"Zernike polynomials are numbered from 1 (Noll 1976); got {index}")
    degree = (math.isqrt(8 * index - 7) - 1) // 2
    # Within a degree the azimuthal orders ascend, each but 0 twice.
    place = index - degree * (degree + 1) // 2
    order = 2 * (place // 2) if degree % 2 == 0 else 2 * ((place - 1) // 2) + 1
    radial = torch.zeros_like(rho)
    for s in range((degree - order) // 2 + 1):
        factorials = [math.factorial(v) for v in (s, (degree + order) // 2 - s, (degree - order) // 2 - s)]
        radial = radial + (-1) ** s * math.factorial(degree - s) / math.prod(factorials) * rho ** (degree - 2 * s)
    if order == 0:
        return math.sqrt(degree + 1) * radial
    turn = torch.cos if index % 2 == 0 else torch.sin
    return math.sqrt(2 * (degree + 1)) * radial * turn(order * theta)


def aberration_phase(geometry: Geometry, numerical_aperture: float, aberrations: Mapping[int, float]) -> Tensor:
    """Compute the phase that aberrations give to a round pupil.

    Parameters
    ----------
    geometry : Geometry
        Its frame and sample pixel set the grid of the pupil.
    numerical_aperture : float
        Radius of the pupil, radians.
    aberrations : Mapping of int to float
        Noll index to coefficient: the root mean square phase over the full disc, radians. 2 and 3 move the
        focus along x and y; 4 is defocus, 5 and 6 astigmatism at 45 and 0 degrees, 7 and 8 coma along y and x,
        11 spherical aberration.

    Returns
    -------
    Tensor, shape (N, N), float64
        Radians; constant along each radius outside the pupil.
    """
    angle = pupil_angles(geometry)
    y, x = torch.meshgrid(angle, angle, indexing="ij")
    # Powers of the radius would explode outside the pupil; one pixel further reaches all of its soft edge.
    beyond = 1 + pupil_step(geometry) / numerical_aperture
    rho = (torch.hypot(y, x) / numerical_aperture).clamp_max(beyond)
    theta = torch.atan2(y, x)
    terms = [coefficient * zernike(index, rho, theta) for index, coefficient in aberrations.items()]
    return torch.stack([torch.zeros_like(rho), *terms]).sum(dim=0)


def check_aperture(geometry: Geometry, numerical_aperture: float, defocus_m: float) -> None:
    """Refuse what the frame can't sample: an aperture wider than it, a beam wider than its window.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    numerical_aperture : float
        Half opening angle, radians.
    defocus_m : float
        Distance from the focus to the sample, metres.

    Raises
    ------
    GeometryError
        If the aperture is larger than the detector, or the beam wider than the frame's window on the sample.
    """
    step = pupil_step(geometry)
    seen = geometry.frame_px // 2 * step
    if numerical_aperture > seen:
        far = geometry.propagation == "far"
        limit = "the detector" if far else "the angle that the sample pixel can hold"
        remedy = "use a larger detector or a shorter distance" if far else "use a smaller pixel"
        raise GeometryError(
            f"the aperture (numerical aperture {numerical_aperture:.3g}) is larger than {limit} "
            f"({seen:.3g} rad): {remedy}"
        )
    width, window = 2 * numerical_aperture * abs(defocus_m), geometry.frame_px * geometry.pixel_m
    if width > window:
        raise GeometryError(
            f"the beam is {width:.3g} m wide at a defocus of {defocus_m:.3g} m, wider than the frame's window on the "
            f"sample ({window:.3g} m): use less defocus or a wider window"
        )


def _inside(geometry: Geometry, depth: Tensor) -> Tensor:
    # A one-pixel soft edge stands for the share of a pixel that the aperture covers.
    return (depth / pupil_step(geometry) + 0.5).clamp(0, 1)
