"""Relaxed averaged alternating reflections (RAAR) for ptychography.

Luke, Inverse Problems 21, 37 (2005): ``psi <- (beta / 2) (R_O R_F + 1) psi + (1 - beta) P_F psi`` with
reflections ``R = 2 P - 1``; for ptychography as in Marchesini et al., J. Appl. Cryst. 49, 1245 (2016).
It holds the exit waves of all frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.engines.overlap import exit_waves, overlap, parts_of
from bluesky_cdi.engines.ptychography import Refine, Solution, deviance_of
from bluesky_cdi.engines.steps import ordered
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.illuminated_frames import frames_at_once


class Raar:
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
    warm_up = 0

    def __init__(self, beta: float = 0.75) -> None:
        if not 0 < beta <= 1:
            raise ConfigError(f"RAAR's beta must be above 0 and at most 1; it is {beta}")
        self._beta = beta
        self._waves: Tensor | None = None

    def epoch(self, solution: Solution, refine: Refine) -> Solution:
        """Reflect all exit waves once.

        Parameters
        ----------
        solution : Solution
            The one to improve; its state of the frames is taken over.
        refine : Refine
            What may change besides the object.

        Returns
        -------
        Solution
            With the deviance that was met on the way, or that of the result.
        """
        data, beta = solution.data, self._beta
        waves = exit_waves(solution.object, solution.probe, data) if self._waves is None else self._waves
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
        self._waves = waves
        return Solution(obj, probe, data, deviance_of(obj, probe, data), solution.epochs + 1)

    def finish(self, solution: Solution, refine: Refine) -> Solution:
        """Order the modes, and forget the exit waves of the old ones.

        Parameters
        ----------
        solution : Solution
            That of the last epoch.
        refine : Refine
            What that epoch refined.

        Returns
        -------
        Solution
        """
        self._waves = None
        return ordered(solution, refine)
