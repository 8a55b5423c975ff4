"""The check-in of a run's probe while the run is measured: beside the reconstruction, in a thread of its own.

It is made once enough frames are in, and again by the newest frames where `drift` says that these ask for another
probe.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.background import step_back
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.prediction import ProbeFinder
from bluesky_cdi.reconstruction.probe_checkin.check import (
    MOST_FRAMES,
    TEST_SWEEPS,
    CheckIn,
    asked_network,
    check_in,
    folds,
)
from bluesky_cdi.reconstruction.probe_checkin.drift import Drift
from bluesky_cdi.reconstruction.probe_checkin.gain import Gain
from bluesky_cdi.reconstruction.probe_checkin.judging import Judge
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.search import Wanted
from bluesky_cdi.reconstruction.probe_checkin.trial import Trial
from bluesky_cdi.reconstruction.probe_checkin.words import notes_of
from bluesky_cdi.reconstruction.tiles import IndexArray

logger = logging.getLogger(__name__)

# Frames of a run from which on its probe is checked. The first rows of a raster, or the widely spaced first points of
# an adaptive scan, may not tell anything: then it is checked again, by those in the middle of more.
CHECKED_AT = (32, 64, 128)
# Frames and positions stay as they are: what is measured already has its places.
PROBE_ALONE = Wanted(centre=False, orientation=False)


class LiveCheckIn:
    """Check the assumed probe once enough frames of a run are in.

    Frames are handed over by the thread that owns them, which goes on reconstructing. What is found is taken by that
    thread too, if it explains frames better than the probe that the reconstruction has come to by then.

    Parameters
    ----------
    geometry : Geometry
        Of the run: gives lengths in metres.
    finder : callable, optional
        Finds a probe by a network. It is asked once what the first check has found without it was taken.

    Attributes
    ----------
    notes : Mapping
        What is kept with the result, as plain JSON values; of a drift ("again") from the alarm on.
    """

    def __init__(self, geometry: Geometry, finder: ProbeFinder | None = None) -> None:
        self.notes: Mapping[str, Any] = {}
        self._geometry, self._finder = geometry, finder
        self._left, self._checked = list(CHECKED_AT), 0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._found: _Found | None = None
        self._again: dict[str, Any] | None = None
        # Whether the first check ended without a network that is still to answer.
        self._asks = False

    @property
    def is_first(self) -> bool:
        """Whether the check that is being made, or was made last, is that of the first guess."""
        return self._again is None

    @property
    def is_running(self) -> bool:
        """Whether a check is being made, or has been and was not looked at yet; not of one that is wanted no more."""
        return self._thread is not None and not self._closed.is_set()

    def begin(self, frames: MeasuredFrames, assumed: Tensor, current: Callable[[], Tensor]) -> None:
        """Begin a check, if that is due.

        Parameters
        ----------
        frames : MeasuredFrames
            Those of the run by now.
        assumed : Tensor, shape (M, N, N), complex64
            The first guess.
        current : callable
            Gives the probe (M, N, N) as the reconstruction has it when the check ends.
        """
        if self._thread is not None or self._closed.is_set():
            return
        is_due = bool(self._left) and len(frames) >= self._left[0]
        if not is_due and not (self._asks and len(frames) >= CHECKED_AT[0]):
            return
        self._checked = len(frames)
        rows = frames.light.lit
        data = frames.diffraction(rows[nearest_to_middle(frames.table.corner[rows], MOST_FRAMES)])
        if is_due:
            self._asks = False
            self._start(partial(self._looked, data, assumed, current, takes=True))
        else:
            self._start(partial(self._asked_again, data, assumed, current))

    def begin_again(
        self, frames: MeasuredFrames, lately: IndexArray, drift: Drift, current: Callable[[], Tensor], takes: bool
    ) -> None:
        """Begin a check by the newest frames, which ask for another probe than those before; note that at once.

        Parameters
        ----------
        frames : MeasuredFrames
            Those of the run by now.
        lately : ndarray, shape (n,)
            Rows of the newest.
        drift : Drift
            What they ask for.
        current : callable
            Gives the probe (M, N, N) of the reconstruction.
        takes : bool
            Whether the reconstruction can go on with another probe from here on.
        """
        if self._thread is not None or self._closed.is_set():
            return
        logger.warning("the beam has changed during the run: %s", drift)
        self._left, self._asks = [], False
        # The check may fail, or not end before the run does: then this stays.
        self._again = {"frames": len(frames), "drift": str(drift), "taken": False}
        self.notes = {**self.notes, "again": [*self.notes.get("again", []), self._again]}
        data = frames.diffraction(lately)
        self._start(partial(self._looked, data, current(), current, takes))

    def wait(self, timeout_s: float) -> bool:
        """Wait for the check that is being made; whether none is any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def take(self) -> Tensor | None:
        """Give the probe (M, N, N) to go on with, once, where a check has found a better one.

        What was found is logged and noted. A first check without a network is followed by one with it.
        """
        if self._thread is None or self._thread.is_alive() or self._closed.is_set():
            return None
        self._thread, self._asks = None, False
        self._left = [number for number in self._left if number > self._checked]
        found, self._found = self._found, None
        if found is None:
            return None
        if self._again is not None:
            return self._taken_again(found, self._again)
        probe = self._taken_first(found)
        if found.ask_network is not None:
            self._asks = True
            self._start(found.ask_network)
        return probe

    def _taken_first(self, found: _Found) -> Tensor | None:
        self.notes = {**notes_of(found.check, self._geometry), "taken": found.is_better}
        if found.is_better:
            self._left = []
            logger.warning("the probe is another than was assumed. %s", self.notes["says"])
            return found.check.probe
        ending = "" if not found.check.changed else " The reconstruction's own refinement explains them as well."
        logger.info("probe check-in: %s%s", self.notes["says"], ending)
        return None

    def _taken_again(self, found: _Found, again: Mapping[str, Any]) -> Tensor | None:
        its = {**again, **notes_of(found.check, self._geometry), "taken": found.is_better}
        self.notes = {**self.notes, "again": [*self.notes["again"][:-1], its]}
        ending = "The reconstruction goes on with the probe that it has"
        if found.is_better:
            ending = "The reconstruction goes on with the new probe; what earlier frames have shown stays."
        elif found.check.changed:
            ending += ": begin a new run for a sharper image."
        else:
            ending += "; it is looked at again with further frames."
        logger.warning("probe check-in by the newest frames: %s %s", its["says"], ending)
        return found.check.probe if found.is_better else None

    def close(self) -> None:
        """Begin no check any more; one that is being made ends with the trials that it is at."""
        if self.is_running:
            stays = "what was found without the network stays" if self._asks else "the probe was not replaced"
            logger.info("the check of the probe was not over when the run ended: %s", stays)
        self._closed.set()

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give what was found and what is still to be done, as arrays.

        That is: from which frames on the first guess is checked again, and whether a network has still to answer.
        """
        return {
            "notes": np.array(json.dumps(self.notes)),
            "left": np.array(self._left, np.int64),
            "asks": np.array(self._asks),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave: what had ended is not made again, what had not is."""
        self.notes = json.loads(str(state["notes"]))
        # Checkpoints of before know only whether one had ended.
        self._left = state["left"].tolist() if "left" in state else [] if self.notes else self._left
        self._asks = self._finder is not None and "asks" in state and bool(state["asks"])

    def _start(self, look: Callable[[], _Found | None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(look,), name="bluesky_cdi-probe-check-in")
        self._thread.start()

    def _run(self, look: Callable[[], _Found | None]) -> None:
        # The image comes first, where there are not cores enough for both.
        step_back()
        try:
            self._found = look()
        except _Closed:
            return
        except (BlueskyCDIError, RuntimeError) as err:
            # The run goes on with the probe that it has.
            logger.warning("the probe can't be checked: %s", err)

    def _looked(self, data: Diffraction, assumed: Tensor, current: Callable[[], Tensor], takes: bool) -> _Found:
        """Check without a network."""
        check = check_in(data, assumed, wanted=PROBE_ALONE, on_step=self._stop_if_closed)
        found = _Found(check, takes and check.changed and self._is_better(check, data, current()))
        if self._finder is None or self._again is not None:
            return found
        return replace(found, ask_network=partial(self._asked, data, check, self._finder, current))

    def _asked(
        self, data: Diffraction, without: CheckIn, finder: ProbeFinder, current: Callable[[], Tensor]
    ) -> _Found | None:
        """Ask the network; None where what was found without it stays."""
        check = asked_network(data, without, finder, PROBE_ALONE, on_step=self._stop_if_closed)
        return self._of_network(check, data, current)

    def _asked_again(self, data: Diffraction, assumed: Tensor, current: Callable[[], Tensor]) -> _Found | None:
        """Ask the network where what was found without it is taken already."""
        check = check_in(data, assumed, wanted=PROBE_ALONE, finder=self._finder, on_step=self._stop_if_closed)
        return self._of_network(check, data, current)

    def _of_network(self, check: CheckIn, data: Diffraction, current: Callable[[], Tensor]) -> _Found | None:
        if check.network is None or not self._is_better(check, data, current()):
            return None
        return _Found(check, True)

    @torch.no_grad()
    def _is_better(self, check: CheckIn, data: Diffraction, current: Tensor) -> bool:
        """Whether the found probe explains frames better than what the reconstruction has made of the assumed one."""
        pupil = Pupil(check.assumed, data)
        probes = [pupil.as_bright_as_frames(each) for each in (current, check.probe)]
        judge = Judge(data, pupil, TEST_SWEEPS, on_step=self._stop_if_closed)
        trials = [Trial(), Trial()]
        table = torch.cat([judge.deviance_of_probes(trials, probes, fold) for fold in folds(data)], dim=1)
        return Gain.of(table[0], table[1]).exceeds(0.0)

    def _stop_if_closed(self) -> None:
        if self._closed.is_set():
            raise _Closed


@dataclass(frozen=True, eq=False)
class _Found:
    """What a check found, whether it is better than what the reconstruction had by then, and what is due after it."""

    check: CheckIn
    is_better: bool
    ask_network: Callable[[], _Found | None] | None = None


class _Closed(Exception):
    """The check is wanted no more."""
