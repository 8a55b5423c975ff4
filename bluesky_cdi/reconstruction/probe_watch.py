"""The check of a run's first guess, as a reconstructor sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.physics.forward import intensity
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.probe_checkin.live import LiveCheckIn
from bluesky_cdi.reconstruction.shared_probe import SharedProbe

# How often a wait asks whether it shall come back, and how long it is at most, seconds.
WAIT_S, MOST_WAIT_S = 0.05, 60.0


class ProbeWatch:
    """Has the first guess of a shared probe checked, and replaces it by a better one.

    Parameters
    ----------
    probe : SharedProbe
        As it is first guessed.
    check_in : LiveCheckIn or None
        Makes the check; None: the guess is trusted.
    """

    def __init__(self, probe: SharedProbe, check_in: LiveCheckIn | None) -> None:
        self.check_in = check_in
        self._probe, self._assumed = probe, probe.modes[0]

    @property
    def is_running(self) -> bool:
        """Whether a check is being made, or has been and was not looked at yet."""
        return self.check_in is not None and self.check_in.is_running

    def begin(self, frames: MeasuredFrames) -> None:
        """Begin a check, if these frames of the run are enough for one that is due."""
        if self.check_in is not None:
            self.check_in.begin(frames, self._assumed, lambda: self._probe.modes[0])

    def take(self) -> bool:
        """Take over the probe of a check that has ended, if it is better; whether the probe is another one now."""
        found = None if self.check_in is None else self.check_in.take()
        if found is None:
            return False
        self._probe.publish(scaled_to(found[None], float(intensity(self._probe.modes).sum())))
        return True

    def wait(self, is_interrupted: Callable[[], bool]) -> None:
        """Wait for the check that is being made, as long as nothing interrupts that."""
        ended_by = time.monotonic() + MOST_WAIT_S
        while self.check_in is not None and not self.check_in.wait(WAIT_S):
            if time.monotonic() > ended_by or is_interrupted():
                return

    def source(self) -> dict[str, Any]:
        """Give what the source of estimates says of it."""
        return {} if self.check_in is None else {"probe_check_in": dict(self.check_in.notes)}

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give what was found, as arrays."""
        return {} if self.check_in is None else {"notes": np.array(json.dumps(self.check_in.notes))}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave; nothing of a reconstruction whose guess was trusted."""
        if self.check_in is not None and "notes" in state:
            self.check_in.restore(json.loads(str(state["notes"])))

    def close(self) -> None:
        """End a check that is being made."""
        if self.check_in is not None:
            self.check_in.close()
