"""Propagation and illumination of a single-shot experiment, from its geometry and a probe."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.propagators import FAR_FIELD, FresnelField, Propagator, propagator_of
from bluesky_cdi.protocols import ComplexArray


def single_shot_propagator(geometry: Geometry | None, fresnel_distance_m: float | None = None) -> Propagator:
    """Choose how waves go from the sample to the detector.

    Parameters
    ----------
    geometry : Geometry, optional
        Near field: the angular spectrum. Far field, or absent: a Fourier transform.
    fresnel_distance_m : float, optional
        Far field only: the distance z of `FresnelField`, metres, with ``1 / z = 1 / z1 + 1 / z2`` of the distances
        from the focus to the sample and from there to the detector, where the illumination comes without curvature.

    Raises
    ------
    GeometryError
        If a Fresnel distance comes without a geometry, in the near field, or is too short to be sampled.
    """
    if fresnel_distance_m is None:
        return FAR_FIELD if geometry is None else propagator_of(geometry)
    if geometry is None:
        raise GeometryError(
            "a Fresnel distance needs the energy, distance and detector pixel; the frames' file has none"
        )
    if geometry.propagation == "near":
        raise GeometryError("the geometry is a near field's, which holds its curvature; leave out the Fresnel distance")
    return FresnelField(geometry.frame_px, geometry.pixel_m, geometry.wavelength_m, fresnel_distance_m)


def scaled_illumination(
    probe: ComplexArray,
    counts: Tensor,
    mask: Tensor,
    propagator: Propagator,
    *,
    background: float = 0.0,
    photons: float | None = None,
) -> Tensor:
    """Bring a probe to the photons of one frame.

    Parameters
    ----------
    probe : ndarray, shape (1, N, N), complex64
        In any units.
    counts : Tensor, shape (N, N)
        The frame, in the detector's order.
    mask : Tensor, shape (N, N), bool
        True where a pixel is valid.
    propagator : Propagator
        From the sample to the detector.
    background : float
        Expected background, photons per pixel.
    photons : float, optional
        Photons of the whole beam in the exposure. If absent the beam gets as many on the valid pixels as the frame has
        there: exact for a sample that absorbs nothing.

    Returns
    -------
    Tensor, shape (N, N), complex64
        Illumination in sqrt(photons).

    Raises
    ------
    GeometryError
        If the probe has several modes or another shape than the frame, or too few photons are left to scale it.
    """
    if len(probe) != 1:
        raise GeometryError(
            f"a single frame needs one coherent mode of illumination; the file's probe has {len(probe)}"
        )
    if probe.shape[1:] != counts.shape:
        raise GeometryError(
            f"probe and frame must agree; they are {probe.shape[1:]} and {tuple(counts.shape)}. A probe belongs to the "
            "whole frame: don't crop, or give a probe for the cropped one."
        )
    beam = torch.from_numpy(probe[0]).to(counts.device)
    intensity = propagator.to_detector(propagator.forward(beam[None, None])[0, 0].abs().square())
    if photons is not None:
        share = photons / float(intensity.double().sum())
    else:
        light = float((counts[mask].double() - background).sum())
        expected = float(intensity[mask].double().sum())
        share = light / expected if expected > 0 else 0.0
    if not share > 0:
        raise GeometryError("the frame has no photons above the background to scale the probe by; state its photons")
    scaled: Tensor = beam * math.sqrt(share)
    return scaled
