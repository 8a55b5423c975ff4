"""How much of a change of the model each frame asks for: scores, and how well each is known.

These are the scores and the Fisher information of the Poisson likelihood (Cox and Hinkley, Theoretical Statistics,
1974, section 9.3), but for the weights, which take some of the light for like the mean frame's. A frame that the model
explains but for photon noise has scores of mean zero whose covariance is known; ``information^-1 score`` is the change
that it asks for. Nothing is fitted: a change of the exit wave costs one transform more, a change of what the detector
counts none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import RATE_FLOOR, Diffraction, intensity
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.physics.likelihood import expected_deviance, mean_over_valid, poisson_deviance
from bluesky_cdi.physics.propagators import FAR_FIELD
from bluesky_cdi.protocols import FloatArray

# Share of a frame's light that is taken to be like the mean frame: else single photons in the dark would rule.
UNEXPLAINED = 0.1
# Directions besides those of the probe, in their order: the frame's place (pixels), its light (share), photons a pixel
# from elsewhere, and a pattern that is smeared (half the variance, detector pixels squared).
PLACE = ("row", "column")
DETECTED = ("flux", "background", "blur")


@dataclass(frozen=True, eq=False)
class Scores:
    """What frames ask for.

    Attributes
    ----------
    names : tuple of str
        Of the directions, p.
    score : ndarray, shape (n, p)
    information : ndarray, shape (n, p, p)
        What a change adds to the scores: ``score = information change``, on average.
    covariance : ndarray, shape (n, p, p)
        Of the scores, by photon noise.
    excess : ndarray, shape (n,)
        Deviance a valid pixel beyond what photon noise gives.
    noise : ndarray, shape (n,)
        What photon noise gives.
    """

    names: tuple[str, ...]
    score: FloatArray
    information: FloatArray
    covariance: FloatArray
    excess: FloatArray
    noise: FloatArray

    def __len__(self) -> int:
        return len(self.score)

    @property
    def are_finite(self) -> bool:
        """Whether all of them are numbers."""
        return bool(np.isfinite(self.score).all() and np.isfinite(self.information).all())

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Join those of several sets of frames, at least one, with the same directions."""
        joined = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("score", "information", "covariance", "excess", "noise")
        )
        return cls(parts[0].names, *joined)

    def of(self, *names: str) -> tuple[FloatArray, FloatArray]:
        """Give score (n, q) and information (n, q, q) of some directions.

        Parameters
        ----------
        *names : str
            Which.
        """
        which = [self.names.index(name) for name in names]
        return self.score[:, which], self.information[:, which][:, :, which]

    def asked(self, *names: str) -> tuple[FloatArray, FloatArray]:
        """Compute what all frames ask for together, (q,), and its covariance (q, q) from their scatter.

        Directions that are left out are taken to be as they are; so none is blamed for another that is among `names`.
        The covariance is that of a sandwich (White, Econometrica 50, 1 (1982)): frames may be unlike their model in
        other ways too.

        Parameters
        ----------
        *names : str
            The directions.
        """
        score, information = self.of(*names)
        inverse = _inverse(information.sum(axis=0))
        asked = inverse @ score.sum(axis=0)
        left = score - information @ asked
        scatter = left.T @ left * len(self) / max(len(self) - 1, 1)
        return asked, inverse @ scatter @ inverse

    def asked_each(self, *names: str) -> tuple[FloatArray, FloatArray]:
        """Compute what each frame asks for, (n, q), and its covariance (n, q, q) by photon noise.

        Parameters
        ----------
        *names : str
            The directions.
        """
        score, information = self.of(*names)
        which = [self.names.index(name) for name in names]
        inverse = _inverse(information)
        noise = inverse @ self.covariance[:, which][:, :, which] @ inverse
        return (inverse @ score[..., None])[..., 0], noise


@torch.no_grad()
def scores_of(obj: Tensor, probe: Tensor, data: Diffraction, changes: Mapping[str, Tensor]) -> tuple[Scores, Tensor]:
    """Compute how much of changes of the probe, of its place and of what is detected each frame asks for.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex64
        The object.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames; at least one.
    changes : Mapping of str to Tensor
        Derivatives of the probe (M, N, N), by name.

    Returns
    -------
    Scores
        In the directions of the changes, `PLACE` and `DETECTED`.
    Tensor, shape (2, N, N)
        What all frames count on their valid pixels, and what is expected of them; photons, in the propagator's working
        order.
    """
    flux = torch.ones(len(data), device=obj.device) if data.flux is None else data.flux
    mean = (_valid_counts(data).sum(dim=0) + 0.5) / flux.sum()
    size = frames_at_once(probe)
    parts = [
        _scores_of_part(obj, probe, part, changes, its_flux[:, None, None] * mean)
        for part, its_flux in zip(data.chunks(size), torch.split(flux, size), strict=True)
    ]
    score, information, covariance, excess, noise = (
        np.asarray(torch.cat([part[k] for part in parts]).cpu(), np.float64) for k in range(5)
    )
    sums = torch.stack([part[5] for part in parts]).sum(dim=0)
    return Scores((*changes, *PLACE, *DETECTED), score, information, covariance, excess, noise), sums


def _scores_of_part(
    obj: Tensor, probe: Tensor, part: Diffraction, changes: Mapping[str, Tensor], like_mean: Tensor
) -> tuple[Tensor, ...]:
    patches, probes = part.patches(obj), part.probes(probe)
    waves = part.propagator.forward(probes * patches[:, None], part.shift_px)
    lit = intensity(waves)
    rate = lit + part.background
    exits = [part.probes(change[None]) * patches[:, None] for change in changes.values()]
    exits += [_displaced(probe, part, patches, probes, axis) for axis in (0, 1)]
    slopes = [2 * _product(waves, part.propagator.forward(each, part.shift_px)) for each in exits]
    slopes += [lit, torch.ones_like(lit), _curvature(lit)]
    # Weights only: what is expected of a frame is its rate alone, so that a true model is asked for nothing.
    variance = ((1 - UNEXPLAINED) * rate + UNEXPLAINED * like_mean).clamp_min(RATE_FLOOR)
    valid = torch.ones_like(rate, dtype=torch.bool) if part.valid is None else part.valid.expand_as(rate)
    # What a pixel that isn't valid counts isn't looked at.
    stacked = torch.where(valid[:, None], torch.stack(slopes, dim=1), 0.0) / variance.sqrt()[:, None]  # (n, p, N, N)
    surprise = torch.where(valid, (part.counts - rate) * variance.rsqrt(), 0.0)
    score = (surprise[:, None] * stacked).sum(dim=(-2, -1))
    information = torch.einsum("npij,nqij->npq", stacked, stacked)
    stacked = stacked * (rate / variance).sqrt()[:, None]
    covariance = torch.einsum("npij,nqij->npq", stacked, stacked)
    noise = mean_over_valid(expected_deviance(rate), valid)
    excess = mean_over_valid(poisson_deviance(rate, part.counts), valid) - noise
    sums = torch.stack([torch.where(valid, each, 0.0).sum(dim=0) for each in (part.counts, rate)])
    return score, information, covariance, excess, noise, sums


def _displaced(probe: Tensor, part: Diffraction, patches: Tensor, probes: Tensor, axis: int) -> Tensor:
    """Compute by how much exit waves (n, M, N, N) change where the probe moves along an axis, a pixel."""
    exit_waves = -part.probes(_slope(probe, axis)) * patches[:, None]
    if part.propagator is FAR_FIELD:
        return exit_waves
    # Frames move along with the probe: the exit wave is put back, which no far field shows.
    return exit_waves + _slope(probes * patches[:, None], axis)


def _slope(fields: Tensor, axis: int) -> Tensor:
    """Differentiate fields (..., N, N) along rows (0) or columns (1), for each pixel."""
    frequency = torch.fft.fftfreq(fields.shape[-1], device=fields.device)
    ramp = 2j * torch.pi * (frequency[:, None] if axis == 0 else frequency[None, :])
    slope: Tensor = torch.fft.ifft2(torch.fft.fft2(fields) * ramp)
    return slope


def _product(waves: Tensor, others: Tensor) -> Tensor:
    return (waves.real * others.real + waves.imag * others.imag).sum(dim=1)


def _curvature(rate: Tensor) -> Tensor:
    """Compute what a little smearing adds: the sum of the four neighbours, less four times the pixel."""
    return sum((torch.roll(rate, step, axis) for axis in (-2, -1) for step in (-1, 1)), -4 * rate)


def _valid_counts(data: Diffraction) -> Tensor:
    return data.counts if data.valid is None else torch.where(data.valid, data.counts, 0.0)


def _inverse(information: FloatArray) -> FloatArray:
    """Invert informations (..., q, q); directions of which nothing is known are asked for nothing."""
    scale = np.sqrt(np.maximum(np.diagonal(information, axis1=-2, axis2=-1), 1e-30))
    scaled = information / scale[..., :, None] / scale[..., None, :]
    inverse = np.linalg.pinv(scaled, rcond=1e-6, hermitian=True)
    return np.asarray(inverse / scale[..., :, None] / scale[..., None, :])
