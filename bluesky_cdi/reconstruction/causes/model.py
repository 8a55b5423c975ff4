"""What the newest frames ask of the model beyond those before: another probe, other places, light that is smeared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.causes.finding import SIGMAS, Finding, is_beyond_doubt
from bluesky_cdi.reconstruction.probe_checkin.drift import Drift
from bluesky_cdi.reconstruction.scores import DETECTED, PLACE, Scores

# Frames from which on those before are fewer than what is asked of all: what is wrong from the start.
SETTLED = 64
# Share of a frame's light that is background: more than before, and in all.
LEAST_BACKGROUND, LEAST_BACKGROUND_OF_ALL = 0.008, 0.03
# Strong objects scatter light that an image which isn't converged doesn't have; it differs from frame to frame.
BACKGROUND_SIGMAS = 5.0
# Half the variance by which patterns are smeared, squared pixels: more than before, and in all.
LEAST_BLUR, LEAST_BLUR_OF_ALL = 0.08, 0.15
# How far frames are off their places, root mean square beyond photon noise, pixels.
LEAST_PLACE_PX = 0.3
# Frames that are new ask for less than they will later: so sure is enough.
PLACE_SIGMAS = 3.0
# Of a normal distribution in the plane the median square over the mean one.
MEDIAN_OF_MEAN = math.log(2)


@dataclass(frozen=True, eq=False)
class Change:
    """What the newest frames ask for more than those before, of each direction, all directions together.

    Attributes
    ----------
    names : tuple of str
    before, lately : ndarray, shape (p,)
    error : ndarray, shape (p,)
        Standard error of the difference.
    lately_error : ndarray, shape (p,)
    gain : ndarray, shape (p,)
        By how much the deviance of the newest is less where a direction's difference is granted.
    """

    names: tuple[str, ...]
    before: FloatArray
    lately: FloatArray
    error: FloatArray
    lately_error: FloatArray
    gain: FloatArray

    @classmethod
    def between(cls, before: Scores, lately: Scores) -> Change:
        """Compare two sets of frames."""
        names = tuple(each for each in lately.names if each not in PLACE)
        early, early_error = before.asked(*names)
        late, late_error = lately.asked(*names)
        squares = np.diag(early_error) + np.diag(late_error)
        _, information = lately.of(*names)
        total = information.sum(axis=0)
        # Information about one direction where all others are free.
        free = 1 / np.maximum(np.diag(np.linalg.pinv(total, hermitian=True)), 1e-30)
        return cls(names, early, late, np.sqrt(squares), np.sqrt(np.diag(late_error)), np.square(late - early) * free)

    def of(self, name: str) -> tuple[float, float, float]:
        """Give a direction's difference, its standard error, and what it gains."""
        k = self.names.index(name)
        return float(self.lately[k] - self.before[k]), float(self.error[k]), float(self.gain[k])

    def newest(self, name: str) -> tuple[float, float]:
        """Give what the newest ask for of a direction, and its standard error."""
        k = self.names.index(name)
        return float(self.lately[k]), float(self.lately_error[k])


def model_findings(before: Scores, lately: Scores, photons: float, size: int) -> list[Finding]:
    """Say what each change of the model would explain of the newest frames, and whether they ask for it beyond doubt.

    Parameters
    ----------
    before, lately : Scores
        Of frames before, and of the newest.
    photons : float
        Of a frame.
    size : int
        Pixels of a frame.
    """
    change, number = Change.between(before, lately), len(lately)
    return [
        _probe(change, number),
        _places(before, lately),
        _background(change, number, len(before), size / max(photons, 1e-30)),
        _coherence(change, number, len(before)),
    ]


def _probe(change: Change, number: int) -> Finding:
    drifts = [Drift(name, *change.of(name)[:2], number) for name in change.names if name not in DETECTED]
    drift = max(drifts, key=lambda each: each.in_errors)
    says = f"{drift}. Look at focus and optics; begin a new run for a sharper image"
    k = change.names.index(drift.aberration)
    # Where those before ask for more, it is the probe that has become better since.
    is_new = abs(change.lately[k]) > abs(change.before[k])
    gain = float(change.gain[k]) if is_new else 0.0
    return Finding("probe", says, gain, is_sure=drift.is_sure and is_new)


def _places(before: Scores, lately: Scores) -> Finding:
    (early, early_noise), (late, noise) = before.asked_each(*PLACE), lately.asked_each(*PLACE)
    squares, earlier = (np.square(each).sum(axis=1) for each in (late, early))
    by_noise, earlier_by_noise = (np.trace(each, axis1=1, axis2=2) + 1e-12 for each in (noise, early_noise))
    # Medians and logarithms: a few frames under another beam must not be taken for all.
    off_px = math.sqrt(max(float(np.median(squares)) / MEDIAN_OF_MEAN - float(by_noise.mean()), 0.0))
    was_px = math.sqrt(float(np.median(earlier)) / MEDIAN_OF_MEAN)
    # By more than frames with more photons are, too: where little scatters, noise alone asks for much.
    in_errors = min(
        _in_errors(np.log(squares + 1e-12), np.log(earlier + 1e-12)),
        _in_errors(np.log(squares / by_noise + 1e-12), np.log(earlier / earlier_by_noise + 1e-12)),
    )
    score, _ = lately.of(*PLACE)
    return Finding(
        "positions",
        f"frames ask for places {off_px:.2g} pixels rms from where they are said to be (those before: {was_px:.2g}). "
        "Look at encoders and trigger; reconstructor.refine_positions lets the frames move",
        float((score * late).sum()),
        is_sure=off_px > LEAST_PLACE_PX and is_beyond_doubt(in_errors, len(late), PLACE_SIGMAS),
    )


def _background(change: Change, number: int, before: int, pixels: float) -> Finding:
    size, error, gain = change.of("background")
    newest, newest_error = change.newest("background")
    is_new = _is(size * pixels, error * pixels, number, LEAST_BACKGROUND, BACKGROUND_SIGMAS)
    all_along = _is(newest * pixels, newest_error * pixels, number, LEAST_BACKGROUND_OF_ALL, BACKGROUND_SIGMAS)
    is_old = before >= SETTLED and all_along
    return Finding(
        "background",
        f"{100 * newest * pixels:.2g} % of a frame's light lies evenly over it and is not the sample's "
        f"({newest:.2g} photons a pixel). Look for stray light and dark current; state reconstructor.background",
        gain if size > 0 else 0.0,
        from_start=is_old and not is_new,
        is_sure=is_new or is_old,
    )


def _coherence(change: Change, number: int, before: int) -> Finding:
    size, error, gain = change.of("blur")
    newest, newest_error = change.newest("blur")
    is_new = _is(size, error, number, LEAST_BLUR)
    is_old = before >= SETTLED and _is(newest, newest_error, number, LEAST_BLUR_OF_ALL)
    return Finding(
        "coherence",
        f"speckles are less sharp than the model's: as if smeared by {math.sqrt(max(2 * newest, 0.0)):.2g} detector "
        "pixels rms. Look at slits and vibrations; more probe.modes describe a beam that is less coherent",
        gain if size > 0 else 0.0,
        from_start=is_old and not is_new,
        is_sure=is_new or is_old,
    )


def _in_errors(late: FloatArray, early: FloatArray) -> float:
    """Compute the difference of two means in its standard errors."""
    error = math.sqrt(late.var(ddof=1) / len(late) + early.var(ddof=1) / len(early))
    return float(late.mean() - early.mean()) / max(error, 1e-30)


def _is(size: float, error: float, number: int, least: float, sigmas: float = SIGMAS) -> bool:
    return size > least and is_beyond_doubt(size / max(error, 1e-30), number, sigmas)
