"""The incident beam: one value of its flux for each exposure, which detector and monitor share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_cdi.protocols import FloatArray


@dataclass(frozen=True)
class Shot:
    """The beam during one exposure.

    Attributes
    ----------
    number : int
        Counts the exposures, from 1; 0 is before the first.
    flux : float
        Relative to the mean flux; 0 behind a closed shutter.
    exposure_s : float
        Exposure, seconds.
    """

    number: int
    flux: float
    exposure_s: float


class Beam:
    """Incident beam, which draws its flux for each exposure.

    The detector calls `expose` when it is triggered; the monitor reads `last` when it is read.
    In a plan every device is read after all triggers of its point, so both see the same shot,
    whichever of them the plan names first.

    Parameters
    ----------
    fluctuation : float
        Relative standard deviation of the flux, normally distributed and never negative.
    seed : int or sequence of int
        Seed of the fluctuation.
    is_open : callable, optional
        Returns whether the shutter lets the beam through; absent, it always does.
    """

    def __init__(
        self, fluctuation: float = 0.0, seed: int | Sequence[int] = 0, is_open: Callable[[], bool] | None = None
    ) -> None:
        self._fluctuation = fluctuation
        self._rng = np.random.default_rng(seed)
        self._is_open = is_open
        self._last = Shot(0, 0.0, 0.0)

    @property
    def last(self) -> Shot:
        """The latest exposure."""
        return self._last

    @property
    def is_open(self) -> bool:
        """Whether the shutter lets the beam through."""
        return self._is_open is None or self._is_open()

    def expose(self, exposure_s: float) -> Shot:
        """Draw the flux of a new exposure of `exposure_s` seconds."""
        # Drawn behind a closed shutter too: what follows does not depend on the shutter's history.
        (flux,) = self.draw(1)
        self._last = Shot(self._last.number + 1, float(flux) if self.is_open else 0.0, exposure_s)
        return self._last

    def draw(self, n: int) -> FloatArray:
        """Draw the flux of `n` exposures before the shutter, relative to the mean flux."""
        return np.maximum(0.0, 1.0 + self._fluctuation * self._rng.standard_normal(n))


def relative_exposure(exposure_s: float, nominal_s: float) -> float:
    """Compute an exposure as a share of the one that the stated photons belong to.

    A nominal exposure of 0 stands for a simulation that spends no time on exposures: the share is 1.

    Parameters
    ----------
    exposure_s : float
        Exposure, seconds.
    nominal_s : float
        Exposure that the stated photons belong to, seconds.

    Returns
    -------
    float
    """
    return exposure_s / nominal_s if nominal_s > 0 else 1.0
