"""From one frame to an image: many random starts as one batch, and a schedule of updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bluesky_cdi.physics.propagators import FAR_FIELD, FarField, Propagator
from bluesky_cdi.single_shot.batch import Batch, given_starts, guided, r_factors, random_starts
from bluesky_cdi.single_shot.constraints import MeasuredModulus
from bluesky_cdi.single_shot.problem import measured_modulus, sample_constraint
from bluesky_cdi.single_shot.settings import UPDATES, SingleShotSettings, Stage, check_settings
from bluesky_cdi.single_shot.support import ShrinkWrap, shrink_wrap
from bluesky_cdi.single_shot.verdicts import SingleShotResult, judged

# Called after each cycle with the iterations made and the R-factor of each start, shape (s,).
OnProgress = Callable[[int, npt.NDArray[np.float64]], None]


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
    first: Tensor | None = None,
    settings: SingleShotSettings | None = None,
    on_progress: OnProgress | None = None,
    should_continue: Callable[[], bool] | None = None,
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
        From the sample to the detector.
    illumination : Tensor, shape (N, N), complex, optional
        Incident wave at the sample, in sqrt(photons); without the curvature that a `FresnelField` adds.
    surround : {'dark', 'clear'}
        Around the support there is no wave, or the illumination.
    support : Tensor, shape (N, N), bool, optional
        True where the sample may be; from the autocorrelation if absent, in the far field only.
    mask : Tensor, shape (N, N), bool, optional
        True where a pixel is valid; in the order of `counts`. Others are free.
    background : float
        Expected background, photons per pixel.
    starts : int
        Number of random starts, s.
    seed : int
        Of the random starts; the same on every device.
    first : Tensor, shape (s, N, N), complex, optional
        Exit waves to begin with, in place of random ones; `starts` and `seed` are then not looked at.
    settings : SingleShotSettings, optional
        Defaults if absent.
    on_progress : callable, optional
        Called after each cycle with the iterations made and the R-factor of each start, shape (starts,).
    should_continue : callable, optional
        Asked after each cycle; False ends the cycles, and the finish still runs.

    Returns
    -------
    SingleShotResult

    Raises
    ------
    FrameError
        If the frame is not square, not finite, has negative counts, or no photon in a valid pixel, or the exit waves to
        begin with are of another size, or not finite.
    GeometryError
        If the support is empty or too large for the oversampling, or absent where the frame does not show it;
        if the surround is clear and no illumination is known, or dark around a sample in a known or curved
        beam that is seen in the far field.
    ConfigError
        If a setting is out of bounds.
    """
    settings = settings or SingleShotSettings()
    check_settings(settings, starts if first is None else len(first))
    modulus = measured_modulus(counts, mask, background, propagator)
    sample = sample_constraint(modulus, support, illumination, surround, settings)
    begin = random_starts(modulus, sample, starts, seed) if first is None else given_starts(first, modulus, sample)
    batch = Batch(begin, sample)
    ambiguous = isinstance(propagator, FarField) and surround == "dark"
    batch, history = _run_cycles(batch, modulus, settings, on_progress, should_continue, ambiguous)
    for stage in settings.finish:
        batch = _run_stage(batch, modulus, stage, None)
    return judged(batch, modulus, illumination, ambiguous, history, settings)


def _run_cycles(
    batch: Batch,
    modulus: MeasuredModulus,
    settings: SingleShotSettings,
    on_progress: OnProgress | None,
    should_continue: Callable[[], bool] | None,
    ambiguous: bool,
) -> tuple[Batch, list[npt.NDArray[np.float64]]]:
    history = [r_factors(batch, modulus)]
    for cycle in range(settings.cycles):
        if ambiguous and settings.guide_every and cycle and cycle % settings.guide_every == 0:
            batch = guided(batch, history[-1])
        for stage in settings.cycle:
            batch = _run_stage(batch, modulus, stage, settings.shrink_wrap)
        history.append(r_factors(batch, modulus))
        if on_progress is not None:
            on_progress(batch.iterations, history[-1])
        if _settled(history, settings) or (should_continue is not None and not should_continue()):
            break
    return batch, history


def _run_stage(batch: Batch, modulus: MeasuredModulus, stage: Stage, shrink: ShrinkWrap | None) -> Batch:
    update = UPDATES[stage.update]
    for _ in range(stage.iterations):
        batch = replace(
            batch, waves=update(batch.waves, modulus, batch.sample, stage.beta), iterations=batch.iterations + 1
        )
        if shrink is not None and batch.iterations % shrink.every == 0:
            batch = _shrunk(batch, modulus, shrink)
    return batch


def _shrunk(batch: Batch, modulus: MeasuredModulus, shrink: ShrinkWrap) -> Batch:
    support = shrink_wrap(modulus.project(batch.waves), shrink.threshold, shrink.sigma_at(batch.shrunk))
    return replace(batch, sample=replace(batch.sample, support=support), shrunk=batch.shrunk + 1)


def _settled(history: list[npt.NDArray[np.float64]], settings: SingleShotSettings) -> bool:
    """Tell whether no start's lowest R-factor has fallen lately."""
    if len(history) <= settings.patience + 1:
        return False
    before = np.min(history[: -settings.patience], axis=0)
    lately = np.min(history[-settings.patience :], axis=0)
    return not bool((lately < (1 - settings.tolerance) * before).any())
