"""What of a fly scan is told in the log: blur, positions between samples, frames that wait, are late or dropped."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bluesky_cdi.callbacks._stamped_positions import StampedPositions

logger = logging.getLogger(__name__)

# Waiting is told of once a frame has waited for this share of what it may.
TOLD_SHARE = 0.1
# After so many frames it is looked how far the probe moves during exposures.
EARLY_FRAMES = 32
# A way of one pixel during the exposure takes a third off the contrast of the finest structures: sinc(1/2) = 0.64.
BLUR_PX = 1.0
# Positions are worth refining from here on.
UNSURE_PX = 0.25
# Turns of the motion between two samples are few, and worst.
MOST = 0.95


class FlyReport:
    """Tells of one run, each thing once.

    Parameters
    ----------
    run : object
        Its number.
    positions : StampedPositions
        Of its frames.
    lead_s : float
        How long frames may wait for theirs, seconds.

    Attributes
    ----------
    dropped : list of int
        Numbers of the detector's own count that are missing.
    unread : int
        Blocks of columns that could not be read.
    """

    def __init__(self, run: Any, positions: StampedPositions, lead_s: float) -> None:
        self.dropped: list[int] = []
        self.unread = 0
        self._run, self._positions, self._lead_s = run, positions, lead_s
        self._told_of_waiting = self._told_early = False

    def waiting(self) -> None:
        """Warn of frames that wait for their positions."""
        behind_s = self._positions.behind_s
        if not self._told_of_waiting and behind_s > TOLD_SHARE * self._lead_s:
            self._told_of_waiting = True
            logger.warning(
                "run %s: %d frame(s) wait for their positions, the oldest for %.3g s; they are read when these come. "
                "After %g s they are told as missing.",
                self._run, len(self._positions.waiting), behind_s, self._lead_s,
            )  # fmt: skip

    def early(self, pixel_m: float | None) -> None:
        """Warn of a motion that blurs the frames, once some are placed.

        Parameters
        ----------
        pixel_m : float or None
            Sample pixel, metres.
        """
        if not self._told_early and len(self._positions.smear_m) >= EARLY_FRAMES:
            self._told_early = True
            if self._is_doubtful(pixel_m):
                logger.warning("run %s: %s", self._run, self._motion(pixel_m))

    def at_end(self, pixel_m: float | None) -> None:
        """Tell of all frames.

        Parameters
        ----------
        pixel_m : float or None
            Sample pixel, metres.
        """
        overdue = self._positions.overdue
        if self.dropped:
            logger.warning(
                "run %s: %d frame(s) were dropped by the detector, by its own count: %s",
                self._run, len(self.dropped), _few(self.dropped),
            )  # fmt: skip
        if overdue:
            never = len(set(overdue) & set(self._positions.waiting))
            logger.warning(
                "run %s: %d frame(s) had no position within %g s, %d of them never got one",
                self._run, len(overdue), self._lead_s, never,
            )  # fmt: skip
        if self.unread:
            logger.warning("run %s: %d block(s) of time stamps or positions could not be read", self._run, self.unread)
        if self._positions.smear_m:
            level = logging.WARNING if self._is_doubtful(pixel_m) else logging.INFO
            logger.log(level, "run %s: %s", self._run, self._motion(pixel_m))

    def as_notes(self) -> dict[str, Any]:
        """Give what the run's estimate is to say of it, as plain values; also in another thread than frames come in.

        Returns
        -------
        dict
            ``motion`` and ``dropped_frames``, as of `RunInfo.notes`. What is not known is absent.
        """
        notes: dict[str, Any] = {}
        # Frames have their error last: of as many the rest is known, though some are placed meanwhile.
        errors = np.array(self._positions.error_m)
        moved = np.array(self._positions.smear_m)[: len(errors)]
        if np.isfinite(moved).any():
            notes["motion"] = {
                "median_m": float(np.nanmedian(moved)),
                "largest_m": float(np.nanmax(moved)),
                "position_error_m": float(np.quantile(errors, MOST)),
                "period_s": float(np.median(np.diff(np.sort(self._positions.centre_s)))) if len(moved) > 1 else None,
            }
        if self.dropped:
            notes["dropped_frames"] = len(self.dropped)
        return notes

    def _is_doubtful(self, pixel_m: float | None) -> bool:
        """Tell whether frames are blurred, or positions between samples not known; without a pixel nobody can."""
        if pixel_m is None:
            return False
        smear, error = self._positions.smear_m, self._positions.error_m
        return bool(np.nanmedian(smear) > BLUR_PX * pixel_m or np.quantile(error, MOST) > UNSURE_PX * pixel_m)

    def _motion(self, pixel_m: float | None) -> str:
        unit, name = (pixel_m, "sample pixels") if pixel_m else (1e-9, "nm")
        smear, error = (np.array(each) / unit for each in (self._positions.smear_m, self._positions.error_m))
        return (
            f"{len(smear)} frame(s) got positions by time stamps; the probe moved by {np.nanmedian(smear):.2g} {name} "
            f"during an exposure (at most {np.nanmax(smear):.2g}); between samples positions are known to "
            f"{_at_most(np.median(error))} {name} (at worst {_at_most(error.max())})"
        )


def stated_motion(start: Mapping[str, Any]) -> dict[str, Any]:
    """Give the notes of a run whose plan states how far the probe moves during an exposure (``smear_m``).

    Parameters
    ----------
    start : Mapping
        The run's start document.
    """
    stated = start.get("smear_m")
    if isinstance(stated, int | float) and math.isfinite(stated) and stated > 0:
        return {"motion": {"median_m": float(stated)}}
    return {}


def _at_most(value: float) -> str:
    """Write a number with one digit; a thousandth stands for all that is less."""
    return f"{max(value, 1e-3):.1g}"


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
