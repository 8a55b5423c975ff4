"""Constraints on exit waves: their modulus at the detector, and the support and phase of the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator


@dataclass(frozen=True, eq=False)
class MeasuredModulus:
    """Set of exit waves whose intensities are the counts.

    Attributes
    ----------
    counts : Tensor, shape (N, N)
        Photons, in the propagator's working order.
    mask : Tensor, shape (N, N), bool
        True where a pixel is valid; in the propagator's working order. Others are free.
    background : float
        Expected background, photons per pixel.
    propagator : Propagator
        From the sample to the detector.
    """

    counts: Tensor
    mask: Tensor
    background: float = 0.0
    propagator: Propagator = FAR_FIELD

    def project(self, waves: Tensor) -> Tensor:
        """Give exit waves the measured modulus at the detector and leave them their phase.

        Without background this is the projection, and the full step down the amplitude likelihood
        ``sum (sqrt(rate) - sqrt(counts))^2``; with one, that same step.

        Parameters
        ----------
        waves : Tensor, shape (s, N, N), complex
            Exit waves, one a start.

        Returns
        -------
        Tensor, same shape
        """
        detected = self.detected(waves)
        if self.background:
            share = (self.counts / (detected.abs().square() + self.background)).sqrt()
            measured = detected * share
        else:
            # sgn is the phase factor, and 0 where a wave has no phase.
            measured = detected.sgn() * self.counts.sqrt()
        wanted = torch.where(self.mask, measured, detected)
        return self.propagator.adjoint(wanted[:, None])[:, 0]

    def detected(self, waves: Tensor) -> Tensor:
        """Propagate exit waves (s, N, N) to the detector, in working order.

        Parameters
        ----------
        waves : Tensor, shape (s, N, N), complex
            Exit waves, one a random start.
        """
        return self.propagator.forward(waves[:, None])[:, 0]

    def r_factor(self, waves: Tensor) -> Tensor:
        """Compute the misfit of amplitudes, ``sum |sqrt(rate) - sqrt(counts)| / sum sqrt(counts)`` over valid pixels.

        Parameters
        ----------
        waves : Tensor, shape (s, N, N), complex
            Exit waves, one a start.

        Returns
        -------
        Tensor, shape (s,)
        """
        rate = self.detected(waves).abs().square() + self.background
        measured = self.counts[self.mask].sqrt()
        return (rate[:, self.mask].sqrt() - measured).abs().sum(dim=-1) / measured.sum()


@dataclass(frozen=True, eq=False)
class SampleConstraint:
    """Convex set of exit waves that a sample can have.

    Attributes
    ----------
    support : Tensor, shape (s, N, N) or (N, N), bool
        True where the sample may be.
    surround : Tensor, shape (N, N), complex, optional
        The exit wave outside of the support; darkness if absent.
    max_phase_rad : float, optional
        Inside the support the phase lies within plus and minus this, at most pi / 2; 0: real and not
        negative. Free if absent. For an isolated sample in darkness only.
    """

    support: Tensor
    surround: Tensor | None = None
    max_phase_rad: float | None = None

    def project(self, waves: Tensor) -> Tensor:
        """Find the nearest exit waves that satisfy the constraint.

        Parameters
        ----------
        waves : Tensor, shape (s, N, N), complex
            Exit waves, one a start.

        Returns
        -------
        Tensor, same shape
        """
        inside = waves if self.max_phase_rad is None else within_phase(waves, self.max_phase_rad)
        outside = torch.zeros_like(waves) if self.surround is None else self.surround
        return torch.where(self.support, inside, outside)


def within_phase(waves: Tensor, max_phase_rad: float) -> Tensor:
    """Project complex numbers on the wedge ``|arg| <= max_phase_rad`` around the positive axis.

    Parameters
    ----------
    waves : Tensor, complex
        Of any shape.
    max_phase_rad : float
        At most pi / 2, where the wedge is convex.

    Returns
    -------
    Tensor, same shape
    """
    angle = waves.angle()
    edge = torch.polar(torch.ones_like(angle), angle.sgn() * max_phase_rad).to(waves.dtype)
    on_edge = (waves * edge.conj()).real.clamp_min(0) * edge
    return torch.where(angle.abs() <= max_phase_rad, waves, on_edge)


def check_max_phase(max_phase_rad: float | None) -> None:
    """Refuse a wedge that is not convex.

    Parameters
    ----------
    max_phase_rad : float or None
        None: phases are free.

    Raises
    ------
    ConfigError
        If the phase is not between 0 and pi / 2.
    """
    if max_phase_rad is not None and not 0 <= max_phase_rad <= math.pi / 2:
        raise ConfigError(
            f"max_phase_rad must lie between 0 and pi / 2, where the constraint is convex; it is {max_phase_rad}. "
            "Leave it out where the sample shifts the phase by more."
        )
