"""Networks that make passes in a row, or go on from an engine's object: what they gain by it, and what it costs.

Passes are made one after the other whatever they bring, unlike those of `predict_object`, where each must explain the
frames better. So this is what the networks have learned, not what a reconstruction lets them do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bluesky_cdi.bench.machine import synchronise
from bluesky_cdi.bench.methods import Found, Network, engine, first_use, predict, refine, rpie_name, timed
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.engines.ptychography import Schedule
from bluesky_cdi.errors import FrameError
from bluesky_cdi.models.unrolled import UnrolledNet

MANY_PASSES = 10
# Iterations of rPIE that give the time for passes, and those whose object a pass goes on from.
BUDGET_FROM, BETTER_FROM = 10, 50
# Frames that come to a scan which is reconstructed but for them.
NEW_FRAMES = 16


def many_name(name: str) -> str:
    """Name ten passes of a network."""
    return f"{name}, {MANY_PASSES} passes"


def as_long_name(name: str) -> str:
    """Name as many passes of a network as take the time of rPIE, refined."""
    return f"{name}, as long as {rpie_name(BUDGET_FROM)}, refined"


def better_name(name: str) -> str:
    """Name a pass of a network that begins at what rPIE has found."""
    return f"{rpie_name(BETTER_FROM)}, {name}, one pass"


def update_name(name: str) -> str:
    """Name a pass over all frames from the object that all but the last few have given."""
    return f"{name}, {NEW_FRAMES} new frames"


@torch.no_grad()
def solve_passes(problem: Problem, networks: Sequence[Network], seed: int) -> dict[str, Found]:
    """Run each network in several ways, beside rPIE.

    Parameters
    ----------
    problem : Problem
        The scan.
    networks : sequence of Network
        Those that draw the object anew, whatever they are given, have fewer rows.
    seed : int
        Seed of the order of frames in iterative engines.

    Returns
    -------
    dict of str to Found

    Raises
    ------
    FrameError
        If the scan has no more frames than are new.
    """
    if len(problem.data) <= NEW_FRAMES:
        raise FrameError(
            f"passes are measured with {NEW_FRAMES} new frames beside known ones; the scan has {len(problem.data)}"
        )
    found = {rpie_name(n): engine("rpie", problem, Schedule(n), seed) for n in (BUDGET_FROM, BETTER_FROM)}
    for network in networks:
        if not isinstance(network.net, UnrolledNet):
            found[network.name] = predict(network, problem)
            continue
        passes = _Passes(network.net, problem)
        found |= _in_a_row(network, passes, found, seed)
        if network.is_warm:
            found |= _from_what_is_known(network, passes, found)
    return found


def _in_a_row(network: Network, passes: _Passes, known: Mapping[str, Found], seed: int) -> dict[str, Found]:
    """Make one, many, and as many passes as take the time of rPIE, from vacuum."""
    budget_s = known[rpie_name(BUDGET_FROM)].seconds
    in_time = passes.timed(lambda: passes.in_time(budget_s))
    return {
        network.one_pass_name: passes.timed(lambda: passes.made(1)),
        many_name(network.name): passes.timed(lambda: passes.made(MANY_PASSES)),
        as_long_name(network.name): refine(network, passes.problem, in_time, seed),
    }


def _from_what_is_known(network: Network, passes: _Passes, known: Mapping[str, Found]) -> dict[str, Found]:
    """Make a pass from rPIE's object, and one for new frames beside a reading of all frames."""
    better, problem = known[rpie_name(BETTER_FROM)], passes.problem
    before = replace(problem, data=problem.data[: len(problem.data) - NEW_FRAMES])
    earlier = predict(network, before).object
    return {
        better_name(network.name): passes.timed(lambda: passes.made(1, better.object)).after(better),
        network.name: predict(network, problem),
        update_name(network.name): passes.timed(lambda: passes.made(1, earlier)),
    }


class _Passes:
    """Passes of one network over the frames of a scan."""

    def __init__(self, net: UnrolledNet, problem: Problem) -> None:
        self._net, self.problem = net, problem
        # What the first use loads, the clock should not see.
        net(problem.probe, first_use(problem))

    def made(self, number: int, start: Tensor | None = None) -> Tensor:
        """Make so many passes; each later one begins where the one before has ended."""
        obj = self.problem.vacuum if start is None else start
        for _ in range(number):
            obj = self._net(self.problem.probe, self.problem.data, obj)[-1]
        return obj

    def in_time(self, budget_s: float) -> Tensor:
        """Make passes until the next would end after a time, but one at least."""
        began, number, obj = time.perf_counter(), 0, self.problem.vacuum
        while number == 0 or (time.perf_counter() - began) * (number + 1) / number <= budget_s:
            obj, number = self.made(1, obj), number + 1
            synchronise(obj.device)
        return obj

    def timed(self, run: Callable[[], Tensor]) -> Found:
        """Time a way to an object."""
        obj, seconds, cpu_seconds = timed(run, self.problem.probe.device)
        return Found(obj, self.problem.probe, seconds, cpu_seconds)
