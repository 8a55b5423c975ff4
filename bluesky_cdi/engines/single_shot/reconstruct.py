"""From one frame to an image: many random starts as one batch, a schedule of updates, and a verdict on each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.engines.single_shot.constraints import MeasuredModulus, SampleConstraint, checked_max_phase
from bluesky_cdi.engines.single_shot.error_reduction import error_reduction
from bluesky_cdi.engines.single_shot.hybrid_input_output import hybrid_input_output
from bluesky_cdi.engines.single_shot.raar import raar
from bluesky_cdi.engines.single_shot.support import (
    ShrinkWrap,
    autocorrelation_support,
    blur,
    check_oversampling,
    shrink_wrap,
)
from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.metrics.single_shot import conjugate_twin, phase_retrieval_transfer, resolve_ambiguities
from bluesky_cdi.physics.propagators import FAR_FIELD, FarField, FresnelField, Propagator

logger = logging.getLogger(__name__)

# A start has diverged when its R-factor is this many times that of its random beginning, or that of darkness.
DIVERGED = 2.0
# `expected_noise_r` takes dark pixels' rates from noisy counts and may be wrong by so much.
NOISE_MARGIN = 1.1
# Random part of the transmission with which starts in a known beam begin.
SPECKLE = 0.5
# Share of the brightest illumination's modulus under which a transmission is not known.
ILLUMINATED = 1e-2
Status = Literal["converged", "stagnated", "diverged"]


@dataclass(frozen=True)
class Stage:
    """Some iterations of one update.

    Parameters
    ----------
    update : {'er', 'hio', 'raar'}
        Error reduction, hybrid input-output, relaxed averaged alternating reflections.
    iterations : int
    beta : float
        Of the last two.
    """

    update: Literal["er", "hio", "raar"]
    iterations: int
    beta: float = 0.9


@dataclass(frozen=True)
class SingleShotSettings:
    """The recipe.

    Parameters
    ----------
    cycle : tuple of Stage
        Repeated; a cycle ends best with error reduction, since its R-factor is judged then.
    cycles : int
        Most repetitions.
    finish : tuple of Stage
        After them, with the support as it is.
    shrink_wrap : ShrinkWrap, optional
        Absent: the support stays as given.
    guide_every : int
        Cycles after which every start is brought half the way to the best one, and into its support; 0:
        starts stay independent (after Chen et al., Phys. Rev. B 76, 064113 (2007), who take geometric
        means). Only where place and twin are open, which is what traps starts.
    max_phase_rad : float, optional
        Phases of the sample lie within plus and minus this, 0 to pi / 2; 0: real and not negative.
    converged_r : float
        A start has converged when its R-factor is no more than this above 1.1 times that of photon noise.
    tolerance, patience : float, int
        Stop when the lowest R-factor of no start has fallen by this share in the last `patience` cycles.
    """

    cycle: tuple[Stage, ...] = (Stage("hio", 80), Stage("raar", 60), Stage("er", 20))
    cycles: int = 10
    finish: tuple[Stage, ...] = (Stage("raar", 100, 0.8), Stage("er", 50))
    shrink_wrap: ShrinkWrap | None = field(default_factory=ShrinkWrap)
    guide_every: int = 2
    max_phase_rad: float | None = None
    converged_r: float = 0.005
    tolerance: float = 0.01
    patience: int = 6


@dataclass(frozen=True, eq=False)
class SingleShotResult:
    """What many random starts on one frame came to.

    Without a reference beam all starts are brought to the best one: moved, turned into their twin, their
    phase set.

    Attributes
    ----------
    objects : ndarray, shape (s, N, N), complex64
        Transmission of the sample where the illumination is known, else exit waves.
    supports : ndarray, shape (s, N, N), bool
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
        Phase retrieval transfer function of the starts in `average`; see `metrics.phase_retrieval_transfer`.
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
    history: npt.NDArray[np.float64]
    iterations: int


@dataclass(frozen=True, eq=False)
class _Batch:
    """All starts, underway."""

    waves: Tensor
    sample: SampleConstraint
    iterations: int = 0
    shrunk: int = 0


def reconstruct_single_shot(
    counts: Tensor,
    *,
    propagator: Propagator = FAR_FIELD,
    illumination: Tensor | None = None,
    surround: Literal["dark", "clear"] = "dark",
    support: Tensor | None = None,
    mask: Tensor | None = None,
    background: float = 0.0,
    starts: int = 20,
    seed: int = 0,
    settings: SingleShotSettings | None = None,
    told: Callable[[int, npt.NDArray[np.float64]], bool | None] | None = None,
) -> SingleShotResult:
    """Reconstruct a sample from one frame.

    Plane-wave imaging needs nothing but the frame. With a known beam around the sample (`surround`
    'clear') place, twin and phase are fixed, as in a hologram; in a curved beam that is Fresnel coherent
    diffraction imaging (Williams et al., Phys. Rev. Lett. 97, 025506 (2006)).

    Parameters
    ----------
    counts : Tensor, shape (N, N)
        Photons; zero frequency at ``[N // 2, N // 2]`` in the far field. Its device is computed on.
    propagator : Propagator
    illumination : Tensor, shape (N, N), complex, optional
        Wave on the sample, in units of sqrt(photons); without the curvature that a `FresnelField` adds.
    surround : {'dark', 'clear'}
        Around the support there is no wave, or the illumination.
    support : Tensor, shape (N, N), bool, optional
        True where the sample may be; from the autocorrelation if absent, in the far field only.
    mask : Tensor, shape (N, N), bool, optional
        True where a pixel is valid; in the order of `counts`. Others are free.
    background : float
        Expected background, photons per pixel.
    starts : int
    seed : int
    settings : SingleShotSettings, optional
    told : callable, optional
        Called after each cycle with the iterations made and the R-factors; False ends the cycles.

    Raises
    ------
    FrameError
        If the frame is not square, not finite, has negative counts, or no photon in a valid pixel.
    GeometryError
        If the support is empty or too large for the oversampling, or absent where nothing tells it;
        if the surround is clear and no illumination is known, or dark around a sample in a known or curved
        beam that is seen in the far field.
    ValueError
        If a setting is out of bounds.
    """
    settings = settings or SingleShotSettings()
    _check_settings(settings, starts)
    modulus = _measured(counts, mask, background, propagator)
    sample = _sample(modulus, support, illumination, surround, settings)
    batch = _Batch(_random_starts(modulus, sample, starts, seed), sample)
    ambiguous = isinstance(propagator, FarField) and surround == "dark"
    batch, history = _run_cycles(batch, modulus, settings, told, ambiguous)
    for stage in settings.finish:
        batch = _run_stage(batch, modulus, stage, None)
    return _judged(batch, modulus, illumination, ambiguous, history, settings)


def expected_noise_r(counts: Tensor, mask: Tensor) -> float:
    """R-factor of a perfect reconstruction, from photon noise alone.

    The square root of a Poisson count scatters by 1/2, its mean absolute deviation is ``1 / sqrt(2 pi)``;
    below a fraction of a photon it is about the root of the rate, which is taken from the counts around.

    Parameters
    ----------
    counts : Tensor, shape (N, N)
    mask : Tensor, shape (N, N), bool
    """
    rate = blur(counts, 1.5).clamp_min(0)
    deviation = rate.sqrt().clamp_max(1 / math.sqrt(2 * math.pi))
    return float((deviation * mask).sum() / (counts.sqrt() * mask).sum())


def _judged(
    batch: _Batch,
    modulus: MeasuredModulus,
    illumination: Tensor | None,
    ambiguous: bool,
    history: list[npt.NDArray[np.float64]],
    settings: SingleShotSettings,
) -> SingleShotResult:
    r_factor = _r_factors(batch, modulus)
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
        history=np.stack(history),
        iterations=batch.iterations,
    )


def _status(first: float, last: float, target: float) -> Status:
    # Written so that NaN counts as diverged; darkness has an R-factor of 1.
    if not last <= min(DIVERGED * first, 1 - 1e-6):
        return "diverged"
    return "converged" if last <= target else "stagnated"


def _comparable(
    batch: _Batch, best: int, alive: npt.NDArray[np.intp], ambiguous: bool
) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.bool_]]:
    """Starts and supports without what the frame leaves open, those that diverged zero."""
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
    """The global phase, all that a near field of an isolated sample leaves open."""
    overlap = complex(np.vdot(wave, reference))
    return overlap / abs(overlap) if overlap else 1 + 0j


def _transmission(
    waves: npt.NDArray[np.complex64], illumination: Tensor, clear: bool
) -> npt.NDArray[np.complex64]:
    """Waves over the illumination; where there is nearly none, what surrounds the sample."""
    beam = illumination.cpu().numpy().astype(np.complex64)
    lit = np.abs(beam) > ILLUMINATED * np.abs(beam).max()
    return np.where(lit, waves / np.where(lit, beam, 1), 1 if clear else 0).astype(np.complex64)


def _transfer(waves: npt.NDArray[np.complex64], modulus: MeasuredModulus) -> npt.NDArray[np.float64]:
    detected = modulus.propagator.to_detector(modulus.detected(torch.from_numpy(waves).to(modulus.counts.device)))
    counts, mask = (modulus.propagator.to_detector(image).cpu().numpy() for image in (modulus.counts, modulus.mask))
    return phase_retrieval_transfer(detected.cpu().numpy(), counts, mask)


def _check_settings(settings: SingleShotSettings, starts: int) -> None:
    checked_max_phase(settings.max_phase_rad)
    if starts < 1 or settings.cycles < 0:
        raise ValueError(f"starts must be 1 or more, cycles 0 or more; they are {starts} and {settings.cycles}")
    unknown = [s.update for s in (*settings.cycle, *settings.finish) if s.update not in _UPDATES]
    if unknown:
        raise ValueError(f"an update is one of {', '.join(_UPDATES)}; got {unknown[0]!r}")


def _measured(counts: Tensor, mask: Tensor | None, background: float, propagator: Propagator) -> MeasuredModulus:
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise FrameError(f"a square frame (N, N) is needed; its shape is {tuple(counts.shape)}")
    valid = torch.ones_like(counts, dtype=torch.bool) if mask is None else mask.to(counts.device, torch.bool)
    if valid.shape != counts.shape:
        raise FrameError(f"mask and frame must agree; they are {tuple(valid.shape)} and {tuple(counts.shape)}")
    # What an invalid pixel holds, NaN too, never meets arithmetic.
    photons = torch.where(valid, counts.to(torch.float32), 0.0)
    if not bool(torch.isfinite(photons).all()) or bool((photons < 0).any()):
        raise FrameError("counts must be finite and not negative; mask the pixels that are not")
    if not bool(photons.any()):
        raise FrameError("the frame has no photon in a valid pixel; nothing can be reconstructed from it")
    return MeasuredModulus(propagator.to_working(photons), propagator.to_working(valid), background, propagator)


def _sample(
    modulus: MeasuredModulus,
    support: Tensor | None,
    illumination: Tensor | None,
    surround: Literal["dark", "clear"],
    settings: SingleShotSettings,
) -> SampleConstraint:
    if surround == "clear" and illumination is None:
        raise GeometryError("a clear surround is the illumination; give `illumination`, or surround = 'dark'")
    curved = isinstance(modulus.propagator, FresnelField)
    if surround == "dark" and isinstance(modulus.propagator, FarField) and (curved or illumination is not None):
        raise GeometryError(
            "in darkness a beam's shape is lost in the unknown exit wave, and place and twin stay open: give the "
            "`illumination` with surround = 'clear', or no illumination and the far field's propagator"
        )
    if support is None:
        if not isinstance(modulus.propagator, FarField) or surround == "clear":
            raise GeometryError("only a far-field frame of an isolated sample tells its support; give `support`")
        support = autocorrelation_support(modulus.counts, modulus.mask)
    if support.shape != modulus.counts.shape:
        raise GeometryError(
            f"support and frame must agree; they are {tuple(support.shape)} and {tuple(modulus.counts.shape)}"
        )
    if illumination is not None and illumination.shape != modulus.counts.shape:
        raise GeometryError(
            f"illumination and frame must agree; they are {tuple(illumination.shape)} and {tuple(modulus.counts.shape)}"
        )
    check_oversampling(support, modulus.mask)
    where = support.to(modulus.counts.device, torch.bool)
    if illumination is None or surround == "dark":
        return SampleConstraint(where, None, settings.max_phase_rad)
    return SampleConstraint(where, illumination.to(modulus.counts.device, torch.complex64), settings.max_phase_rad)


def _random_starts(modulus: MeasuredModulus, sample: SampleConstraint, starts: int, seed: int) -> Tensor:
    """Measured moduli with random phases, seen through the sample's constraint; near the beam where it is known."""
    # On the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed(seed)
    if sample.surround is not None:
        speckle = torch.randn(starts, *modulus.counts.shape, generator=generator, dtype=torch.complex64)
        waves = sample.surround * (1 + SPECKLE * speckle.to(modulus.counts.device))
        return sample.project(modulus.project(sample.project(waves)))
    phase = 2 * math.pi * torch.rand(starts, *modulus.counts.shape, generator=generator)
    detected = torch.polar(modulus.counts.sqrt().expand(phase.shape), phase.to(modulus.counts.device))
    return sample.project(modulus.propagator.adjoint(detected[:, None])[:, 0])


def _run_cycles(
    batch: _Batch,
    modulus: MeasuredModulus,
    settings: SingleShotSettings,
    told: Callable[[int, npt.NDArray[np.float64]], bool | None] | None,
    ambiguous: bool,
) -> tuple[_Batch, list[npt.NDArray[np.float64]]]:
    history = [_r_factors(batch, modulus)]
    for cycle in range(settings.cycles):
        if ambiguous and settings.guide_every and cycle and cycle % settings.guide_every == 0:
            batch = _guided(batch, history[-1])
        for stage in settings.cycle:
            batch = _run_stage(batch, modulus, stage, settings.shrink_wrap)
        history.append(_r_factors(batch, modulus))
        if told is not None and told(batch.iterations, history[-1]) is False:
            break
        if _settled(history, settings):
            break
    return batch, history


def _guided(batch: _Batch, r_factor: npt.NDArray[np.float64]) -> _Batch:
    """Bring all starts half the way to the best of them, and into its support."""
    found = batch.sample.project(batch.waves).cpu().numpy()
    usable = [i for i, wave in enumerate(found) if np.isfinite(wave).all() and wave.any()]
    if not usable:
        return batch
    best = min(usable, key=lambda i: r_factor[i])
    led = np.repeat(found[best][None], len(found), axis=0)
    for i in usable:
        if i != best:
            led[i] = (found[best] + resolve_ambiguities(found[i], found[best], scale="phase").object) / 2
    support = batch.sample.support.expand(found.shape)[best]
    waves = torch.from_numpy(led).to(batch.waves.device)
    return replace(batch, waves=waves, sample=replace(batch.sample, support=support))


def _run_stage(batch: _Batch, modulus: MeasuredModulus, stage: Stage, shrink: ShrinkWrap | None) -> _Batch:
    update = _UPDATES[stage.update]
    for _ in range(stage.iterations):
        batch = replace(
            batch, waves=update(batch.waves, modulus, batch.sample, stage.beta), iterations=batch.iterations + 1
        )
        if shrink is not None and batch.iterations % shrink.every == 0:
            batch = _shrunk(batch, modulus, shrink)
    return batch


def _shrunk(batch: _Batch, modulus: MeasuredModulus, shrink: ShrinkWrap) -> _Batch:
    support = shrink_wrap(modulus.project(batch.waves), shrink.threshold, shrink.sigma_at(batch.shrunk))
    return replace(batch, sample=replace(batch.sample, support=support), shrunk=batch.shrunk + 1)


def _r_factors(batch: _Batch, modulus: MeasuredModulus) -> npt.NDArray[np.float64]:
    return modulus.r_factor(batch.sample.project(batch.waves)).double().cpu().numpy()


def _settled(history: list[npt.NDArray[np.float64]], settings: SingleShotSettings) -> bool:
    """Whether no start's lowest R-factor has fallen lately."""
    if len(history) <= settings.patience + 1:
        return False
    before = np.min(history[: -settings.patience], axis=0)
    lately = np.min(history[-settings.patience :], axis=0)
    return not bool((lately < (1 - settings.tolerance) * before).any())


_UPDATES: dict[str, Callable[[Tensor, MeasuredModulus, SampleConstraint, float], Tensor]] = {
    "er": lambda waves, modulus, sample, _: error_reduction(waves, modulus, sample),
    "hio": hybrid_input_output,
    "raar": raar,
}
