"""Positions of frames by time stamps: samples of encoders, interpolated to the middles of exposures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bluesky_cdi.protocols import FloatArray

# Samples may be so many times farther apart than usual, and positions between them are still interpolated.
USUAL_TIMES = 10.0
# What is usual is told from so many samples.
USUAL_SAMPLES = 1000


class StampedPositions:
    """Interpolates positions to frames, and keeps frames until the samples around them have come.

    All times are those of one clock, seconds. Between two samples the motion is taken to be straight and even.

    Parameters
    ----------
    lead_s : float
        A frame so much older than the newest one, and without position, is overdue; samples so much older than it are
        forgotten.
    gap_s : float, optional
        Longest time between two samples that is interpolated in; by default `USUAL_TIMES` the median one.

    Attributes
    ----------
    overdue : dict of int to str
        Numbers of frames that were overdue, and why they had no position then.
    centre_s, smear_m, error_m : list of float
        Of each placed frame, in the order of placing: the middle of its exposure; the distance between the positions at
        the exposure's beginning and end; how far interpolation may be off, from the curvature of the motion between
        samples.
    """

    def __init__(self, lead_s: float, gap_s: float | None = None) -> None:
        self.overdue: dict[int, str] = {}
        self.centre_s: list[float] = []
        self.smear_m: list[float] = []
        self.error_m: list[float] = []
        self._lead_s, self._gap_s = lead_s, gap_s
        self._usual_s: float | None = None
        self._times_s: FloatArray = np.empty(0)
        self._positions_m: FloatArray = np.empty((0, 2))
        self._waiting: dict[int, tuple[float, float]] = {}
        self._newest_s = -np.inf

    @property
    def waiting(self) -> list[int]:
        """Numbers of the frames that have no position yet."""
        return list(self._waiting)

    @property
    def behind_s(self) -> float:
        """How far the oldest frame without position is behind the newest frame, seconds."""
        return self._newest_s - min((centre for centre, _ in self._waiting.values()), default=self._newest_s)

    def sample(self, times_s: FloatArray, positions_m: FloatArray) -> None:
        """Take samples.

        Parameters
        ----------
        times_s : ndarray, shape (n,)
            When each was taken.
        positions_m : ndarray, shape (n, 2)
            (y, x), metres. Samples that are not finite are left out.
        """
        sound = np.isfinite(times_s) & np.isfinite(positions_m).all(axis=1)
        times, positions = times_s[sound], positions_m[sound]
        kept = self._times_s >= self._newest_s - self._lead_s
        if len(self._times_s):
            # The one before those that are kept stays, so that what lies between can be interpolated.
            kept[:-1] |= kept[1:]
        self._times_s = np.concatenate([self._times_s[kept], times])
        self._positions_m = np.concatenate([self._positions_m[kept], positions])
        if (np.diff(self._times_s) <= 0).any():
            self._times_s, first = np.unique(self._times_s, return_index=True)
            self._positions_m = self._positions_m[first]
        if self._usual_s is None and len(self._times_s) >= USUAL_SAMPLES:
            self._usual_s = float(np.median(np.diff(self._times_s[:USUAL_SAMPLES])))

    def expect(self, numbers: Sequence[int], centres_s: FloatArray, exposure_s: float) -> None:
        """Take frames; one whose number came before replaces the earlier one.

        Parameters
        ----------
        numbers : sequence of int
            Of the frames.
        centres_s : ndarray, shape (n,)
            The middle of each exposure.
        exposure_s : float
            How long they last; NaN where that is not known.
        """
        for number, centre in zip(numbers, centres_s, strict=True):
            self._waiting[number] = (float(centre), exposure_s)
        self._newest_s = max(self._newest_s, float(np.max(centres_s, initial=-np.inf)))

    def place(self) -> list[tuple[int, FloatArray]]:
        """Give the frames whose positions are known by now: number, and (y, x) in metres."""
        if not self._waiting or len(self._times_s) < 2:
            return []
        numbers = np.fromiter(self._waiting, np.int64, len(self._waiting))
        centres, exposures = np.array(list(self._waiting.values())).T
        after = self._after(centres)
        ready = self._is_bracketed(centres, after)
        numbers, centres, exposures, after = numbers[ready], centres[ready], exposures[ready], after[ready]
        positions = self._at(centres)
        ends = [self._at(centres + sign * exposures / 2) for sign in (-1, 1)]
        self.centre_s.extend(centres.tolist())
        self.smear_m.extend(np.hypot(*(ends[1] - ends[0]).T).tolist())
        self.error_m.extend(self._errors(after).tolist())
        for number in numbers:
            del self._waiting[int(number)]
        return [(int(number), position) for number, position in zip(numbers, positions, strict=True)]

    def newly_overdue(self) -> dict[int, str]:
        """Give the frames that are overdue since the last time, and why they have no position."""
        late = [
            number
            for number, (centre, _) in self._waiting.items()
            if number not in self.overdue and centre < self._newest_s - self._lead_s
        ]
        found = {number: self.why(number) for number in late}
        self.overdue |= found
        return found

    def why(self, number: int) -> str:
        """Say why a frame has no position.

        Parameters
        ----------
        number : int
            Of a frame that waits.
        """
        if number not in self._waiting:
            return "its time stamp never came"
        centre = self._waiting[number][0]
        if len(self._times_s) < 2:
            return "no samples of the position have come"
        first, last = float(self._times_s[0]), float(self._times_s[-1])
        if centre > last:
            return f"it was exposed {centre - last:.6g} s after the last sample of the position"
        if centre < first:
            return f"it was exposed {first - centre:.6g} s before the first sample of the position"
        after = int(self._after(np.array([centre]))[0])
        gap = self._times_s[after] - self._times_s[after - 1]
        return f"samples of the position are missing around it: there is none for {gap:.6g} s"

    def _after(self, times_s: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Find the sample after each time, from the second one on."""
        return np.clip(np.searchsorted(self._times_s, times_s), 1, len(self._times_s) - 1)

    def _is_bracketed(self, centres: FloatArray, after: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
        inside = (centres >= self._times_s[0]) & (centres <= self._times_s[-1])
        return np.asarray(inside & (self._times_s[after] - self._times_s[after - 1] <= self._longest_s()))

    def _longest_s(self) -> float:
        if self._gap_s is not None:
            return self._gap_s
        usual = self._usual_s if self._usual_s is not None else float(np.median(np.diff(self._times_s)))
        return USUAL_TIMES * usual

    def _at(self, times_s: FloatArray) -> FloatArray:
        return np.stack([np.interp(times_s, self._times_s, self._positions_m[:, axis]) for axis in (0, 1)], axis=-1)

    def _errors(self, after: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
        """Estimate how far linear interpolation is off before each of some samples, metres.

        It is at most h^2 / 8 times the acceleration, which the second differences of the neighbours tell.
        """
        middle = np.clip(np.stack([after - 1, after]), 1, len(self._times_s) - 2)
        if len(self._times_s) < 3:
            return np.zeros(len(after))
        bends = self._positions_m[middle + 1] - 2 * self._positions_m[middle] + self._positions_m[middle - 1]
        return np.asarray(np.hypot(bends[..., 0], bends[..., 1]).max(axis=0) / 8)
