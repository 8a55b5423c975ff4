"""What is kept from one drawing of a live view to the next: settings, and what is dear to compute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.config import LiveViewConfig
from bluesky_cdi.live_view.scattered import Ground
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.viz.beam import Beam
from bluesky_cdi.viz.probes import ends_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A caustic is computed anew no sooner than after so many times what the last one took.
CAUSTIC_REST = 10.0
# Sets of places that are drawn at a time: those of all frames, and of those in the image.
GROUNDS = 2

Caustic = tuple[FloatArray, tuple[float, float]]


class Kept:
    """Settings of a live view, with the caches of its panels.

    Parameters
    ----------
    settings : LiveViewConfig
        What is drawn.
    clock : callable
        Tells the time, seconds.
    """

    def __init__(self, settings: LiveViewConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self._clock = settings, clock
        self._grounds: list[tuple[FloatArray, Ground]] = []
        self._caustic: tuple[ComplexArray, Geometry, Caustic] | None = None
        self._caustic_due = -math.inf

    def turn(self, ax: Axes) -> None:
        """Turn axes of the sample upside down where row 0 is wanted below."""
        if self.settings.row_zero == "bottom":
            ax.invert_yaxis()

    def ground(self, positions_m: FloatArray, lone_m: float) -> Ground:
        """Give the pixels around places; see `Ground.of`."""
        for places, ground in self._grounds:
            if np.array_equal(places, positions_m):
                return ground
        made = Ground.of(positions_m, lone_m)
        self._grounds = [*self._grounds, (positions_m, made)][-GROUNDS:]
        return made

    def caustic(self, probe: ComplexArray, geometry: Geometry) -> Caustic:
        """Give a probe's intensity along the beam, (N, planes), and its ends, metres.

        It is the dearest of all panels, and changes slowly: where the last one is younger than `CAUSTIC_REST` times
        what it took, that is given.

        Parameters
        ----------
        probe : ndarray, shape (modes, N, N), complex
            The probe.
        geometry : Geometry
            Gives lengths and angles.
        """
        last = self._caustic
        fits = last is not None and last[1] == geometry and last[0].shape == probe.shape
        if last is not None and fits and (last[0] is probe or self._clock() < self._caustic_due):
            return last[2]
        began = self._clock()
        beam = Beam.of(probe, geometry)
        ends = ends_of(beam)
        made = beam.caustic(*ends), ends
        now = self._clock()
        self._caustic, self._caustic_due = (probe, geometry, made), now + CAUSTIC_REST * (now - began)
        return made
