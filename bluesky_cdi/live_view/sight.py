"""What a live view shows beside the estimate: frames as they come, and what they say by themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.evaluation.fit import FittedFrame
from bluesky_cdi.evaluation.scan_maps import ScanMaps
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import FloatArray


@dataclass(frozen=True, eq=False)
class Sight:
    """A run at one moment, as its frames tell of it; plain values and arrays, so that it can be sent.

    Attributes
    ----------
    number : int
        Counts sights of all runs, from 1.
    uid : str
        Of the raw run.
    scan_id : int
        Its number.
    plan : str
        Name of its plan.
    geometry : Mapping
        Fields of a `Geometry`.
    received : int
        Frames that came, each once, with those that could not be used.
    rate_hz : float
        At which the last ones came; NaN for fewer than two.
    ended : str
        The run's exit status; empty while it goes on.
    seq_nums, positions_m, photons, dark_photons, gradient_rad_per_m : ndarray
        As of `ScanMaps`.
    frame_seq_num : int
        Of the frame that is shown; 0: there is none.
    counts : ndarray, shape (N, N)
        That frame.
    valid : ndarray, shape (N, N), bool
        Pixels that count.
    fit : ndarray, shape (N, N), or None
        What the newest image expects there; None where the frame is not in it.
    deviance : float
        Poisson deviance a valid pixel of that fit; NaN without.
    """

    number: int
    uid: str
    scan_id: int
    plan: str
    geometry: Mapping[str, Any]
    received: int
    rate_hz: float
    ended: str
    seq_nums: npt.NDArray[np.int64]
    positions_m: FloatArray
    photons: FloatArray
    dark_photons: FloatArray
    gradient_rad_per_m: FloatArray
    frame_seq_num: int
    counts: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    fit: FloatArray | None = None
    deviance: float = float("nan")

    def outdated(self, received: int) -> Sight:
        """Give a sight of the same run without what was seen before more frames came.

        Parameters
        ----------
        received : int
            How many have come since, at least.
        """
        return replace(self, received=received, rate_hz=math.nan, frame_seq_num=0, fit=None, deviance=math.nan)

    @property
    def maps(self) -> ScanMaps:
        """The numbers of the frames."""
        return ScanMaps(**{each.name: getattr(self, each.name) for each in fields(ScanMaps)})

    @property
    def beam_geometry(self) -> Geometry:
        """The geometry of the frames."""
        return Geometry(**self.geometry)

    @property
    def fitted(self) -> FittedFrame | None:
        """The frame that is shown, beside its fit; None without a fit."""
        if self.fit is None:
            return None
        return FittedFrame(self.frame_seq_num, self.counts, self.fit, self.valid, 1.0, self.deviance)
