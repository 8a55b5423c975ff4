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

    It stands behind the shutter. Reading it again before the next exposure gives the same value;
    before the first exposure it reads 0.

    Parameters
    ----------
    beam : Beam
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
        """Time of reading."""
        return time.time()

    def get(self, **kwargs: Any) -> int:
        """Counts during the latest exposure."""
        shot = self._beam.last
        mean = NOMINAL_COUNTS * shot.flux * relative_exposure(shot.exposure_s, self._nominal_s)
        if self._seed is None:
            return round(mean)
        return int(np.random.default_rng([*self._seed, shot.number]).poisson(mean))

    def put(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a monitor is only read."""
        raise ReadOnlyError(f"{self.name} is a monitor and can only be read")
