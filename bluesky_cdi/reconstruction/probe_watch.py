"""The check of a run's probe, as a reconstructor sees it: of the first guess, and again where the beam has changed."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bluesky_cdi.physics.forward import intensity
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.probe_checkin.drift import DriftAlarm, drift_between
from bluesky_cdi.reconstruction.probe_checkin.live import LiveCheckIn
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.tiles import IndexArray

# How often a wait asks whether it shall come back, and how long it is at most, seconds.
WAIT_S, MOST_WAIT_S = 0.05, 60.0


class Taken(enum.Enum):
    """What a check has changed."""

    NOTHING = enum.auto()
    GUESS = enum.auto()
    """The guess that all rests on: it was worse from the first frame on."""
    ONWARD = enum.auto()
    """The probe of frames from now on: earlier ones had the one before."""


class ProbeWatch:
    """Has the first guess of a shared probe checked, and replaces it by a better one; looks out for a drift after that.

    Parameters
    ----------
    probe : SharedProbe
        As it is first guessed.
    check_in : LiveCheckIn or None
        Makes the check; None: the guess is trusted.

    Attributes
    ----------
    before : ndarray, shape (n,)
        Rows of the frames whose probe was another than that which the newest asked for at the last alarm.
    """

    def __init__(self, probe: SharedProbe, check_in: LiveCheckIn | None) -> None:
        self.check_in = check_in
        self._probe, self._assumed, self._alarm = probe, probe.modes[0], DriftAlarm()
        self.before: IndexArray = np.zeros(0, np.int64)
        self._given: Mapping[str, Any] = {}

    @property
    def has_news(self) -> bool:
        """Whether `source` gives something else than it gave last."""
        return self.check_in is not None and self.check_in.notes != self._given

    @property
    def is_running(self) -> bool:
        """Whether a check is being made, or has been and was not looked at yet; not of one that is wanted no more."""
        return self.check_in is not None and self.check_in.is_running

    def begin(self, frames: MeasuredFrames) -> None:
        """Begin a check, if these frames of the run are enough for one that is due."""
        if self.check_in is not None:
            self.check_in.begin(frames, self._assumed, lambda: self._probe.modes[0])

    def look(self, frames: MeasuredFrames, rows: IndexArray, obj: Tensor, takes: bool) -> None:
        """See now and then whether the newest frames ask for another probe; if they do, have that checked.

        Parameters
        ----------
        frames : MeasuredFrames
            Those of the run by now.
        rows : ndarray, shape (n,)
            Rows of those of the newest epoch that are reconstructed, in the order of their numbers.
        obj : Tensor, shape (1, Y, X), complex64
            What was reconstructed from them.
        takes : bool
            Whether frames from now on can have a probe of their own.
        """
        if self.check_in is None or self.check_in.is_running or (due := self._alarm.rows_due(rows)) is None:
            return
        drift = drift_between(obj, self._probe.modes, *(frames.diffraction(part) for part in due))
        if drift.is_sure:
            self._alarm.rang()
            # Those too that are reconstructed later only: their region was left for the next step.
            newest, number = frames.light.newest, frames.table.seq_nums
            self.before = newest[number[newest] < number[due[1][0]]]
            self.check_in.begin_again(frames, due[1], drift, lambda: self._probe.modes[0], takes)

    def take(self) -> Taken:
        """Take over the probe of a check that has ended, if it is better."""
        found = None if self.check_in is None else self.check_in.take()
        if self.check_in is None or found is None:
            return Taken.NOTHING
        self._probe.publish(scaled_to(found[None], float(intensity(self._probe.modes).sum())))
        if self.check_in.is_first:
            return Taken.GUESS
        self._alarm.begin_anew()
        return Taken.ONWARD

    def wait(self, is_interrupted: Callable[[], bool]) -> bool:
        """Wait for the check that is being made, as long as nothing interrupts that; whether none is any more."""
        ended_by = time.monotonic() + MOST_WAIT_S
        while self.check_in is not None and not self.check_in.wait(WAIT_S):
            if time.monotonic() > ended_by or is_interrupted():
                return False
        return True

    def source(self) -> dict[str, Any]:
        """Give what the source of estimates says of it."""
        if self.check_in is None:
            return {}
        self._given = self.check_in.notes
        return {"probe_check_in": dict(self._given)}

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give what was found, as arrays."""
        return {} if self.check_in is None else {**self.check_in.checkpoint(), "alarm": self._alarm.checkpoint()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave; nothing of a reconstruction whose guess was trusted."""
        if self.check_in is not None and "notes" in state:
            self.check_in.restore(state)
            # Checkpoints of before don't know it.
            if "alarm" in state:
                self._alarm.restore(state["alarm"])

    def close(self) -> None:
        """End a check that is being made."""
        if self.check_in is not None:
            self.check_in.close()
