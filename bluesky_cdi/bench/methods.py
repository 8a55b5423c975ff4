"""Ways to an object: networks, networks refined by physics, and iterative engines, each with its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from bluesky_cdi.bench.machine import synchronise
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution, iterate
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import Network as Net
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.refinement import prior_of, refiner

# Iterations that go on from a network's object.
REFINED_FOR = 5
# Iterations of rPIE from vacuum: as few as after the network, and as many as are usual.
RPIE_ITERATIONS = (5, 50)
# LSQ-ML has converged when five epochs lower the deviance by less than this share.
TOLERANCE, MOST_EPOCHS = 1e-3, 200
# A quick method is timed more than once, unless that takes longer than this.
REPEATS, REPEAT_FOR_S = 3, 1.0

IN_REFINED_TIME = "LSQ-ML, as long"
CONVERGED = "LSQ-ML, converged"

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Network:
    """A network by name.

    Attributes
    ----------
    name : str
    net : UnrolledNet or PtychoNN
        Frames under a probe to objects, the last of which is the result.
    """

    name: str
    net: Net

    @property
    def refined_name(self) -> str | None:
        """The name of what goes on from its object; None where it has no critic to say how far off that is."""
        return f"{self.name}, refined" if isinstance(self.net, UnrolledNet) else None

    @property
    def warm_name(self) -> str | None:
        """The name of what goes on from an engine's object; None where the network draws it anew."""
        if isinstance(self.net, UnrolledNet) and self.net.config.passes > 1:
            return f"{rpie_name(RPIE_ITERATIONS[-1])}, {self.refined_name}"
        return None


@dataclass(frozen=True, eq=False)
class Found:
    """What a method came to.

    Attributes
    ----------
    object : Tensor, shape (1, Y, X), complex64
    probe : Tensor, shape (1, M, N, N), complex64
    seconds : float
        To the end of the computing on the device.
    epochs : int
        Iterations of an engine.
    """

    object: Tensor
    probe: Tensor
    seconds: float
    epochs: int = 0


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
        found[network.name] = predict(network, problem)
        if network.refined_name and isinstance(network.net, UnrolledNet):
            both = found[network.refined_name] = predict_and_refine(network.net, problem, seed)
            budget_s = both.seconds if budget_s is None else budget_s
    for iterations in RPIE_ITERATIONS:
        found[rpie_name(iterations)] = engine("rpie", problem, Schedule(iterations), seed)
    for network in networks:
        if network.warm_name and isinstance(network.net, UnrolledNet):
            known = found[rpie_name(RPIE_ITERATIONS[-1])]
            both = predict_and_refine(network.net, problem, seed, known.object)
            found[network.warm_name] = replace(both, seconds=known.seconds + both.seconds)
    if budget_s is not None:
        found[IN_REFINED_TIME] = engine("lsqml", problem, Schedule(MOST_EPOCHS), seed, budget_s)
    found[CONVERGED] = engine("lsqml", problem, Schedule(MOST_EPOCHS, tolerance=TOLERANCE), seed)
    return found


def predict(network: Network, problem: Problem) -> Found:
    """Run a network for as many passes as it is for.

    Parameters
    ----------
    network : Network
        It has been used before when the clock starts.
    problem : Problem
        The scan.

    Returns
    -------
    Found
    """
    net = network.net

    def run() -> Tensor:
        if isinstance(net, UnrolledNet):
            return predict_object(net, problem.probe, problem.data)
        obj: Tensor = net(problem.probe, problem.data)[-1]
        return obj

    run()
    obj, seconds = timed(run, problem.probe.device)
    return Found(obj, problem.probe, seconds)


def predict_and_refine(net: UnrolledNet, problem: Problem, seed: int, start: Tensor | None = None) -> Found:
    """Run a network, and go on with physics from there, as the live reconstructor does it.

    Parameters
    ----------
    net : UnrolledNet
        It has been used before when the clock starts.
    problem : Problem
        The scan.
    seed : int
        Seed of the order of frames.
    start : Tensor, shape (1, Y, X), complex64, optional
        What is known of the object.

    Returns
    -------
    Found
    """

    def run(iterations: int) -> tuple[Solution, int]:
        prediction = predict_object(net, problem.probe, problem.data, start)
        prior = prior_of(net, prediction, problem.probe, problem.data)
        engine = refiner(prior, len(problem.data), REFINED_FOR, seed)
        return _iterated(engine, problem, Schedule(iterations), prediction)

    run(1)
    (solution, epochs), seconds = timed(lambda: run(REFINED_FOR), problem.probe.device)
    return Found(solution.object, solution.probe, seconds, epochs)


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
    (solution, epochs), seconds = timed(lambda: run(schedule), problem.probe.device)
    return Found(solution.object, solution.probe, seconds, epochs)


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


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
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
    float
        Median of the seconds of the calls.
    """
    synchronise(device)
    times: list[float] = []
    while not times or (len(times) < REPEATS and sum(times) < REPEAT_FOR_S):
        began = time.perf_counter()
        result = run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return result, statistics.median(times)
