"""Settings of a single-shot reconstruction: stages of updates, how often, and when a start has converged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint, check_max_phase
from bluesky_cdi.single_shot.error_reduction import error_reduction
from bluesky_cdi.single_shot.hybrid_input_output import hybrid_input_output
from bluesky_cdi.single_shot.raar import raar
from bluesky_cdi.single_shot.support import ShrinkWrap

UPDATES: dict[str, Callable[[Tensor, MeasuredModulus, SampleConstraint, float], Tensor]] = {
    "er": lambda waves, modulus, sample, _: error_reduction(waves, modulus, sample),
    "hio": hybrid_input_output,
    "raar": raar,
}


@dataclass(frozen=True)
class Stage:
    """Some iterations of one update.

    Parameters
    ----------
    update : {'er', 'hio', 'raar'}
        Error reduction, hybrid input-output, relaxed averaged alternating reflections.
    iterations : int
        How many updates of this kind follow each other.
    beta : float
        Feedback of 'hio', relaxation of 'raar'; 'er' has none.
    """

    update: Literal["er", "hio", "raar"]
    iterations: int
    beta: float = 0.9


@dataclass(frozen=True)
class SingleShotSettings:
    """Settings of a single-shot reconstruction.

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


def check_settings(settings: SingleShotSettings, starts: int) -> None:
    """Refuse settings that no run can follow.

    Parameters
    ----------
    settings : SingleShotSettings
        The ones to check.
    starts : int
        Number of random starts.

    Raises
    ------
    ConfigError
        If there is no start, a number of cycles, iterations or updates is out of bounds, or an update is unknown.
    """
    check_max_phase(settings.max_phase_rad)
    if starts < 1 or settings.cycles < 0:
        raise ConfigError(f"starts must be 1 or more, cycles 0 or more; they are {starts} and {settings.cycles}")
    if settings.guide_every < 0 or settings.patience < 1:
        raise ConfigError(
            "guide_every must be 0 or more and patience 1 or more; "
            f"they are {settings.guide_every} and {settings.patience}"
        )
    for stage in (*settings.cycle, *settings.finish):
        if stage.update not in UPDATES:
            raise ConfigError(f"an update is one of {', '.join(UPDATES)}; got {stage.update!r}")
        if stage.iterations < 0:
            raise ConfigError(f"a stage needs 0 or more iterations; {stage.update} has {stage.iterations}")
    if settings.shrink_wrap is not None:
        _check_shrink_wrap(settings.shrink_wrap)


def _check_shrink_wrap(shrink: ShrinkWrap) -> None:
    if shrink.every < 1 or not 0 < shrink.threshold < 1 or min(shrink.sigma_px, shrink.sigma_end_px) < 0:
        raise ConfigError(
            "shrink-wrap needs every >= 1, a threshold between 0 and 1 and blurs of 0 or more pixels; it has "
            f"{shrink.every}, {shrink.threshold}, {shrink.sigma_px} and {shrink.sigma_end_px}"
        )
