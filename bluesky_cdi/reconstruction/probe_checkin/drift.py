"""Whether the newest frames of a run ask for another probe than those before: the drift alarm.

An aberration that is added to the probe changes what a frame is expected to count, and what was counted tells how
much of it that frame asks for (the score of the Poisson likelihood over its Fisher information). If the probe is the
same all along, the newest frames ask for as much as those before, whatever the sample looks like there: its structure
makes a frame tell more or less, but not more of one sign. So a probe that is wrong from the first frame on raises no
alarm, and a focus that moves does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm, t
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.trial import ABERRATIONS, Trial
from bluesky_cdi.reconstruction.scores import UNEXPLAINED, Scores
from bluesky_cdi.reconstruction.tiles import IndexArray

# Frames that are compared: the newest, and a spread of those before.
LATELY, BEFORE = 32, 64
# It is looked after so many new frames.
EVERY = 16
# Alarms in a row after which no probe was taken.
MOST_IN_VAIN = 3
# The first aberrations are looked at, defocus and the astigmatisms: what a focus that moves, or a mirror that bends,
# changes first.
LOOKED_AT = 3
# Half the phase between the two probes that a derivative is taken from, radians rms.
STEP_RAD = 0.1
# How sure an alarm is, in standard errors of many frames: a false one in 20,000 looks at three aberrations, were frames
# independent; and the least change that is worth one.
ALARM_SIGMAS, LEAST_RAD = 4.5, 0.1


@dataclass(frozen=True)
class Drift:
    """How much more of an aberration the newest frames ask for than those before.

    Attributes
    ----------
    aberration : str
        Of `ABERRATIONS`.
    change_rad : float
        Phase, root mean square over the pupil.
    standard_error : float
        From the scatter of the frames.
    frames : int
        The newest ones.
    """

    aberration: str
    change_rad: float
    standard_error: float
    frames: int

    @classmethod
    def between(cls, aberration: str, before: Scores, lately: Scores) -> Drift:
        """Compare what two sets of frames ask for of an aberration, which is a direction of both."""
        (early, early_error), (late, late_error) = (each.asked(aberration) for each in (before, lately))
        error = float(np.sqrt(early_error[0, 0] + late_error[0, 0]))
        return cls(aberration, float(late[0] - early[0]), error, len(lately))

    @property
    def in_errors(self) -> float:
        """Size in standard errors."""
        return abs(self.change_rad) / max(self.standard_error, 1e-30)

    @property
    def is_sure(self) -> bool:
        """Whether it is worth an alarm; few frames need more standard errors (Student's t)."""
        threshold = float(t.isf(norm.sf(ALARM_SIGMAS), self.frames - 1))
        return abs(self.change_rad) > LEAST_RAD and self.in_errors > threshold

    def __str__(self) -> str:
        return (
            f"the newest {self.frames} frames ask for {self.change_rad:+.2f} rad rms more {self.aberration} than those "
            f"before ({self.in_errors:.0f} standard errors)"
        )


class DriftAlarm:
    """Compares the newest frames of a run with those before, now and then.

    A probe that was taken begins an epoch with the frames that it was found by, and only frames of one are compared.
    Alarms after which none is taken are few: there may be no better one.
    """

    def __init__(self) -> None:
        self._looked_at = self._in_vain = 0

    def rows_due(self, rows: IndexArray) -> tuple[IndexArray, IndexArray] | None:
        """Choose the frames to compare, if it is time to.

        Parameters
        ----------
        rows : ndarray, shape (n,)
            Rows of the frames of the newest epoch that are reconstructed, in the order of their numbers.

        Returns
        -------
        tuple of ndarray or None
            Rows before, and the newest.
        """
        if len(rows) < self._looked_at + EVERY or self._in_vain == MOST_IN_VAIN:
            return None
        before, lately = rows[:-LATELY], rows[-LATELY:]
        if len(before) < LATELY:
            return None
        self._looked_at = len(rows)
        return before[np.unique(np.linspace(0, len(before) - 1, BEFORE).round().astype(int))], lately

    def rang(self) -> None:
        """Note an alarm."""
        self._in_vain += 1

    def begin_anew(self) -> None:
        """Begin an epoch with the frames that were the newest at the last look: a probe was taken that is theirs."""
        self._looked_at, self._in_vain = LATELY, 0

    def checkpoint(self) -> npt.NDArray[np.int64]:
        """Give how many frames were there at the last look, and how many alarms were in vain."""
        return np.array([self._looked_at, self._in_vain])

    def restore(self, state: npt.NDArray[np.int64]) -> None:
        """Take what `checkpoint` gave."""
        self._looked_at, self._in_vain = state.tolist()


@torch.no_grad()
def drift_between(obj: Tensor, probe: Tensor, before: Diffraction, lately: Diffraction) -> Drift:
    """Compare how much of each aberration two sets of frames ask for; the most significant difference.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex64
        As it is known by now.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    before, lately : Diffraction
        The frames.
    """
    pupil = Pupil(probe[0], before)
    found = [_asked_for(pupil, obj, probe, data) for data in (before, lately)]
    drifts = []
    for k, name in enumerate(ABERRATIONS[:LOOKED_AT]):
        (early, early_error), (late, late_error) = (_weighted(*(part[k] for part in parts)) for parts in found)
        error = float(np.hypot(early_error, late_error))
        drifts.append(Drift(name, late - early, error, len(lately)))
    return max(drifts, key=lambda drift: drift.in_errors)


def _asked_for(pupil: Pupil, obj: Tensor, probe: Tensor, data: Diffraction) -> tuple[FloatArray, FloatArray]:
    """Compute each frame's score and information of each aberration, both (3, n)."""
    flux = torch.ones(len(data), device=obj.device) if data.flux is None else data.flux
    mean = (data.counts.sum(dim=0) + 0.5) / flux.sum()
    size = frames_at_once(probe)
    sides = [[pupil.turned(_only(index, sign * STEP_RAD)) for sign in (-1, 1)] for index in range(LOOKED_AT)]
    scores, informations = [], []
    for part, its_flux in zip(data.chunks(size), torch.split(flux, size), strict=True):
        patches = part.patches(obj)

        def rate(modes: Tensor, part: Diffraction = part, patches: Tensor = patches) -> Tensor:
            return part.rate(part.probes(modes), patches)

        # Light that nothing explains is like the mean frame; else single photons in the dark would rule.
        expected = (1 - UNEXPLAINED) * rate(probe) + UNEXPLAINED * its_flux[:, None, None] * mean
        slopes = torch.stack([rate(above[None]) - rate(below[None]) for below, above in sides])
        slopes = slopes * ((1 - UNEXPLAINED) / (2 * STEP_RAD))
        if part.valid is not None:
            slopes = torch.where(part.valid, slopes, 0.0)
        excess = torch.where(slopes[0] != 0, part.counts / expected - 1, 0.0)
        scores.append((excess * slopes).sum(dim=(-2, -1)))
        informations.append((slopes.square() / expected).sum(dim=(-2, -1)))
    score, information = (np.asarray(torch.cat(each, dim=1).cpu(), np.float64) for each in (scores, informations))
    return score, information


def _only(index: int, size_rad: float) -> Trial:
    return Trial(aberrations_rad=tuple(size_rad if k == index else 0.0 for k in range(len(ABERRATIONS))))


def _weighted(score: FloatArray, information: FloatArray) -> tuple[float, float]:
    """Compute how much the frames (n,) ask for together, and its standard error from their scatter."""
    total = max(float(information.sum()), 1e-30)
    asked = float(score.sum()) / total
    scatter = float(np.square(score - asked * information).sum()) * len(score) / max(len(score) - 1, 1)
    return asked, float(np.sqrt(scatter)) / total
