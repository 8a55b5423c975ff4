"""Difference map for ptychography.

Thibault, Dierolf, Menzel, Bunk, David and Pfeiffer, Science 321, 379 (2008), and Ultramicroscopy
109, 338 (2009): ``psi <- psi + P_F(2 P_O psi - psi) - P_O psi`` with the projections on the measured
moduli, P_F, and on one object under one probe, P_O. It holds the exit waves of all frames.
"""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.engines.overlap import exit_waves, overlap, parts_of
from bluesky_cdi.engines.ptychography import Refine, Solution, deviance_of
from bluesky_cdi.engines.steps import ordered
from bluesky_cdi.physics.illuminated_frames import frames_at_once


class DifferenceMap:
    """Difference map: an `Engine` for one scene; positions and fluxes stay."""

    name = "dm"
    warm_up = 0

    def __init__(self) -> None:
        self._waves: Tensor | None = None

    def epoch(self, solution: Solution, refine: Refine) -> Solution:
        """Project all exit waves once.

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
        data = solution.data
        waves = exit_waves(solution.object, solution.probe, data) if self._waves is None else self._waves
        obj, probe = overlap(solution, lambda part, which: waves[which], refine)
        for part, which in parts_of(data, frames_at_once(probe)):
            model = part.probes(probe) * part.patches(obj)[:, None]
            reflected = 2 * model - waves[which]
            step, _ = part.modulus_step(reflected)
            # psi + (2 model - psi) + step - model
            waves[which] = model + step
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
