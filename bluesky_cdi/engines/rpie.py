"""Regularised ptychographic iterative engine (rPIE), and ePIE as its limit, on mini-batches.

Maiden, Johnson and Li, Optica 4, 736 (2017), eqs. 4 to 6; ePIE is alpha = beta = 1 (Maiden and
Rodenburg, Ultramicroscopy 109, 1256 (2009)). Several incoherent modes as in Thibault and Menzel,
Nature 494, 68 (2013). A mini-batch sums its frames' steps and divides by its summed illumination,
so frames that overlap average and frames that do not act alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.engines.steps import averaged_step, ordered, probe_spectrum, random_order, transmission
from bluesky_cdi.physics.forward import Diffraction, object_step, peak_intensity
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance


@dataclass(frozen=True)
class RpieSettings:
    """Settings of rPIE.

    Parameters
    ----------
    alpha : float
        Regularisation of the object step; 1 is ePIE.
    beta : float
        Regularisation of the probe step; 1 is ePIE.
    batch : int
        Frames a mini-batch.
    """

    alpha: float = 0.1
    beta: float = 0.5
    batch: int = 8


# As published, one frame after the other.
EPIE = RpieSettings(alpha=1.0, beta=1.0, batch=1)


class Rpie:
    """rPIE: an `Engine`. Several scenes (B > 1) only with fixed probes; positions and fluxes stay.

    Parameters
    ----------
    settings : RpieSettings
        Step sizes and mini-batch.
    seed : int
        Seed of the order of frames.
    """

    def __init__(self, settings: RpieSettings | None = None, seed: int = 0) -> None:
        self.settings = settings or RpieSettings()
        self.warm_up = 0
        self.name = "epie" if self.settings == EPIE else "rpie"
        self._seed = seed

    def epoch(self, solution: Solution, refine: Refine) -> Solution:
        """Go once through all frames in random order.

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
        obj, probe, data = solution.object, solution.probe, solution.data
        deviance = torch.zeros_like(solution.deviance)
        order = random_order(len(data), self._seed, solution.epochs, obj.device)
        for picked in torch.split(order, self.settings.batch):
            part = data[picked]
            probes, patches = part.probes(probe), part.patches(obj)
            step, rate = part.exit_wave_step(probes, patches)
            deviance[picked] = mean_over_valid(poisson_deviance(rate, part.counts), part.valid)
            obj = obj + _object_change(probe, probes, step, part, self.settings.alpha)
            if refine.probe:
                probe = probe + _probe_change(patches, step, part, self.settings.beta)
        return Solution(obj, probe, data, deviance, solution.epochs + 1)

    def finish(self, solution: Solution, refine: Refine) -> Solution:
        """Average out the noise that the order of the frames left in the object, and order the modes.

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
        obj = averaged_step(solution.object, solution.probe, solution.data, self.settings.alpha)
        return ordered(replace(solution, object=obj), refine)


def _object_change(probe: Tensor, probes: Tensor, step: Tensor, part: Diffraction, alpha: float) -> Tensor:
    numerator, illumination = object_step(probes, step, part.corner, part.object_shape, part.scene)
    return numerator / ((1 - alpha) * illumination + alpha * peak_intensity(probe))


def _probe_change(patches: Tensor, step: Tensor, part: Diffraction, beta: float) -> Tensor:
    wanted: Tensor = torch.fft.ifft2(probe_spectrum(patches, step, part))
    power = transmission(patches, part)
    return wanted / ((1 - beta) * power + beta * power.max())
