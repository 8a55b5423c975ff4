"""Ways to an object: networks, networks refined by physics, and iterative engines, each with its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from bluesky_cdi.bench.machine import synchronise
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.physics.forward import Diffraction

# What goes on from a network's object: an engine of `make_engine`, and its iterations.
REFINED_BY, REFINED_FOR = "rpie", 5
# Iterations of rPIE from vacuum: as few as after the network, and as many as are usual.
RPIE_ITERATIONS = (5, 50)
# LSQ-ML has converged when five epochs lower the deviance by less than this share.
TOLERANCE, MOST_EPOCHS = 1e-3, 200
# Propagations that networks read.
NETWORK_READS = ("far",)
# A quick method is timed more than once, unless that takes longer than this.
REPEATS, REPEAT_FOR_S = 3, 1.0

IN_REFINED_TIME = "LSQ-ML, as long"
CONVERGED = "LSQ-ML, converged"

Result = TypeVar("Result")


class Reader(Protocol):
    """A network: it reads frames under a probe."""

    def __call__(self, probe: Tensor, data: Diffraction) -> list[Tensor]:
        """(1, M, N, N) and frames to objects (1, Y, X), the last of which is the result."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network by name.

    Attributes
    ----------
    name : str
    read : Reader
    refined : bool
        Whether physics goes on from its object too.
    """

    name: str
    read: Reader
    refined: bool = True

    @property
    def refined_name(self) -> str:
        """The name of what goes on from its object."""
        return f"{self.name}, {REFINED_FOR} {REFINED_BY}"


@dataclass(frozen=True, eq=False)
class Found:
    """What a method came to.

    Attributes
    ----------
    canvas : Tensor, shape (1, Y, X), complex64
    probe : Tensor, shape (1, M, N, N), complex64
    seconds : float
        To the end of the computing on the device.
    epochs : int
        Iterations of an engine.
    """

    canvas: Tensor
    probe: Tensor
    seconds: float
    epochs: int = 0


def rpie_name(iterations: int) -> str:
    """The name of rPIE from vacuum."""
    return f"{iterations} rPIE"


@torch.no_grad()
def solve(problem: Problem, networks: Sequence[Network], seed: int) -> dict[str, Found]:
    """Run every method on a scan.

    Parameters
    ----------
    problem : Problem
    networks : sequence of Network
        Left out where they don't read such frames.
    seed : int
        Seed of the order of frames in iterative engines.

    Returns
    -------
    dict of str to Found
    """
    found: dict[str, Found] = {}
    budget_s: float | None = None
    for network in networks if problem.propagation in NETWORK_READS else ():
        found[network.name] = read(network, problem)
        if network.refined:
            both = found[network.refined_name] = read_and_refined(network, problem, seed)
            budget_s = both.seconds if budget_s is None else budget_s
    for iterations in RPIE_ITERATIONS:
        found[rpie_name(iterations)] = engine("rpie", problem, Schedule(iterations), seed)
    if budget_s is not None:
        found[IN_REFINED_TIME] = engine("lsqml", problem, Schedule(MOST_EPOCHS), seed, budget_s)
    found[CONVERGED] = engine("lsqml", problem, Schedule(MOST_EPOCHS, tolerance=TOLERANCE), seed)
    return found


def read(network: Network, problem: Problem) -> Found:
    """One pass of a network."""
    network.read(problem.probe, problem.data)
    canvas, seconds = timed(lambda: network.read(problem.probe, problem.data)[-1], problem.probe.device)
    return Found(canvas, problem.probe, seconds)


def read_and_refined(network: Network, problem: Problem, seed: int) -> Found:
    """One pass of a network that was used before, and physics from there."""
    _warm_up(REFINED_BY, problem, seed)

    def run() -> tuple[Solution, int]:
        canvas = network.read(problem.probe, problem.data)[-1]
        return _iterated(REFINED_BY, problem, Schedule(REFINED_FOR), seed, canvas)

    (solution, epochs), seconds = timed(run, problem.probe.device)
    return Found(solution.canvas, solution.probe, seconds, epochs)


def engine(name: str, problem: Problem, schedule: Schedule, seed: int, budget_s: float | None = None) -> Found:
    """An iterative engine from vacuum; with a budget it makes as many epochs as begin in that time."""
    _warm_up(name, problem, seed)
    (solution, epochs), seconds = timed(
        lambda: _iterated(name, problem, schedule, seed, budget_s=budget_s), problem.probe.device
    )
    return Found(solution.canvas, solution.probe, seconds, epochs)


def _warm_up(name: str, problem: Problem, seed: int) -> None:
    """One epoch makes the plans and kernels that the clock should not see."""
    _iterated(name, problem, Schedule(1), seed)


def _iterated(
    name: str,
    problem: Problem,
    schedule: Schedule,
    seed: int,
    canvas: Tensor | None = None,
    budget_s: float | None = None,
) -> tuple[Solution, int]:
    """Object and probe after an engine, and its epochs."""
    start = Solution.start(problem.vacuum if canvas is None else canvas, problem.probe, problem.data)
    schedule = Schedule(schedule.epochs, 0 if problem.refine_probe else -1, tolerance=schedule.tolerance)
    began = time.perf_counter()

    def in_time(epochs: int, solution: Solution) -> bool:
        return budget_s is None or time.perf_counter() - began < budget_s

    outcome = iterate(make_engine(name, seed), start, schedule, in_time)
    return outcome.solution, len(outcome.history)


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """The result of a call, and its seconds to the end of the computing: the median of up to `REPEATS` calls."""
    synchronise(device)
    times: list[float] = []
    while not times or (len(times) < REPEATS and sum(times) < REPEAT_FOR_S):
        began = time.perf_counter()
        result = run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return result, statistics.median(times)
