"""Methods on a recorded scan, each from the scan's own guess and after the check-in: how good, when, and how soon.

Every eighth frame is kept from all. *The image of LSQ-ML* is one that explains these frames within 2 % as well as
converged LSQ-ML does, from the guess or after the check-in, whichever is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.bench.checked import CHECKED, checked
from bluesky_cdi.bench.courses import NEAR, Course, Mark, first_near
from bluesky_cdi.bench.machine import Stopwatch
from bluesky_cdi.bench.methods import (
    CONVERGED,
    MOST_EPOCHS,
    REFINED_FOR,
    RPIE_ITERATIONS,
    TOLERANCE,
    WARM_FROM,
    Found,
    Network,
    finder_of,
    finding_probes,
    predict,
    refiner_of,
    rpie_name,
)
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution, iterate
from bluesky_cdi.errors import FrameError
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.prediction import mean_deviance

# Most iterations after a network that are waited for the image of LSQ-ML.
MOST_REFINED = 30


@dataclass(frozen=True, eq=False)
class Reached:
    """What a method came to, and when it was at the image of LSQ-ML.

    Attributes
    ----------
    found : Found
    given, unseen : float
        Mean deviance a pixel of the frames that it was given, and of those that it was not.
    image : Found, optional
        The method's first result that explains them as well as converged LSQ-ML; None: it never did.
    """

    found: Found
    given: float
    unseen: float
    image: Found | None


@torch.no_grad()
def solve_recorded(
    problem: Problem,
    networks: Sequence[Network],
    seed: int,
    on_progress: Callable[[str], None] | None = None,
    *,
    rpie: bool = True,
) -> tuple[dict[str, Reached], str]:
    """Run every method from the assumed probe and after the check-in.

    Parameters
    ----------
    problem : Problem
        With frames that are held out.
    networks : sequence of Network
        Each comes first alone, then refined, and where it can from what rPIE has found.
    seed : int
        Seed of the order of frames.
    on_progress : callable, optional
        Called with what is done next.
    rpie : bool
        Whether rPIE is run, and networks from what it has found.

    Returns
    -------
    dict of str to Reached
        By the method's name; after the check-in, whose time is in theirs, names begin with `CHECKED`.
    str
        What the check-in says.
    """
    tell = on_progress or (lambda _: None)
    tell("check-in")
    after = checked(problem, finder_of(networks))
    ways = {"": _Way(problem, Stopwatch(problem.probe.device), seed), CHECKED: _Way(after.problem, after.watch, seed)}
    runs: dict[str, _Run] = {}
    for prefix, way in ways.items():
        tell(prefix + CONVERGED)
        runs[prefix + CONVERGED] = way.converged()
    goal = min(run.result.unseen for run in runs.values())
    for prefix, way in ways.items():
        made: dict[str, _Run] = {}
        if rpie:
            tell(prefix + rpie_name(RPIE_ITERATIONS[-1]))
            made = way.from_vacuum()
        for network in networks:
            tell(prefix + network.name)
            made |= way.from_network(network, made, goal)
        if not prefix:
            made |= way.finding_probes(networks)
        runs |= {prefix + name: run for name, run in made.items()}
    found = {}
    for prefix, way in ways.items():
        for name in [name for name in runs if name.startswith(CHECKED) == bool(prefix)]:
            found[name] = runs[name].reached(goal, way.given)
    return found, after.says


@dataclass(frozen=True, eq=False)
class _Run:
    """A method's marks, and which of them is its result."""

    marks: Sequence[Mark]
    result: Mark

    def reached(self, goal: float, given: Diffraction) -> Reached:
        found, near = self.result.found, first_near(self.marks, goal)
        deviance = mean_deviance(found.object, found.probe, given)
        return Reached(found, deviance, self.result.unseen, None if near is None else near.found)


class _Way:
    """Methods on one problem, after what was spent before.

    Parameters
    ----------
    problem : Problem
        What they are given.
    spent : Stopwatch
        Its time counts in theirs.
    seed : int
        Of the order of frames.
    """

    def __init__(self, problem: Problem, spent: Stopwatch, seed: int) -> None:
        if problem.held_out is None:
            raise FrameError("a recorded scan is judged by frames that are held out; this one has none")
        self._problem, self._spent, self._seed = problem, spent, seed
        self.given, self._unseen = problem.data, problem.held_out

    def converged(self) -> _Run:
        """Run LSQ-ML from vacuum until it has converged."""
        schedule = Schedule(MOST_EPOCHS, tolerance=TOLERANCE)
        marks = self._iterated(lambda: make_engine("lsqml", self._seed), schedule, self._problem.vacuum, self._watch())
        return _Run(marks, marks[-1])

    def from_vacuum(self) -> dict[str, _Run]:
        """Run rPIE from vacuum, each number of iterations to its own end: that averages what the last ones left."""
        runs = {}
        for number in RPIE_ITERATIONS:
            marks = self._iterated(
                lambda: make_engine("rpie", self._seed), Schedule(number), self._problem.vacuum, self._watch()
            )
            runs[rpie_name(number)] = _Run(marks, marks[-1])
        return runs

    def from_network(self, network: Network, known: Mapping[str, _Run], goal: float) -> dict[str, _Run]:
        """Run a network from vacuum, and where it can from what rPIE has found; alone and refined."""
        made: dict[str, _Run] = {}
        if network.is_warm:
            once = predict(network, self._problem, passes=1)
            made[network.one_pass_name] = self._run(once.after(self._spent))
        alone = made[network.name] = self._run(predict(network, self._problem).after(self._spent))
        if network.refined_name is not None:
            made[network.refined_name] = self._refined(network, alone, goal)
        engines = [number for number in WARM_FROM if rpie_name(number) in known]
        for number in engines if network.is_warm else ():
            improved = predict(network, self._problem, start=known[rpie_name(number)].result.found)
            made[network.warm_name(number)] = self._refined(network, self._run(improved), goal)
        return made

    def finding_probes(self, networks: Sequence[Network]) -> dict[str, _Run]:
        """Make one pass of each network, whose stages change the probe too."""
        made = finding_probes(networks, self._problem)
        return {name: self._run(found.after(self._spent)) for name, found in made.items()}

    def _refined(self, network: Network, alone: _Run, goal: float) -> _Run:
        """Refine as usual; and then go on to the goal, or past all hope, to see when that is reached."""
        found = alone.result.found
        problem = replace(self._problem, probe=found.probe)
        watch, prediction = Stopwatch(self._problem.probe.device, found.seconds, found.cpu_seconds), found.object
        marks = self._iterated(
            lambda: refiner_of(network, problem, prediction, self._seed),
            Schedule(MOST_REFINED),
            prediction,
            watch,
            (1 + NEAR) * goal,
            found.probe,
        )
        return _Run([*alone.marks, *marks], marks[min(REFINED_FOR, len(marks)) - 1])

    def _iterated(
        self,
        make: Callable[[], Engine],
        schedule: Schedule,
        obj: Tensor,
        watch: Stopwatch,
        until: float = -math.inf,
        probe: Tensor | None = None,
    ) -> list[Mark]:
        """Iterate, with the probe refined; the marks of all epochs, the last one's after the engine's end."""
        course = Course(self._unseen, watch, until, REFINED_FOR)
        start = Solution.start(obj, self._problem.probe if probe is None else probe, self._problem.data)
        # One epoch loads what the clock should not see.
        iterate(make(), start, Schedule(1))
        with watch:
            outcome = iterate(make(), start, schedule, course)
        obj, probe, epochs = outcome.solution.object, outcome.solution.probe, len(outcome.history)
        return [*course.marks[:-1], self._mark(Found(obj, probe, watch.seconds, watch.cpu_seconds, epochs))]

    def _run(self, found: Found) -> _Run:
        mark = self._mark(found)
        return _Run([mark], mark)

    def _mark(self, found: Found) -> Mark:
        return Mark(found, mean_deviance(found.object, found.probe, self._unseen))

    def _watch(self) -> Stopwatch:
        return Stopwatch(self._problem.probe.device, self._spent.seconds, self._spent.cpu_seconds)
