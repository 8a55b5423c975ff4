"""The search among trials: from coarse to fine, each round as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.propagators import FAR_FIELD
from bluesky_cdi.reconstruction.orientation import ALL, AS_STATED, Orientation
from bluesky_cdi.reconstruction.probe_checkin.gain import Gain
from bluesky_cdi.reconstruction.probe_checkin.judging import Fold, Judge
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.trial import ABERRATIONS, DEFOCUS, Trial

# Few sweeps see quickly which of two trials is nearer to the truth, and are wrong by up to 0.2 rad; what they
# choose has to hold after more.
SWEEPS = 2
# Modes weaker than this are left out while the others are searched.
WEAKEST = 0.1
# How sure a step of the search must be; the search as a whole is tested on other frames.
STEP_SIGMAS = 2.0
# Shares of the photons that are tried where several modes are assumed: those of many recorded scans.
MAIN_SHARE = 0.85
# Steps, root mean square over the pupil, radians: a probe 0.6 rad off still shows which way to go.
COARSE_RAD = (0.6, 1.2, 1.8, 2.4)
FIRST_STEP_RAD, LAST_STEP_RAD = 0.8, 0.4
# Rounds of one step, as long as each moves.
ROUNDS = 2
# Range and step where no phase is assumed.
UNKNOWN_RAD, UNKNOWN_STEP_RAD = 10.0, 0.4
# Another orientation explains frames better by at least this share.
ORIENTATION_GAIN = 0.1
# The both-flipped orientation is the far field's twin: it goes with the probe's, known from the assumed one alone.
TWIN = Orientation(False, True, True)
# Largest shift of the beam's centre that is looked for, as a share of the frame.
LARGEST_SHIFT = 1 / 8


@dataclass(frozen=True)
class Wanted:
    """What the search may change besides the probe.

    Attributes
    ----------
    centre, orientation : bool
        The beam's centre on the frames, the orientation of the positions.
    scale : bool
        The common scale of the positions: not by default, for with a wrong probe or few photons the positions that tell
        it go astray.
    """

    centre: bool = True
    orientation: bool = True
    scale: bool = False


class Search:
    """Look for a better trial.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene.
    pupil : Pupil
        Makes the trials' probes.
    fold : Fold
        Frames that trials are made from, and those that judge them.
    wanted : Wanted
        What may be changed.
    on_step : callable, optional
        Called before each batch of trials.

    Attributes
    ----------
    trial : Trial
        The best one so far.
    evaluations : int
        Trials that were reconstructed.
    """

    def __init__(
        self, data: Diffraction, pupil: Pupil, fold: Fold, wanted: Wanted, on_step: Callable[[], None] | None = None
    ) -> None:
        self._data, self._pupil, self._fold, self._wanted, self._on_step = data, pupil, fold, wanted, on_step
        self._judge = Judge(data, pupil, SWEEPS, WEAKEST, on_step=on_step)
        self._known: dict[Trial, Tensor] = {}
        self.trial = Trial()
        self.evaluations = 0

    def run(self) -> Trial:
        """Search around what is assumed."""
        self._frame_of_the_beam()
        self._defocus(COARSE_RAD)
        if self._wanted.orientation and self._turned():
            self._defocus(COARSE_RAD)
        self._aberrations(FIRST_STEP_RAD)
        self._aberrations(LAST_STEP_RAD)
        self._offer([replace(self.trial, amplitude="frames" if self.trial.amplitude == "assumed" else "assumed")])
        return self.trial

    def run_without_phase(self) -> tuple[Trial, Trial]:
        """Search defocus of a flat pupil; returns the best trial, and the best on the other side of the focus."""
        steps = int(UNKNOWN_RAD / UNKNOWN_STEP_RAD)
        start = Trial(amplitude="frames", flat=True)
        flat = {k: _with(start, DEFOCUS, k * UNKNOWN_STEP_RAD) for k in range(-steps, steps + 1)}
        means = self._deviance(list(flat.values())).mean(dim=1)
        best = min(flat, key=lambda k: float(means[k + steps]))
        side = [k for k in flat if k * best < 0 or (best == 0 and k)]
        other = min(side, key=lambda k: float(means[k + steps]))
        ends = []
        for k in (best, other):
            self.trial = flat[k]
            self._aberrations(LAST_STEP_RAD)
            ends.append(self.trial)
        first, second = self._deviance(ends).mean(dim=1)
        return (ends[0], ends[1]) if first <= second else (ends[1], ends[0])

    def _frame_of_the_beam(self) -> None:
        """Compare amplitudes, powers of the modes and places of the beam's centre, in one batch."""
        powers: list[tuple[float, ...] | None] = [None]
        if len(self._pupil.shares) > 1:
            powers.append(_led(self._pupil.shares, self._pupil.strongest))
        centres = self._centres()
        border = max((max(abs(y), abs(x)) for y, x in centres), default=0)
        trials = [Trial(powers=share, centre_px=centre) for share in powers for centre in centres]
        trials += [Trial("frames", powers=share) for share in powers]
        judge = Judge(self._data, self._pupil, SWEEPS, WEAKEST, border, self._on_step)
        found = judge.deviance(trials, self._fold)
        self.evaluations += len(trials)
        best = int(found.mean(dim=1).argmin())
        if Gain.of(found[0], found[best]).exceeds(0.0, STEP_SIGMAS):
            self.trial = trials[best]
            # What comes in from the other side of moved frames was not measured there.
            self._judge = Judge(self._data, self._pupil, SWEEPS, WEAKEST, self.trial.border_px, self._on_step)

    def _centres(self) -> list[tuple[int, int]]:
        """List where the beam's centre may lie: as assumed, then as mean frame and pupil match, and around."""
        if not self._wanted.centre or self._data.propagator is not FAR_FIELD:
            return [(0, 0)]
        y, x = self._pupil.offset_px(int(LARGEST_SHIFT * self._data.counts.shape[-1]))
        if (y, x) == (0, 0):
            return [(0, 0)]
        return list(dict.fromkeys([(0, 0), (y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]))

    def _defocus(self, sizes: Sequence[float]) -> None:
        self._offer([_with(self.trial, DEFOCUS, sign * size) for size in sizes for sign in (-1, 1)])

    def _aberrations(self, step: float) -> None:
        """Try each aberration to both sides, and the minimum of the parabolas through what was found."""
        for _ in range(ROUNDS):
            if not self._round(step):
                break

    def _round(self, step: float) -> bool:
        centre = self.trial
        sides = [_with(centre, k, sign * step) for k in range(len(ABERRATIONS)) for sign in (-1, 1)]
        means = self._deviance([centre, *sides]).mean(dim=1).tolist()
        move = [_lowest(means[0], means[1 + 2 * k], means[2 + 2 * k]) * step for k in range(len(ABERRATIONS))]
        return self._offer([*sides, *(_moved(centre, [share * m for m in move]) for share in (1.0, 0.6))])

    def _turned(self) -> bool:
        """Try the other orientations; tells whether one is clearly better."""
        far = self._data.propagator is FAR_FIELD
        others = [each for each in ALL if each != AS_STATED and not (far and each == TWIN)]
        return self._offer([replace(self.trial, orientation=each) for each in others], ORIENTATION_GAIN)

    def _offer(self, trials: Sequence[Trial], least: float = 0.0) -> bool:
        """Take the best of some trials, if it is better than the one that is held."""
        found = self._deviance([self.trial, *trials])
        best = int(found[1:].mean(dim=1).argmin())
        better = Gain.of(found[0], found[1 + best]).exceeds(least, STEP_SIGMAS)
        if better:
            self.trial = trials[best]
        return better

    def _deviance(self, trials: Sequence[Trial]) -> Tensor:
        """Compute the deviance of the unseen frames, (trials, frames); what is known is not computed again."""
        new = [trial for trial in dict.fromkeys(trials) if trial not in self._known]
        if new:
            self._known.update(zip(new, self._judge.deviance(new, self._fold), strict=True))
            self.evaluations += len(new)
        return torch.stack([self._known[trial] for trial in trials])


def _with(trial: Trial, index: int, change: float) -> Trial:
    return _moved(trial, [change if k == index else 0.0 for k in range(len(ABERRATIONS))])


def _moved(trial: Trial, changes: Sequence[float]) -> Trial:
    return replace(trial, aberrations_rad=tuple(a + b for a, b in zip(trial.aberrations_rad, changes, strict=True)))


def _lowest(here: float, below: float, above: float) -> float:
    """Place of the minimum of the parabola through -1, 0, 1, within them; the lowest of the three if it has none."""
    curvature = below + above - 2 * here
    if curvature <= 0:
        return -1.0 if below < above else 1.0
    return max(-1.0, min(1.0, (below - above) / (2 * curvature)))


def _led(shares: tuple[float, ...], strongest: int) -> tuple[float, ...]:
    """Give the main mode `MAIN_SHARE` of the photons, each other half of the one before, in their given order."""
    others = sorted((k for k in range(len(shares)) if k != strongest), key=lambda k: -shares[k])
    weights = {k: 0.5**place for place, k in enumerate(others)}
    total = sum(weights.values())
    return tuple(MAIN_SHARE if k == strongest else (1 - MAIN_SHARE) * weights[k] / total for k in range(len(shares)))
