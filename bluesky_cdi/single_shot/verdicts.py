"""Results: status and R-factor of each start beside that of photon noise, their mean and its transfer function."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.evaluation.single_shot import conjugate_twin, phase_retrieval_transfer, resolve_ambiguities
from bluesky_cdi.single_shot.batch import Batch, r_factors
from bluesky_cdi.single_shot.constraints import MeasuredModulus
from bluesky_cdi.single_shot.settings import SingleShotSettings
from bluesky_cdi.single_shot.support import blur

logger = logging.getLogger(__name__)

# A start has diverged when its R-factor is this many times that of its random beginning, or that of darkness.
DIVERGED = 2.0
# `expected_noise_r` takes dark pixels' rates from noisy counts and may be wrong by so much.
NOISE_MARGIN = 1.1
# Share of the brightest illumination's modulus under which a transmission is not known.
ILLUMINATED = 1e-2
Status = Literal["converged", "stagnated", "diverged"]


@dataclass(frozen=True, eq=False)
class SingleShotResult:
    """Result of many random starts on one frame.

    Without a reference beam all starts are brought to the best one: moved, turned into their twin, their
    phase set.

    Attributes
    ----------
    objects : ndarray, shape (s, N, N), complex64
        Transmission of the sample where the illumination is known, else exit waves.
    supports : ndarray, shape (s, N, N), bool
        Support of each start, True where the sample is.
    r_factor : ndarray, shape (s,)
        ``sum |sqrt(rate) - sqrt(counts)| / sum sqrt(counts)`` over the valid pixels; NaN where diverged.
    noise_r_factor : float
        The same for a perfect reconstruction, expected of photon noise.
    status : tuple of str
        'converged', 'stagnated' or 'diverged', each start.
    best : int
        The start with the lowest R-factor.
    average : ndarray, shape (N, N), complex64
        Mean of the converged starts; of the best alone where none has.
    transfer : ndarray, shape (N // 2 + 1,)
        Phase retrieval transfer function of the starts in `average`; see `evaluation.phase_retrieval_transfer`.
    unmeasured_share : float
        Share of the average's photons that fall on pixels which are not valid: what no R-factor sees.
    history : ndarray, shape (cycles + 1, s)
        R-factor before the first cycle and after each.
    iterations : int
        Iterations made.
    """

    objects: npt.NDArray[np.complex64]
    supports: npt.NDArray[np.bool_]
    r_factor: npt.NDArray[np.float64]
    noise_r_factor: float
    status: tuple[Status, ...]
    best: int
    average: npt.NDArray[np.complex64]
    transfer: npt.NDArray[np.float64]
    unmeasured_share: float
    history: npt.NDArray[np.float64]
    iterations: int


def expected_noise_r(counts: Tensor, mask: Tensor) -> float:
    """Estimate the R-factor of a perfect reconstruction, from photon noise alone.

    The square root of a Poisson count scatters by 1/2, its mean absolute deviation is ``1 / sqrt(2 pi)``;
    below a fraction of a photon it is about the root of the rate, which is taken from the counts around.

    Parameters
    ----------
    counts : Tensor, shape (N, N)
        Photons.
    mask : Tensor, shape (N, N), bool
        True where a pixel is valid; in the order of `counts`. What others hold is not looked at.

    Returns
    -------
    float
        ``sum E|sqrt(count) - sqrt(rate)| / sum sqrt(counts)`` over the valid pixels.
    """
    # Neighbours that are not valid have no say: the blur is that of the valid pixels, over their share in it.
    photons, share = (
        blur(image, 1.5).clamp_min(0) for image in (torch.where(mask, counts, 0.0), mask.to(counts.dtype))
    )
    rate = photons[mask] / share[mask]
    deviation = rate.sqrt().clamp_max(1 / math.sqrt(2 * math.pi))
    return float(deviation.sum() / counts[mask].sqrt().sum())


def judged(
    batch: Batch,
    modulus: MeasuredModulus,
    illumination: Tensor | None,
    ambiguous: bool,
    history: list[npt.NDArray[np.float64]],
    settings: SingleShotSettings,
) -> SingleShotResult:
    """Judge each start and bring those that did not diverge to the best one.

    Parameters
    ----------
    batch : Batch
        All starts at their end.
    modulus : MeasuredModulus
        The frame.
    illumination : Tensor, shape (N, N), complex, optional
        Objects are exit waves over it; exit waves if absent.
    ambiguous : bool
        Whether the frame leaves place and twin open.
    history : list of ndarray, shape (s,)
        R-factors before the first cycle and after each.
    settings : SingleShotSettings
        Which R-factor counts as converged.
    """
    r_factor = r_factors(batch, modulus)
    noise = expected_noise_r(modulus.counts, modulus.mask)
    target = NOISE_MARGIN * noise + settings.converged_r
    status = tuple(_status(first, last, target) for first, last in zip(history[0], r_factor, strict=True))
    alive = np.array([s != "diverged" for s in status])
    r_factor = np.where(alive, r_factor, np.nan)
    best = int(np.nanargmin(r_factor)) if alive.any() else 0
    good = [i for i, s in enumerate(status) if s == "converged"] or [best]
    waves, supports = _comparable(batch, best, np.flatnonzero(alive), ambiguous)
    if not alive.all():
        logger.warning("%d of %d starts diverged; they are left out", int((~alive).sum()), len(status))
    objects = waves if illumination is None else _transmission(waves, illumination, batch.sample.surround is not None)
    return SingleShotResult(
        objects=objects,
        supports=supports,
        r_factor=r_factor,
        noise_r_factor=noise,
        status=status,
        best=best,
        average=objects[good].mean(axis=0),
        transfer=_transfer(waves[good], modulus),
        unmeasured_share=_unmeasured_share(waves[good].mean(axis=0), modulus),
        history=np.stack(history),
        iterations=batch.iterations,
    )


def _status(first: float, last: float, target: float) -> Status:
    # Written so that NaN counts as diverged; darkness has an R-factor of 1.
    if not last <= min(DIVERGED * first, 1 - 1e-6):
        return "diverged"
    return "converged" if last <= target else "stagnated"


def _comparable(
    batch: Batch, best: int, alive: npt.NDArray[np.intp], ambiguous: bool
) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.bool_]]:
    """Bring starts and supports to the best one; those that diverged are zero."""
    found = batch.sample.project(batch.waves).cpu().numpy()
    supports = batch.sample.support.expand(found.shape).cpu().numpy()
    waves, where = np.zeros_like(found), np.zeros_like(supports)
    for i in alive:
        waves[i], where[i] = found[i], supports[i]
        if ambiguous and i != best:
            resolved = resolve_ambiguities(found[i], found[best], scale="phase")
            waves[i] = resolved.object
            support = conjugate_twin(supports[i]) if resolved.twin else supports[i]
            where[i] = np.roll(support, [-round(s) for s in resolved.shift_px], axis=(0, 1))
        elif batch.sample.surround is None and i != best:
            waves[i] *= _phase_between(found[i], found[best])
    return waves, where


def _phase_between(wave: npt.NDArray[np.complex64], reference: npt.NDArray[np.complex64]) -> complex:
    """Return the phase factor of a wave to a reference, all that a near field of an isolated sample leaves open."""
    overlap = complex(np.vdot(wave, reference))
    return overlap / abs(overlap) if overlap else 1 + 0j


def _transmission(waves: npt.NDArray[np.complex64], illumination: Tensor, clear: bool) -> npt.NDArray[np.complex64]:
    """Divide waves by the illumination; where there is nearly none, put what surrounds the sample."""
    beam = illumination.cpu().numpy().astype(np.complex64)
    illuminated = np.abs(beam) > ILLUMINATED * np.abs(beam).max()
    return np.where(illuminated, waves / np.where(illuminated, beam, 1), 1 if clear else 0).astype(np.complex64)


def _transfer(waves: npt.NDArray[np.complex64], modulus: MeasuredModulus) -> npt.NDArray[np.float64]:
    detected = modulus.propagator.to_detector(modulus.detected(torch.from_numpy(waves).to(modulus.counts.device)))
    counts, mask = (modulus.propagator.to_detector(image).cpu().numpy() for image in (modulus.counts, modulus.mask))
    return phase_retrieval_transfer(detected.cpu().numpy(), counts, mask)


def _unmeasured_share(wave: npt.NDArray[np.complex64], modulus: MeasuredModulus) -> float:
    intensity = modulus.detected(torch.from_numpy(wave[None]).to(modulus.counts.device))[0].abs().square()
    whole = float(intensity.sum())
    return float(intensity[~modulus.mask].sum()) / whole if whole > 0 else 0.0
