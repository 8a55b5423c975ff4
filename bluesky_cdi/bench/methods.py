"""Ways to an object: networks, networks refined by physics, and iterative engines, each with its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from bluesky_cdi.bench.machine import Stopwatch
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution, iterate
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import Network as Net
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.prediction import ProbeFinder, probe_finder
from bluesky_cdi.reconstruction.prediction import predict as predicted
from bluesky_cdi.reconstruction.refinement import prior_of, refiner

# Iterations that go on from a network's object.
REFINED_FOR = 5
# Iterations of rPIE from vacuum: as few as after the network, and as many as are usual.
RPIE_ITERATIONS = (5, 10, 50)
# Those whose object a network goes on from, where it goes on from an object.
WARM_FROM = (10, 50)
# LSQ-ML has converged when five epochs lower the deviance by less than this share.
TOLERANCE, MOST_EPOCHS = 1e-3, 200
# A quick method is timed more than once, unless that takes longer than this.
REPEATS, REPEAT_FOR_S = 3, 1.0
# Frames that a network is used with before the clock starts.
FIRST_FRAMES = 32

IN_REFINED_TIME = "LSQ-ML, as long"
CONVERGED = "LSQ-ML, converged"
# What the names of networks end in whose stages change the probe.
FINDING = ", finding the probe"

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Network:
    """A network by name.

    Attributes
    ----------
    name : str
    net : UnrolledNet or PtychoNN
        Frames under a probe to objects, the last of which is the result.
    finds_probe : bool
        Whether its stages change the assumed probe too.
    """

    name: str
    net: Net
    finds_probe: bool = False

    @property
    def refined_name(self) -> str | None:
        """The name of what goes on from its object; None where it has no critic to say how far off that is."""
        return f"{self.name}, refined" if isinstance(self.net, UnrolledNet) else None

    @property
    def finding_probe(self) -> Network | None:
        """The same with stages that change the probe; None where it has no stages."""
        if not isinstance(self.net, UnrolledNet):
            return None
        return replace(self, name=self.name + FINDING, finds_probe=True)

    @property
    def is_warm(self) -> bool:
        """Whether it goes on from an object; others draw it anew."""
        return isinstance(self.net, UnrolledNet) and self.net.config.passes > 1

    @property
    def one_pass_name(self) -> str:
        """The name of a single pass from vacuum: of a network for one pass its own."""
        return f"{self.name}, one pass" if self.is_warm else self.name

    @property
    def names(self) -> list[str]:
        """The names of what is made with it from vacuum."""
        once = [self.one_pass_name] if self.is_warm else []
        return [*once, self.name, *([self.refined_name] if self.refined_name else [])]

    def warm_name(self, iterations: int) -> str:
        """Name what goes on from the object of so many iterations of rPIE."""
        return f"{rpie_name(iterations)}, {self.refined_name}"


@dataclass(frozen=True, eq=False)
class Found:
    """What a method came to.

    Attributes
    ----------
    object : Tensor, shape (1, Y, X), complex64
    probe : Tensor, shape (1, M, N, N), complex64
    seconds : float
        By the clock, to the end of the computing on the device.
    cpu_seconds : float
        Of the processors.
    epochs : int
        Iterations of an engine.
    """

    object: Tensor
    probe: Tensor
    seconds: float
    cpu_seconds: float
    epochs: int = 0

    def after(self, before: Found | Stopwatch) -> Found:
        """Return the same with the time of what had to be done before."""
        seconds, cpu_seconds = before.seconds + self.seconds, before.cpu_seconds + self.cpu_seconds
        return replace(self, seconds=seconds, cpu_seconds=cpu_seconds)


@torch.no_grad()
def finding_probes(networks: Sequence[Network], problem: Problem) -> dict[str, Found]:
    """Make one pass of each network that has stages, which change the probe too.

    Parameters
    ----------
    networks : sequence of Network
        Those of a suite.
    problem : Problem
        The scan.
    """
    finding = [each for network in networks if (each := network.finding_probe) is not None]
    return {each.name: predict(each, problem, passes=1) for each in finding}


def finder_of(networks: Sequence[Network]) -> ProbeFinder | None:
    """Give what finds probes by the first of some networks that can; None where none can."""
    return next((probe_finder(network.net) for network in networks if isinstance(network.net, UnrolledNet)), None)


def rpie_name(iterations: int) -> str:
    """Name rPIE from vacuum."""
    return f"{iterations} rPIE"


@torch.no_grad()
def solve(problem: Problem, networks: Sequence[Network], seed: int) -> dict[str, Found]:
    """Run every method on a scan.

    Parameters
    ----------
    problem : Problem
        The scan.
    networks : sequence of Network
        Each comes first alone, then refined.
    seed : int
        Seed of the order of frames in iterative engines.

    Returns
    -------
    dict of str to Found
    """
    found: dict[str, Found] = {}
    budget_s: float | None = None
    for network in networks:
        if network.is_warm:
            found[network.one_pass_name] = predict(network, problem, passes=1)
        alone = found[network.name] = predict(network, problem)
        if network.refined_name is not None:
            both = found[network.refined_name] = refine(network, problem, alone, seed)
            budget_s = both.seconds if budget_s is None else budget_s
    for iterations in RPIE_ITERATIONS:
        found[rpie_name(iterations)] = engine("rpie", problem, Schedule(iterations), seed)
    for network in networks:
        for iterations in WARM_FROM if network.is_warm else ():
            improved = predict(network, problem, start=found[rpie_name(iterations)])
            found[network.warm_name(iterations)] = refine(network, problem, improved, seed)
    if budget_s is not None:
        found[IN_REFINED_TIME] = engine("lsqml", problem, Schedule(MOST_EPOCHS), seed, budget_s)
    found[CONVERGED] = engine("lsqml", problem, Schedule(MOST_EPOCHS, tolerance=TOLERANCE), seed)
    return found


def predict(network: Network, problem: Problem, *, passes: int | None = None, start: Found | None = None) -> Found:
    """Run a network.

    Parameters
    ----------
    network : Network
        It has been used before when the clock starts.
    problem : Problem
        The scan.
    passes : int, optional
        1: only one, from vacuum; by default as many as it is for.
    start : Found, optional
        What is known of the object; its time counts.

    Returns
    -------
    Found
    """
    net, obj = network.net, None if start is None else start.object

    def run(data: Diffraction) -> tuple[Tensor, Tensor]:
        if not isinstance(net, UnrolledNet):
            return net(problem.probe, data)[-1], problem.probe
        return predicted(net, problem.probe, data, obj, passes, finds_probe=network.finds_probe)

    run(first_use(problem))
    (made, probe), seconds, cpu_seconds = timed(lambda: run(problem.data), problem.probe.device)
    found = Found(made, probe, seconds, cpu_seconds)
    return found if start is None else found.after(start)


def refine(network: Network, problem: Problem, prediction: Found, seed: int) -> Found:
    """Go on with physics from a network's object, as the live reconstructor does it.

    Parameters
    ----------
    network : Network
        One with a critic.
    problem : Problem
        The scan.
    prediction : Found
        The network's; its time counts.
    seed : int
        Seed of the order of frames.

    Returns
    -------
    Found
    """
    # A network may have changed the probe.
    problem = replace(problem, probe=prediction.probe)

    def run(iterations: int) -> tuple[Solution, int]:
        engine = refiner_of(network, problem, prediction.object, seed)
        return _iterated(engine, problem, Schedule(iterations), prediction.object)

    run(1)
    (solution, epochs), seconds, cpu_seconds = timed(lambda: run(REFINED_FOR), problem.probe.device)
    return Found(solution.object, solution.probe, seconds, cpu_seconds, epochs).after(prediction)


def refiner_of(network: Network, problem: Problem, prediction: Tensor, seed: int) -> Engine:
    """Make the engine that goes on from a network's object for `REFINED_FOR` iterations.

    Parameters
    ----------
    network : Network
        One with a critic.
    problem : Problem
        The scan.
    prediction : Tensor, shape (1, Y, X), complex64
        The network's object.
    seed : int
        Seed of the order of frames.
    """
    if not isinstance(network.net, UnrolledNet):
        raise ConfigError(f"{network.name} has no critic, which refinement needs to know how sure its object is")
    prior = prior_of(network.net, prediction, problem.probe, problem.data)
    return refiner(prior, len(problem.data), REFINED_FOR, seed)


def first_use(problem: Problem) -> Diffraction:
    """Give the frames of a first use, before the clock starts: on a GPU plans and kernels depend on their number."""
    return problem.data if problem.probe.is_cuda else problem.data[:FIRST_FRAMES]


def engine(name: str, problem: Problem, schedule: Schedule, seed: int, budget_s: float | None = None) -> Found:
    """Run an iterative engine from vacuum.

    Parameters
    ----------
    name : str
        Of the engine.
    problem : Problem
        The scan.
    schedule : Schedule
        How many epochs, and what ends them.
    seed : int
        Seed of the order of frames.
    budget_s : float, optional
        As many epochs are made as begin in that time.

    Returns
    -------
    Found
    """

    def run(schedule: Schedule) -> tuple[Solution, int]:
        return _iterated(make_engine(name, seed), problem, schedule, problem.vacuum, budget_s)

    # One epoch makes the plans and kernels that the clock should not see.
    run(Schedule(1))
    (solution, epochs), seconds, cpu_seconds = timed(lambda: run(schedule), problem.probe.device)
    return Found(solution.object, solution.probe, seconds, cpu_seconds, epochs)


def _iterated(
    engine: Engine, problem: Problem, schedule: Schedule, obj: Tensor, budget_s: float | None = None
) -> tuple[Solution, int]:
    """Return object and probe after an engine, and its epochs."""
    start = Solution.start(obj, problem.probe, problem.data)
    schedule = Schedule(schedule.epochs, 0 if problem.refine_probe else -1, tolerance=schedule.tolerance)
    began = time.perf_counter()

    def in_time(epochs: int, solution: Solution) -> bool:
        return budget_s is None or time.perf_counter() - began < budget_s

    outcome = iterate(engine, start, schedule, in_time)
    return outcome.solution, len(outcome.history)


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float, float]:
    """Time a call to the end of the computing.

    Parameters
    ----------
    run : callable
        Called up to `REPEATS` times.
    device : torch.device
        Device that computes.

    Returns
    -------
    result
        Of the last call.
    float, float
        Seconds by the clock of the call that took the median time, and of the processors in it.
    """
    calls: list[Stopwatch] = []
    while not calls or (len(calls) < REPEATS and sum(call.seconds for call in calls) < REPEAT_FOR_S):
        with Stopwatch(device) as watch:
            result = run()
        calls.append(watch)
    middle = sorted(calls, key=lambda call: call.seconds)[(len(calls) - 1) // 2]
    return result, middle.seconds, middle.cpu_seconds
