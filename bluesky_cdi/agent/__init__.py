"""Where to measure next: a Bayesian agent, and fixed patterns behind the same protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bluesky_cdi.agent.constraints import Box
    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.config import AgentConfig
    from bluesky_cdi.protocols import Agent

__all__ = ["make_agent"]


def make_agent(
    config: AgentConfig,
    space: SearchSpace,
    *,
    probe_width_m: float,
    budget: int,
    seed: int,
    step_m: float,
    keep_out_m: Sequence[Box] = (),
) -> Agent:
    """Make the agent that a configuration names.

    A raster or spiral takes the smallest step, at least `step_m`, with which it covers the whole
    window within the budget.

    Parameters
    ----------
    config : AgentConfig
        Which agent, and how it chooses.
    space : SearchSpace
        The positions to choose from.
    probe_width_m : float
        Full width at half maximum of the illumination, metres.
    budget : int
        Most frames.
    seed : int
        Of what it draws at random.
    step_m : float
        Step of the full scan, metres.
    keep_out_m : sequence of ((y, x), (y, x))
        Low and high corner of each box that nothing is proposed in, metres.

    Returns
    -------
    Agent
    """
    if config.name == "bayesian":
        from bluesky_cdi.agent.bayesian import BayesianAgent

        return BayesianAgent(
            space,
            probe_width_m=probe_width_m,
            alpha=config.alpha,
            coverage_share=config.coverage_share,
            budget=budget,
            stop_gain=config.stop_gain,
            target_std_rad=config.target_std_rad,
            target_resolution_m=config.target_resolution_m,
            seed=seed,
            keep_out_m=keep_out_m,
        )
    from bluesky_cdi.agent import patterns
    from bluesky_cdi.agent.constraints import outside_boxes
    from bluesky_cdi.agent.static import StaticAgent

    low, high = space.low_m, space.high_m
    if config.name == "random":
        order = patterns.random_uniform(low, high, budget, seed)
    else:
        pattern = patterns.raster if config.name == "raster" else patterns.fermat_spiral
        order = patterns.within_budget(pattern, low, high, step_m, budget)
    order = order[outside_boxes(order, keep_out_m)]
    return StaticAgent(space, order, config.name, budget)
