"""Incident-flux monitor (I0)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ophyd import Signal
from ophyd.utils.errors import ReadOnlyError

from bluesky_cdi.sim_devices._beam import Beam, relative_exposure

# An ionisation chamber of some 1e6 charges per exposure knows the flux to 0.1 %.
NOMINAL_COUNTS = 1e6


class SimMonitor(Signal):  # type: ignore[misc]
    """Counts of the flux that reaches the sample, during the detector's latest exposure.

    It stands behind the shutter. Until the next exposure it keeps its value; before the first it reads 0.

    Parameters
    ----------
    beam : Beam
        Whose latest exposure it measures.
    nominal_s : float
        Exposure in which the mean flux gives 1e6 counts, seconds.
    seed : int or sequence of int, optional
        Seed of the monitor's own Poisson noise; absent, it has none.
    **kwargs
        As for `ophyd.Signal`; `name` is required.
    """

    def __init__(
        self, *, beam: Beam, nominal_s: float = 0.0, seed: int | Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        self._beam = beam
        self._nominal_s = nominal_s
        self._seed = seed if seed is None or isinstance(seed, Sequence) else (seed,)
        super().__init__(**{"value": 0, "kind": "hinted"} | kwargs)

    @property
    def timestamp(self) -> float:
        """Time at which it is read."""
        return time.time()

    def get(self, **kwargs: Any) -> int:
        """Return the counts during the latest exposure."""
        shot = self._beam.last
        mean = NOMINAL_COUNTS * shot.flux * relative_exposure(shot.exposure_s, self._nominal_s)
        if self._seed is None:
            return round(mean)
        return int(np.random.default_rng([*self._seed, shot.number]).poisson(mean))

    def put(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a monitor is only read.

        Parameters
        ----------
        *args, **kwargs
            As ophyd passes them; not looked at.

        Raises
        ------
        ReadOnlyError
            Always.
        """
        raise ReadOnlyError(f"{self.name} is a monitor and can only be read")
