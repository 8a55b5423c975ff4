"""Probes from physical parameters: a coherent field of `optics`, its modes, its photons."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.optics import lens_field, mirror_pair_field
from bluesky_cdi.physics.zone_plate import ZonePlate, zone_plate_field

# Of an evenly lit aperture this share lies within 0.975 of its radius; a refined probe has some noise beyond.
IN_APERTURE = 0.95


def focused_probe(
    geometry: Geometry,
    *,
    numerical_aperture: float,
    central_stop: float = 0.0,
    defocus_m: float = 0.0,
    aberrations: Mapping[int, float] | None = None,
    modes: int = 1,
    coherent_share: float = 1.0,
    photons: float = 1.0,
) -> Tensor:
    """Make the probe of a round lens with a central stop, some distance from its focus.

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
        Noll index of a Zernike polynomial to its coefficient, radians; see `optics.aberration_phase`.
    modes : int
        Number of incoherent modes, M.
    coherent_share : float
        Share of the photons in the first mode; the others share the rest, each half of the one before.
    photons : float
        ``sum |probe|^2`` over all modes.

    Returns
    -------
    Tensor, shape (M, N, N), complex64

    Raises
    ------
    GeometryError
        If the aperture has no detector pixel, or is larger than the detector, or the defocused beam
        is wider than the frame's window on the sample.
    """
    field = lens_field(
        geometry,
        numerical_aperture=numerical_aperture,
        central_stop=central_stop,
        defocus_m=defocus_m,
        aberrations=aberrations,
    )
    return partially_coherent(field, modes, coherent_share, photons)


def mirror_pair_probe(
    geometry: Geometry,
    *,
    numerical_aperture: tuple[float, float],
    defocus_m: tuple[float, float] = (0.0, 0.0),
    modes: int = 1,
    coherent_share: float = 1.0,
    photons: float = 1.0,
) -> Tensor:
    """Make the probe of a Kirkpatrick-Baez pair of mirrors; see `optics.mirror_pair_field`.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    numerical_aperture : tuple of float
        Half opening angles of the mirrors that focus along (y, x), radians.
    defocus_m : tuple of float
        Distances (y, x) from each mirror's line focus to the sample, metres, positive downstream.
    modes : int
        Number of incoherent modes, M.
    coherent_share : float
        Share of the photons in the first mode; the others share the rest, each half of the one before.
    photons : float
        ``sum |probe|^2`` over all modes.

    Returns
    -------
    Tensor, shape (M, N, N), complex64

    Raises
    ------
    GeometryError
        As `focused_probe`, for either direction.
    """
    field = mirror_pair_field(geometry, numerical_aperture=numerical_aperture, defocus_m=defocus_m)
    return partially_coherent(field, modes, coherent_share, photons)


def zone_plate_probe(
    geometry: Geometry,
    zone_plate: ZonePlate,
    *,
    defocus_m: float = 0.0,
    aberrations: Mapping[int, float] | None = None,
    modes: int = 1,
    coherent_share: float = 1.0,
    photons: float = 1.0,
) -> Tensor:
    """Make the probe of a zone plate with central stop and order-sorting aperture; see `zone_plate.zone_plate_field`.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    zone_plate : ZonePlate
        With its stop and aperture.
    defocus_m : float
        Distance from the first order's focus to the sample, metres, positive downstream.
    aberrations : Mapping of int to float, optional
        Noll index of a Zernike polynomial to its coefficient, radians.
    modes : int
        Number of incoherent modes, M.
    coherent_share : float
        Share of the photons in the first mode; the others share the rest, each half of the one before.
    photons : float
        ``sum |probe|^2`` over all modes.

    Returns
    -------
    Tensor, shape (M, N, N), complex64

    Raises
    ------
    GeometryError
        As `zone_plate.zone_plate_field`.
    """
    field = zone_plate_field(geometry, zone_plate, defocus_m=defocus_m, aberrations=aberrations)
    return partially_coherent(field, modes, coherent_share, photons)


def partially_coherent(field: Tensor, modes: int, coherent_share: float, photons: float) -> Tensor:
    """Turn a coherent field into a probe of several modes: `orthogonal_modes`, then `scale_modes`.

    Parameters
    ----------
    field : Tensor, shape (N, N), complex
        Coherent field on the sample.
    modes : int
        Number of incoherent modes, M.
    coherent_share : float
        Share of the photons in the first mode; the others share the rest, each half of the one before.
    photons : float
        ``sum |probe|^2`` over all modes.

    Returns
    -------
    Tensor, shape (M, N, N), complex64
    """
    return scale_modes(orthogonal_modes(field, modes), coherent_share, photons).to(torch.complex64)


def orthogonal_modes(first: Tensor, modes: int) -> Tensor:
    """Derive orthonormal modes from one: it, times y, times x, times y², y x, x², ... made orthogonal.

    For a Gaussian beam these are the Gauss-Hermite modes, the coherent modes of a Gaussian
    Schell-model source (Starikov and Wolf, J. Opt. Soc. Am. 72, 923 (1982)).

    Parameters
    ----------
    first : Tensor, shape (..., N, N), complex
        The mode that the others are derived from.
    modes : int
        M, at most 9.

    Returns
    -------
    Tensor, shape (..., M, N, N), complex
        Each of unit energy.
    """
    size = first.shape[-1]
    grid = (torch.arange(size, dtype=first.real.dtype, device=first.device) - size // 2) / size
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    orders = sorted(((i, j) for i in range(3) for j in range(3)), key=lambda p: (p[0] + p[1], p[1]))[:modes]
    basis: list[Tensor] = []
    for i, j in orders:
        wave = first * y**i * x**j
        # Gram and Schmidt, twice, which is enough (Giraud et al., Numer. Math. 101, 87 (2005)). On a GPU it
        # takes a hundredth of the time of a QR factorisation for each of many probes.
        for _ in range(2):
            for mode in basis:
                wave = wave - mode * (mode.conj() * wave).sum(dim=(-2, -1), keepdim=True)
        basis.append(wave / wave.abs().square().sum(dim=(-2, -1), keepdim=True).sqrt().clamp_min(1e-30))
    return torch.stack(basis, dim=-3)


def scale_modes(basis: Tensor, coherent_share: float, photons: float) -> Tensor:
    """Give orthonormal modes their photons: the first `coherent_share`, each other half of the one before.

    Parameters
    ----------
    basis : Tensor, shape (M, N, N), complex
        Each of unit energy.
    coherent_share : float
        Share of the photons in the first mode, if there are several.
    photons : float
        ``sum |probe|^2`` over all modes.

    Returns
    -------
    Tensor, shape (M, N, N), complex
    """
    modes = basis.shape[0]
    if modes == 1:
        return basis * math.sqrt(photons)
    rest = 0.5 ** torch.arange(modes - 1, dtype=torch.float64, device=basis.device)
    first = torch.tensor([coherent_share], dtype=torch.float64, device=basis.device)
    share = torch.cat([first, (1 - coherent_share) * rest / rest.sum()])
    return basis * (share * photons).sqrt().to(basis.real.dtype)[:, None, None]


def scaled_to(probe: Tensor, photons: float) -> Tensor:
    """Scale modes to a number of photons.

    Parameters
    ----------
    probe : Tensor, shape (M, N, N), complex
        In any units.
    photons : float
        The sum of ``|probe|^2`` over all modes afterwards.

    Returns
    -------
    Tensor, same shape
    """
    return probe * math.sqrt(photons / float(probe.abs().square().sum()))


def width_px(probe: Tensor) -> float:
    """Compute the width of a probe (M, N, N): diameter of the disc with the same second moment, pixels.

    Parameters
    ----------
    probe : Tensor, shape (M, N, N), complex
        Incoherent modes.
    """
    weight = probe.abs().square().sum(dim=0)
    weight = weight / weight.sum()
    index = torch.arange(probe.shape[-1], dtype=weight.dtype, device=weight.device)
    variance = sum(float((weight.sum(d) * (index - (weight.sum(d) * index).sum()) ** 2).sum()) for d in (0, 1))
    # A uniform disc of radius R has <y^2> + <x^2> = R^2 / 2.
    return 2 * math.sqrt(2 * variance)


def aperture_of(probe: Tensor, pixel_m: float, wavelength_m: float) -> float:
    """Compute the half opening angle of the cone that holds `IN_APERTURE` of a probe's photons, radians.

    Parameters
    ----------
    probe : Tensor, shape (M, N, N), complex
        Its modes.
    pixel_m : float
        Its pixel, metres.
    wavelength_m : float
        Of the beam, metres.
    """
    frequency = torch.fft.fftfreq(probe.shape[-1], pixel_m, dtype=torch.float64, device=probe.device)
    angle = wavelength_m * torch.hypot(frequency[:, None], frequency[None, :]).flatten()
    photons = torch.fft.fft2(probe.to(torch.complex128)).abs().square().sum(dim=0).flatten()
    order = angle.argsort()
    within = photons[order].cumsum(0)
    return float(angle[order][int(torch.searchsorted(within, IN_APERTURE * within[-1]))])


def propagated(probe: Tensor, pixel_m: float, wavelength_m: float, by_m: float) -> Tensor:
    """Compute a probe further along the beam, in the paraxial approximation; periodic in its window.

    Parameters
    ----------
    probe : Tensor, shape (..., N, N), complex
        Its modes.
    pixel_m : float
        Its pixel, metres.
    wavelength_m : float
        Of the beam, metres.
    by_m : float
        How far, metres, positive downstream.

    Returns
    -------
    Tensor, same shape
        With the same photons.
    """
    size = probe.shape[-1]
    frequency = torch.fft.fftfreq(size, pixel_m, dtype=torch.float64, device=probe.device)
    angle = -math.pi * wavelength_m * by_m * (frequency[:, None] ** 2 + frequency[None, :] ** 2)
    spectrum = torch.fft.fft2(probe.to(torch.complex128)) * torch.polar(torch.ones_like(angle), angle)
    moved: Tensor = torch.fft.ifft2(spectrum).to(probe.dtype)
    return moved


def resampled(probe: Tensor, pixel_m: float, to_pixel_m: float, to_px: int) -> Tensor:
    """Compute a probe on another grid, both with the beam in their middles, by its Fourier series.

    What lies outside the probe's own window is dark, and what varies faster than the new pixel can hold is left out.

    Parameters
    ----------
    probe : Tensor, shape (M, N, N), complex
        Its modes, in sqrt(photons).
    pixel_m, to_pixel_m : float
        Its pixel and the new one, metres.
    to_px : int
        Pixels along a side of the new grid.

    Returns
    -------
    Tensor, shape (M, to_px, to_px), complex
        With the same photons, but for what is left out.
    """
    size, double = probe.shape[-1], torch.float64
    frequency = (torch.arange(size, dtype=double) - size // 2) / (size * pixel_m)
    here = (torch.arange(size, dtype=double) - size // 2) * pixel_m
    there = (torch.arange(to_px, dtype=double) - to_px // 2) * to_pixel_m
    held = (frequency.abs() <= 0.5 / to_pixel_m).to(double)
    inside = (there.abs() <= 0.5 * size * pixel_m).to(double)
    analysis = torch.polar(held[:, None] / size, -2 * math.pi * frequency[:, None] * here)
    synthesis = torch.polar(inside[:, None] * torch.ones_like(frequency), 2 * math.pi * there[:, None] * frequency)
    along = (synthesis @ analysis).to(probe.device)  # (to_px, N)
    found = along @ probe.to(torch.complex128) @ along.T * (to_pixel_m / pixel_m)
    return found.to(probe.dtype)
