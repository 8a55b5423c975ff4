"""From a frame and what is known of its experiment to a checked measured modulus and sample constraint."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.physics.propagators import FarField, FresnelField, Propagator
from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint
from bluesky_cdi.single_shot.settings import SingleShotSettings
from bluesky_cdi.single_shot.support import autocorrelation_support, check_oversampling


def measured_modulus(counts: Tensor, mask: Tensor | None, background: float, propagator: Propagator) -> MeasuredModulus:
    """Check a frame and bring it to the propagator's working order.

    Parameters
    ----------
    counts : Tensor, shape (N, N)
        Photons, in the detector's order.
    mask : Tensor, shape (N, N), bool, optional
        True where a pixel is valid; other pixels may hold anything.
    background : float
        Expected background, photons per pixel.
    propagator : Propagator
        From the sample to the detector.

    Raises
    ------
    FrameError
        If the frame is not square, not finite, has negative counts or no photon in a valid pixel, or the background is
        negative or not finite.
    """
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise FrameError(f"a square frame (N, N) is needed; its shape is {tuple(counts.shape)}")
    valid = torch.ones_like(counts, dtype=torch.bool) if mask is None else mask.to(counts.device, torch.bool)
    if valid.shape != counts.shape:
        raise FrameError(f"mask and frame must agree; they are {tuple(valid.shape)} and {tuple(counts.shape)}")
    # What an invalid pixel holds, NaN too, never meets arithmetic.
    photons = torch.where(valid, counts.to(torch.float32), 0.0)
    if not bool(torch.isfinite(photons).all()) or bool((photons < 0).any()):
        raise FrameError("counts must be finite and not negative; mask the pixels that are not")
    if not 0 <= background < math.inf:
        raise FrameError(f"the background must be a finite number of 0 or more photons per pixel; it is {background}")
    if not bool(photons.any()):
        raise FrameError("the frame has no photon in a valid pixel; nothing can be reconstructed from it")
    return MeasuredModulus(propagator.to_working(photons), propagator.to_working(valid), background, propagator)


def sample_constraint(
    modulus: MeasuredModulus,
    support: Tensor | None,
    illumination: Tensor | None,
    surround: Literal["dark", "clear"],
    settings: SingleShotSettings,
) -> SampleConstraint:
    """Combine what is known of the sample, and refuse what determines no sample.

    Parameters
    ----------
    modulus : MeasuredModulus
        The frame.
    support : Tensor, shape (N, N), bool, optional
        True where the sample may be; from the autocorrelation if absent.
    illumination : Tensor, shape (N, N), complex, optional
        On the sample, in sqrt(photons).
    surround : {'dark', 'clear'}
        Around the support there is no wave, or the illumination.
    settings : SingleShotSettings
        Whose bound on the phase the sample obeys.

    Raises
    ------
    GeometryError
        If the parts contradict each other or the frame, or the support is empty or too large for the oversampling.
    """
    _check_knowledge(modulus.propagator, illumination, surround)
    if support is None:
        if not isinstance(modulus.propagator, FarField) or surround == "clear":
            raise GeometryError("only a far-field frame of an isolated sample tells its support; give `support`")
        support = autocorrelation_support(modulus.counts, modulus.mask)
    for name, image in (("support", support), ("illumination", illumination)):
        if image is not None and image.shape != modulus.counts.shape:
            raise GeometryError(
                f"{name} and frame must agree; they are {tuple(image.shape)} and {tuple(modulus.counts.shape)}"
            )
    check_oversampling(support, modulus.mask)
    where = support.to(modulus.counts.device, torch.bool)
    if illumination is None or surround == "dark":
        return SampleConstraint(where, None, settings.max_phase_rad)
    if settings.shrink_wrap is not None:
        raise GeometryError(
            "shrink-wrap finds a sample in darkness, not in light: with surround = 'clear' the support stays as given. "
            "Set shrink_wrap to None."
        )
    return SampleConstraint(where, illumination.to(modulus.counts.device, torch.complex64), settings.max_phase_rad)


def _check_knowledge(propagator: Propagator, illumination: Tensor | None, surround: Literal["dark", "clear"]) -> None:
    if surround == "clear" and illumination is None:
        raise GeometryError("a clear surround is the illumination; give `illumination`, or surround = 'dark'")
    known = isinstance(propagator, FresnelField) or illumination is not None
    if surround == "dark" and isinstance(propagator, FarField) and known:
        raise GeometryError(
            "in darkness a beam's shape is lost in the unknown exit wave, and place and twin stay open: give the "
            "`illumination` with surround = 'clear', or no illumination and the far field's propagator"
        )
