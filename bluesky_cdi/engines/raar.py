"""Relaxed averaged alternating reflections (RAAR) for ptychography.

Luke, Inverse Problems 21, 37 (2005): ``psi <- (beta / 2) (R_O R_F + 1) psi + (1 - beta) P_F psi`` with
reflections ``R = 2 P - 1``; for ptychography as in Marchesini et al., J. Appl. Cryst. 49, 1245 (2016).
It holds the exit waves of all frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.engines.overlap import WaveEngine, overlap, parts_of
from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.illuminated_frames import frames_at_once


class Raar(WaveEngine):
    """RAAR: an `Engine` for one scene; positions and fluxes stay.

    Parameters
    ----------
    beta : float
        Relaxation, above 0 and at most 1, which is the difference map with the projections exchanged.

    Raises
    ------
    ConfigError
        If `beta` is out of its range.
    """

    name = "raar"

    def __init__(self, beta: float = 0.75) -> None:
        if not 0 < beta <= 1:
            raise ConfigError(f"RAAR's beta must be above 0 and at most 1; it is {beta}")
        super().__init__()
        self._beta = beta

    def _move(self, waves: Tensor, solution: Solution, refine: Refine) -> tuple[Tensor, Tensor]:
        data, beta = solution.data, self._beta
        size = frames_at_once(solution.probe)
        # psi becomes its projection on the moduli; the reflection 2 P_F psi - psi is psi + 2 step.
        reflected = torch.empty_like(waves)
        for part, which in parts_of(data, size):
            step, _ = part.modulus_step(waves[which])
            reflected[which] = waves[which] + 2 * step
        obj, probe = overlap(solution, lambda part, which: reflected[which], refine)
        for part, which in parts_of(data, size):
            model = part.probes(probe) * part.patches(obj)[:, None]
            moduli = (waves[which] + reflected[which]) / 2
            # R_O R_F psi = 2 model - reflected
            waves[which] = beta / 2 * (2 * model - reflected[which] + waves[which]) + (1 - beta) * moduli
        return obj, probe
