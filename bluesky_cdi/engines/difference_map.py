"""Difference map for ptychography.

Thibault, Dierolf, Menzel, Bunk, David and Pfeiffer, Science 321, 379 (2008), and Ultramicroscopy
109, 338 (2009): ``psi <- psi + P_F(2 P_O psi - psi) - P_O psi`` with the projections on the measured
moduli, P_F, and on one object under one probe, P_O. It holds the exit waves of all frames.
"""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.engines.overlap import WaveEngine, overlap, parts_of
from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.physics.illuminated_frames import frames_at_once


class DifferenceMap(WaveEngine):
    """Difference map: an `Engine` for one scene; positions and fluxes stay."""

    name = "dm"

    def _move(self, waves: Tensor, solution: Solution, refine: Refine) -> tuple[Tensor, Tensor]:
        obj, probe = overlap(solution, lambda part, which: waves[which], refine)
        for part, which in parts_of(solution.data, frames_at_once(probe)):
            model = part.probes(probe) * part.patches(obj)[:, None]
            reflected = 2 * model - waves[which]
            step, _ = part.modulus_step(reflected)
            # psi + (2 model - psi) + step - model
            waves[which] = model + step
        return obj, probe
