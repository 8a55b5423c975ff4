"""Whether the positions of a fly scan lag behind its frames, or lead: checked by what explains the frames best.

Two clocks that differ by less than a flight leave no trace in the time stamps: each frame just gets the position of
a little later or earlier. Where the probe goes to and fro, neighbouring frames then contradict each other, and a short
reconstruction shows it. Where it always goes the same way, such a shift moves the whole image and nothing else: then no
lag is better than another, and none is needed. Scattered places, as those of adaptive scans, tell nothing of the way
from one to the next, and no lag is tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.short_trial import short_deviance

if TYPE_CHECKING:
    from bluesky_cdi.io import Scan

# Lags that are tried first, in times from frame to frame, and the step of the second look around the best of them.
FIRST_LAGS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
SECOND_STEP = 0.25
# Positions with a lag are better only if their deviance is below this share of that of the positions as they are.
CLEARLY = 0.95
# The steps to a frame and from it are alike if they differ by less than the shorter one (on a circle: of more than six
# frames a turn); at this share of the frames or more they must be.
ALIKE_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class LagCheck:
    """How well the frames are explained by the positions of a little later or earlier.

    Attributes
    ----------
    deviance : dict of float to float
        Mean Poisson deviance per valid pixel after a short reconstruction, by the lag in times from frame to frame.
    """

    deviance: dict[float, float]

    @property
    def best(self) -> float:
        """Lag with the lowest deviance, from a parabola through the three lowest neighbours."""
        lags = np.array(sorted(self.deviance))
        values = np.array([self.deviance[lag] for lag in lags])
        k = int(values.argmin())
        if k in (0, len(lags) - 1):
            return float(lags[k])
        curve = np.polyfit(lags[k - 1 : k + 2], values[k - 1 : k + 2], 2)
        return float(-curve[1] / (2 * curve[0]))

    @property
    def better(self) -> float | None:
        """The best lag, if it is clearly better than none."""
        return self.best if min(self.deviance.values()) < CLEARLY * self.deviance[0.0] else None


def velocity_m(positions_m: FloatArray) -> FloatArray:
    """Compute how far the probe goes from frame to frame, where each frame is.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x) of the frames in the order in which they were taken, metres.

    Returns
    -------
    ndarray, shape (n, 2)
        The shorter of the ways to a frame and from it: at the end of a line the way to the next one is none of the
        motion during the frame.
    """
    steps = np.diff(positions_m, axis=0)
    before, after = np.vstack([steps[:1], steps]), np.vstack([steps, steps[-1:]])
    shorter = np.hypot(*before.T) <= np.hypot(*after.T)
    return np.asarray(np.where(shorter[:, None], before, after))


def is_steady(positions_m: FloatArray) -> BoolArray:
    """Tell at which frames the probe goes on as it came, so that places tell where it is between them.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x) of the frames in the order in which they were taken, metres.

    Returns
    -------
    ndarray, shape (n,), bool
        False for the first and the last.
    """
    steps = np.diff(positions_m, axis=0)
    before, after = steps[:-1], steps[1:]
    shorter = np.minimum(np.hypot(*before.T), np.hypot(*after.T))
    inside = np.hypot(*(after - before).T) < shorter
    return np.concatenate([[False], inside, [False]]) if len(steps) else np.zeros(len(positions_m), bool)


def check_lag(
    scan: Scan, probe: ComplexArray, *, frames: int = 64, epochs: int = 12, device: str = "cpu"
) -> LagCheck | None:
    """Reconstruct a small part of a fly scan with the positions of a little later and earlier.

    Parameters
    ----------
    scan : Scan
        The recorded scan, its frames in the order in which they were taken.
    probe : ndarray, shape (modes, N, N), complex
        First guess; refined on the way.
    frames : int
        Frames to use: those nearest to the middle of the scan.
    epochs : int
        Epochs of LSQ-ML for each lag.
    device : str
        PyTorch device.

    Returns
    -------
    LagCheck or None
        None where the way between frames is not known: the probe goes from place to place, not along lines.
    """
    chosen, positions_m = nearest_to_middle(scan.positions_m, frames), np.asarray(scan.positions_m)
    if is_steady(positions_m)[chosen].mean() < ALIKE_SHARE:
        return None
    part, velocity = scan.subset(chosen), velocity_m(positions_m)[chosen]

    def deviance(lag: float) -> float:
        return short_deviance(replace(part, positions_m=part.positions_m + lag * velocity), probe, epochs, device)

    found = {lag: deviance(lag) for lag in FIRST_LAGS}
    middle = min(found, key=lambda lag: found[lag])
    return LagCheck({**found, **{lag: deviance(lag) for lag in (middle - SECOND_STEP, middle + SECOND_STEP)}})
