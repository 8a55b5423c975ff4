"""The check of an assumed probe by a few frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.orientation import AS_STATED
from bluesky_cdi.reconstruction.prediction import ProbeFinder
from bluesky_cdi.reconstruction.probe_checkin.by_network import NetworkProbe
from bluesky_cdi.reconstruction.probe_checkin.gain import Gain
from bluesky_cdi.reconstruction.probe_checkin.judging import Fold, Judge
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.scale import estimate_scale
from bluesky_cdi.reconstruction.probe_checkin.search import WEAKEST, Search, Wanted
from bluesky_cdi.reconstruction.probe_checkin.trial import ABERRATIONS, DEFOCUS, Trial

logger = logging.getLogger(__name__)

# Frames that are looked at, and the fewest that can tell anything: more cost time and tell little more.
MOST_FRAMES, LEAST_FRAMES = 48, 12
FOLDS = 3
# Sweeps of the test. After two the better probe can lose; after eight it never did on objects of up to a turn.
TEST_SWEEPS = 8
# Least gain as a share of the deviance, of all changes together and of the free refinement after them. With a
# perfect probe and thick or strongly scattering objects few sweeps make up to 0.08.
LEAST_GAIN = 0.1
# Least gain of a single change, the others made.
LEAST_SINGLE_GAIN = 0.01
# A scale that the positions ask for may explain unseen frames worse by no more than so many standard errors.
NOT_WORSE = 1.0
# LSQ-ML that refines object and probe together: first in mini-batches, then all frames in one accelerated step.
FREE_EPOCHS, FREE_TOGETHER_FROM, FREE_BATCH = 40, 10, 4
# It goes on for more where the deviance per pixel of the frames that it is given is above this: far from the photon
# noise, and worth the time.
MORE_EPOCHS, FAR_FROM_NOISE = 100, 3.0


@dataclass(frozen=True, eq=False)
class CheckIn:
    """What a check-in found.

    Attributes
    ----------
    assumed : Tensor, shape (M, N, N), complex64
        The assumed probe.
    probe : Tensor, shape (M, N, N), complex64
        The better one; `assumed` itself where none is better beyond doubt.
    network : Trial or None
        What a network has changed of the assumed probe; None: nothing.
    trial : Trial
        What was changed of that probe, frames and positions.
    refined : bool
        Whether the probe was refined freely, with an object, after that.
    gains : Mapping of str to Gain
        What each change brings, the others made: by what `Trial` calls it, and ``refinement``; first ``network``, what
        its probe brings without others.
    gain : Gain
        Of all changes together.
    known : bool
        Whether a phase was assumed at all.
    other_side : Gain, optional
        Without an assumed phase: how much better the result is than the best on the other side of the focus.
    scale_standard_error : float
        Of `Trial.scale`, where that is not 1: its sureness, which unseen frames don't tell.
    defocus_curvature : float
        Phase of one radian of defocus, rms, at one pixel of the pupil from its middle, radians: it grows with the
        square of the distance.
    evaluations : int
        Short reconstructions made.
    seconds : float
        Time that it took.
    """

    assumed: Tensor
    probe: Tensor
    network: Trial | None
    trial: Trial
    refined: bool
    gains: Mapping[str, Gain]
    gain: Gain
    known: bool
    other_side: Gain | None
    scale_standard_error: float
    defocus_curvature: float
    evaluations: int
    seconds: float

    @property
    def changed(self) -> bool:
        """Whether anything is better than what was assumed."""
        return self.refined or self.network is not None or self.trial != Trial()


@torch.no_grad()
def check_in(
    data: Diffraction,
    assumed: Tensor | None,
    *,
    wanted: Wanted | None = None,
    most_frames: int = MOST_FRAMES,
    finder: ProbeFinder | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> CheckIn:
    """Look for a probe that explains frames better than the assumed one does.

    A changed probe is accepted only where it explains frames that its object was not made from better than the assumed
    probe does: by more than three standard errors of the paired differences, and by a least share.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene, on the device that computes, as engines take them. Of many, those that lie together in the
        middle are used.
    assumed : Tensor, shape (M, N, N), complex, or None
        The probe as far as it is known, of any brightness. None: nothing is known (far field).
    wanted : Wanted, optional
        What may be changed besides the probe; by default all but the scale.
    most_frames : int
        Frames that are used.
    finder : callable, optional
        Finds a probe by a network, asked after all that: see `asked_network`.
    on_progress : callable, optional
        Called with what is done next.
    on_step : callable, optional
        Called before each batch of trials and each iteration; what it raises ends the check-in.

    Returns
    -------
    CheckIn

    Raises
    ------
    FrameError
        If there are too few frames.
    GeometryError
        If the probe does not fit the frames.
    """
    began = time.perf_counter()
    tell = on_progress or (lambda _: None)
    size = data.counts.shape[-1]
    if most_frames < LEAST_FRAMES:
        raise FrameError(
            f"a check-in of the probe needs at least {LEAST_FRAMES} frames; at most {most_frames} are allowed"
        )
    if len(data) < LEAST_FRAMES:
        raise FrameError(
            f"a check-in of the probe needs at least {LEAST_FRAMES} frames, of which some are kept to judge by; "
            f"there are {len(data)}. Wait for more, or trust the probe."
        )
    counted = data.counts if data.valid is None else data.counts[data.valid.expand_as(data.counts)]
    if not bool(torch.isfinite(counted).all()) or not bool((counted > 0).any()):
        raise FrameError("a check-in of the probe needs frames with light whose valid pixels are finite")
    if assumed is not None and not (bool(torch.isfinite(assumed.abs()).all()) and bool(assumed.abs().any())):
        raise GeometryError("a probe must be finite and not 0 everywhere; give None where none is known")
    if assumed is not None and (assumed.ndim != 3 or assumed.shape[1:] != (size, size)):
        raise GeometryError(f"a probe must be (modes, {size}, {size}); it is {tuple(assumed.shape)}")
    data = together(data, most_frames)
    known = assumed is not None
    assumed = _flat(data) if assumed is None else assumed.to(data.counts.device, torch.complex64)
    wanted, on_step = wanted or Wanted(), on_step or (lambda: None)
    check = _Check(data, Pupil(assumed, data), wanted, on_step)
    found = check.of_the_assumed(tell) if known else check.without_phase(tell)
    without = CheckIn(
        assumed=assumed,
        probe=check.probe(found, assumed),
        network=None,
        trial=found.trial,
        refined=found.free is not None,
        gains=found.gains,
        gain=found.gain,
        known=known,
        other_side=found.other_side,
        scale_standard_error=found.scale_standard_error,
        defocus_curvature=check.pupil.defocus_curvature,
        evaluations=check.search.evaluations,
        seconds=time.perf_counter() - began,
    )
    if known and finder is not None:
        return asked_network(data, without, finder, wanted, on_progress=tell, on_step=on_step)
    tell("done")
    return without


@torch.no_grad()
def asked_network(
    data: Diffraction,
    without: CheckIn,
    finder: ProbeFinder,
    wanted: Wanted,
    *,
    on_progress: Callable[[str], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> CheckIn:
    """Ask a network for the probe, and look around it, where that is better than what was found without it.

    Parameters
    ----------
    data : Diffraction
        What `check_in` looked at.
    without : CheckIn
        What that found from an assumed probe.
    finder : callable
        Finds a probe by a network (`prediction.probe_finder`). It begins with the assumed one.
    wanted : Wanted
        What may be changed besides the probe.
    on_progress, on_step : callable, optional
        As for `check_in`.

    Returns
    -------
    CheckIn
        That without a network where its probe is no better, and where it has not memory enough to look for one.
    """
    began, tell, on_step = time.perf_counter(), on_progress or (lambda _: None), on_step or (lambda: None)
    tell("network")
    try:
        network = _Check(data, Pupil(without.assumed, data), wanted, on_step).by_network(finder, without)
    except torch.OutOfMemoryError as err:
        logger.warning("the network can't be asked for the probe, what was found without it stays: %s", err)
        network = None
    if network is None:
        tell("done")
        return replace(without, seconds=without.seconds + time.perf_counter() - began)
    # All that was found came from another beginning.
    check = _Check(data, Pupil(network.probe, data), wanted, on_step)
    found = check.of_the_assumed(tell)
    probe = check.probe(found, network.probe)
    found = check.since(without.assumed, network, found, probe)
    tell("done")
    return replace(
        without,
        probe=probe,
        network=network.trial,
        trial=found.trial,
        refined=found.free is not None,
        gains=found.gains,
        gain=found.gain,
        scale_standard_error=found.scale_standard_error,
        defocus_curvature=check.pupil.defocus_curvature,
        evaluations=without.evaluations + check.search.evaluations,
        seconds=without.seconds + time.perf_counter() - began,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """A trial, the freely refined probe if that is better, and what each brings."""

    trial: Trial
    free: Tensor | None
    gains: Mapping[str, Gain]
    gain: Gain
    other_side: Gain | None = None
    scale_standard_error: float = float("nan")


class _Check:
    """The steps of a check-in."""

    def __init__(self, data: Diffraction, pupil: Pupil, wanted: Wanted, on_step: Callable[[], None]) -> None:
        self.pupil = pupil
        self._data, self._wanted, self._on_step = data, wanted, on_step
        self._searching, *self._testing = folds(data)
        self.search = Search(data, pupil, self._searching, wanted, on_step)
        self._judge = Judge(data, pupil, TEST_SWEEPS, on_step=on_step)

    def probe(self, found: _Found, first: Tensor) -> Tensor:
        """Give the probe that was found around the first one: that itself where it stays."""
        if found.free is not None:
            return found.free
        return first if found.trial.keeps_probe else self.pupil.probe(found.trial)

    def by_network(self, finder: ProbeFinder, without: CheckIn) -> NetworkProbe | None:
        """Give the probe that a network finds from the assumed one, if it is better than what was found without it."""
        self._on_step()
        self._compare_where(without.trial)
        rival, least = (without.trial, without.probe), (LEAST_GAIN, LEAST_SINGLE_GAIN)
        return NetworkProbe.better(finder, self.pupil, self._judge, self._searching, rival, least)

    def since(self, assumed: Tensor, network: NetworkProbe, found: _Found, probe: Tensor) -> _Found:
        """Say what all brings over the assumed probe that was found around a network's."""
        gains = {"network": network.gain, **found.gains}
        return replace(found, gains=gains, gain=self._of_all(found.trial, probe, assumed))

    def _compare_where(self, trial: Trial) -> None:
        """Judge by the pixels that were measured in frames moved as a trial says, with and without moving them."""
        self._judge = Judge(self._data, self.pupil, TEST_SWEEPS, border_px=trial.border_px, on_step=self._on_step)

    def of_the_assumed(self, tell: Callable[[str], None]) -> _Found:
        """Search around the assumed probe, test, refine freely, and look at the distances of the positions."""
        tell("search")
        found = self.search.run()
        tell("test")
        self._compare_where(found)
        strong = Judge(self._data, self.pupil, TEST_SWEEPS, WEAKEST, found.border_px, self._on_step)
        trial, gains, gain = _tested(strong, found, self._testing)
        tell("refinement")
        free, refinement = self._refined(trial)
        kept = refinement.exceeds(LEAST_GAIN)
        if self._wanted.scale:
            modes = self._strong(free if kept else self.pupil.probe(trial))
            estimate = estimate_scale(self._laid_out(trial), modes, lambda scale: self._allows(trial, scale))
            scaled = replace(trial, scale=estimate.scale)
            if estimate.sure and (unseen := self._gain(trial, scaled)).in_errors > -NOT_WORSE:
                return self._with_scale(scaled, {**gains, "scale": unseen}, estimate.standard_error)
        if not kept:
            return _Found(trial, None, gains, gain)
        return _Found(trial, free, {**gains, "refinement": refinement}, self._of_all(trial, free))

    def without_phase(self, tell: Callable[[str], None]) -> _Found:
        """Look for the defocus of a flat pupil on both sides of the focus; nothing assumed could be better."""
        tell("search")
        sides = self.search.run_without_phase()
        tell("refinement")
        refined = [self._refined(trial)[0] for trial in sides]
        tell("test")
        fold = self._searching
        assumed = self._judge.deviance([Trial()], fold)[0]
        probes = [*map(self.pupil.probe, sides), *refined]
        table = self._judge.deviance_of_probes([*sides, *sides], probes, fold)
        best = int(table.mean(dim=1).argmin())
        ours, others = (table[[side, side + 2]] for side in (best % 2, 1 - best % 2))
        other = others[int(others.mean(dim=1).argmin())]
        # The frames that chose it can't prove it.
        trials = [Trial(), sides[best % 2]]
        proof = Gain.of(*torch.cat([self._judge.deviance(trials, each) for each in self._testing], dim=1))
        if not proof.exceeds(LEAST_GAIN):
            return _Found(Trial(), None, {}, Gain.of(assumed, assumed))
        gains = {"defocus": proof}
        free = refined[best % 2] if best >= 2 else None
        if free is not None:
            gains["refinement"] = Gain.of(ours[0], ours[1])
        return _Found(sides[best % 2], free, gains, Gain.of(assumed, table[best]), Gain.of(other, table[best]))

    def _with_scale(self, trial: Trial, gains: Mapping[str, Gain], standard_error: float) -> _Found:
        """Refine again where positions have another scale: what was refined before went with the wrong one."""
        free, refinement = self._refined(trial)
        if not refinement.exceeds(LEAST_GAIN):
            total = self._of_all(trial, self.pupil.probe(trial))
            return _Found(trial, None, gains, total, None, standard_error)
        return _Found(trial, free, {**gains, "refinement": refinement}, self._of_all(trial, free), None, standard_error)

    def _allows(self, trial: Trial, scale: float) -> bool:
        """Whether unseen frames are explained no worse with another scale."""
        return self._gain(trial, replace(trial, scale=scale)).in_errors > -NOT_WORSE

    def _gain(self, before: Trial, after: Trial) -> Gain:
        """Compare two trials by all frames, each unseen once."""
        folds = [self._searching, *self._testing]
        table = torch.cat([self._judge.deviance([before, after], fold) for fold in folds], dim=1)
        return Gain.of(table[0], table[1])

    def _refined(self, trial: Trial) -> tuple[Tensor, Gain]:
        """Refine the probe of a trial with an object; judged from vacuum, by frames that neither has seen."""
        first, fold = self.pupil.probe(trial), self._searching
        obj = self._judge.objects([trial], first[None], fold)
        given = replace(self._judge.scenes([trial], fold.given, tuple(obj.shape)), scene=None)
        engine = Lsqml(LsqmlSettings(batch=FREE_BATCH, together_from=FREE_TOGETHER_FROM))

        def goes_on(epochs: int, solution: Solution) -> bool:
            self._on_step()
            return True

        outcome = iterate(engine, Solution.start(obj, first[None], given), Schedule(FREE_EPOCHS), goes_on)
        solution = outcome.solution
        if outcome.ended != "diverged" and min(outcome.history) > FAR_FROM_NOISE:
            solution = iterate(engine, solution, Schedule(MORE_EPOCHS, tolerance=1e-3), goes_on).solution
        free = self.pupil.as_bright_as_frames(solution.probe[0])
        before, after = self._judge.deviance_of_probes([trial, trial], [first, free], fold)
        return free, Gain.of(before, after)

    def _of_all(self, trial: Trial, probe: Tensor, assumed: Tensor | None = None) -> Gain:
        before = self.pupil.probe(Trial()) if assumed is None else self.pupil.as_bright_as_frames(assumed)
        assumed, found = (
            self._judge.deviance_of_probes([each], [modes], self._searching)[0]
            for each, modes in ((Trial(), before), (trial, probe))
        )
        return Gain.of(assumed, found)

    def _laid_out(self, trial: Trial) -> Diffraction:
        every = torch.arange(len(self._data), device=self._data.corner.device)
        return self._judge.scenes([trial], every, (1, 1, 1))

    def _strong(self, probe: Tensor) -> Tensor:
        powers = probe.abs().square().sum(dim=(-2, -1))
        return probe[powers >= WEAKEST * powers.sum()]


def together(data: Diffraction, most: int) -> Diffraction:
    """Keep the frames that are nearest to the middle of all.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene.
    most : int
        How many are kept.
    """
    if len(data) <= most:
        return data
    place = (data.corner + data.shift_px.double()).cpu().numpy()
    return data[torch.from_numpy(nearest_to_middle(place, most)).to(data.corner.device)]


def folds(data: Diffraction) -> list[Fold]:
    """Deal frames, at random but always alike: neighbours must stay to tell what an unseen frame looks like."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).to(data.corner.device)
    dealt = torch.arange(len(data), device=order.device) % FOLDS
    return [Fold(order[dealt != k].sort().values, order[dealt == k].sort().values) for k in range(FOLDS)]


def _flat(data: Diffraction) -> Tensor:
    """Make a probe of the mean frame's amplitude and a flat phase."""
    wave = Pupil(_point(data), data)
    return wave.probe(Trial(amplitude="frames", flat=True))


def _point(data: Diffraction) -> Tensor:
    size = data.counts.shape[-1]
    point = torch.zeros(1, size, size, dtype=torch.complex64, device=data.counts.device)
    point[0, size // 2, size // 2] = 1
    return point


def _tested(judge: Judge, found: Trial, folds: Sequence[Fold]) -> tuple[Trial, dict[str, Gain], Gain]:
    """Take back each change that brings nothing on frames that the search did not look at, then test them together."""
    first, *others = folds
    without = {name: _undone(found, name) for name in _changes(found)}
    assumed, whole, *partial = judge.deviance([Trial(), found, *without.values()], first)
    gains = {name: Gain.of(row, whole) for name, row in zip(without, partial, strict=True)}
    kept = {name: gain for name, gain in gains.items() if gain.exceeds(LEAST_SINGLE_GAIN)}
    trial = found
    for name in without:
        if name not in kept:
            trial = _undone(trial, name)
    if trial == Trial():
        return trial, {}, Gain.of(assumed, assumed)
    best = whole if trial == found else judge.deviance([trial], first)[0]
    pairs = [(assumed, best), *(judge.deviance([Trial(), trial], fold) for fold in others)]
    gain = Gain.of(*(torch.cat(each) for each in zip(*pairs, strict=True)))
    if not gain.exceeds(LEAST_GAIN):
        return Trial(), {}, Gain.of(assumed, assumed)
    return trial, kept, gain


def _changes(trial: Trial) -> list[str]:
    """Name what a trial changes."""
    names = []
    if trial.amplitude != "assumed":
        names.append("amplitude")
    if trial.powers is not None:
        names.append("powers")
    names += [name for name, places in GROUPS.items() if any(trial.aberrations_rad[k] for k in places)]
    if trial.centre_px != (0, 0):
        names.append("centre")
    if trial.orientation != AS_STATED:
        names.append("orientation")
    return names


# Aberrations that are taken together: a direction is no property of its own.
GROUPS: Mapping[str, tuple[int, ...]] = {
    "defocus": (DEFOCUS,),
    "astigmatism": (1, 2),
    "coma": (3, 4),
    "spherical aberration": (5,),
}


def _undone(trial: Trial, name: str) -> Trial:
    """Take one change back."""
    if name in GROUPS:
        left = tuple(0.0 if k in GROUPS[name] else trial.aberrations_rad[k] for k in range(len(ABERRATIONS)))
        return replace(trial, aberrations_rad=left)
    if name == "amplitude":
        return replace(trial, amplitude="assumed", flat=False)
    if name == "powers":
        return replace(trial, powers=None)
    if name == "centre":
        return replace(trial, centre_px=(0, 0))
    return replace(trial, orientation=AS_STATED)
