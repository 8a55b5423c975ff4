"""The resolution that two halves of a run's frames agree on, as it is noted in the source of an estimate.

Halves share no frame, but the probe, the positions and what a network takes for likely: errors of these are in both, so
that the correlation does not show them (van Heel and Schatz, J. Struct. Biol. 151, 250 (2005), on what halves share).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.evaluation.frc import FRC, fourier_ring_correlation, soft_window
from bluesky_cdi.protocols import ComplexArray

# Of an estimate's source.
KEY = "resolution"
# As many checks in a row must agree: one may be luck.
CONFIRMED_BY = 2
# Fewest pixels along a side of what both halves measured: fewer have fewer than eight rings, too few for a curve.
LEAST_PX = 16
# Share of what all frames measured that both halves must have measured: what few places have shown is no image of the
# field.
LEAST_SHARED = 0.5


@dataclass(frozen=True, eq=False)
class ResolutionCheck:
    """What two halves of the frames agreed on.

    Attributes
    ----------
    n_frames : int
        Frames of both halves.
    frc : FRC
        Of the two objects.
    pixel_m : float
    seconds : float
        Processor's time that it took.
    """

    n_frames: int
    frc: FRC
    pixel_m: float
    seconds: float = 0.0

    @property
    def resolution_m(self) -> float:
        """Full period of the first ring below the half-bit threshold; inf: none is above, two pixels: all are."""
        found = self.frc.resolution_half_bit_m
        return 2 * self.pixel_m if found is None else found


def check_halves(
    first: ComplexArray, second: ComplexArray, both: BoolArray, measured: BoolArray, pixel_m: float, n_frames: int
) -> ResolutionCheck | None:
    """Correlate the objects of two halves where both have measured the object, under a window with soft edges.

    Parameters
    ----------
    first, second : ndarray, shape (Y, X), complex
        The objects, without the phase ramp and the scale between them.
    both : ndarray, shape (Y, X), bool
        Where both measured the object.
    measured : ndarray, shape (Y, X), bool
        Where all frames did.
    pixel_m : float
        Sample pixel, metres.
    n_frames : int
        Frames of both halves.

    Returns
    -------
    ResolutionCheck or None
        None where that is too small for rings, or too little of what all frames measured.
    """
    if np.count_nonzero(both) < LEAST_SHARED * np.count_nonzero(measured):
        return None
    if min(np.count_nonzero(both.any(axis=axis)) for axis in (0, 1)) < LEAST_PX:
        return None
    frc = fourier_ring_correlation(first, second, pixel_m, soft_window(both))
    return ResolutionCheck(n_frames, frc, pixel_m)


def resolution_notes(checks: Sequence[ResolutionCheck], target_m: float = 0.0) -> dict[str, Any]:
    """Give checks as plain JSON values, the curve of the last one among them.

    Parameters
    ----------
    checks : sequence of ResolutionCheck
        One or more, in their order.
    target_m : float
        The wanted resolution, metres; 0: none was.
    """
    found = [check.resolution_m for check in checks]
    frc = checks[-1].frc
    return {
        "threshold": "half-bit",
        "seconds": sum(check.seconds for check in checks),
        "target_m": target_m or None,
        "n_frames": [check.n_frames for check in checks],
        "resolution_m": [value if math.isfinite(value) else None for value in found],
        "frequency_per_m": frc.frequency_per_m.tolist(),
        "correlation": frc.correlation.tolist(),
        "n_pixels": frc.n_pixels.tolist(),
    }


def confirmed_resolution_m(source: Mapping[str, Any]) -> float | None:
    """Give the worst of the last checks that must agree; inf before there are as many, None where none was asked for.

    Parameters
    ----------
    source : Mapping
        Of an estimate.
    """
    if (notes := with_curve(source)) is None or notes["target_m"] is None:
        return None
    lately = notes["resolution_m"][-CONFIRMED_BY:]
    if len(lately) < CONFIRMED_BY or None in lately:
        return math.inf
    return float(max(lately))


def with_curve(source: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give what is noted of halves, if they were compared; None where only is noted why not, or nothing.

    Parameters
    ----------
    source : Mapping
        Of an estimate, or a stop document.
    """
    notes = source.get(KEY) or {}
    return notes if notes.get("frequency_per_m") else None


def noted_frc(notes: Mapping[str, Any]) -> FRC:
    """Make the curve of `resolution_notes` again."""
    n_pixels: npt.NDArray[np.int64] = np.asarray(notes["n_pixels"], np.int64)
    return FRC.of(np.asarray(notes["frequency_per_m"]), np.asarray(notes["correlation"]), n_pixels)
