"""``bench agent``: what the agent gains from embeddings of frames, in adaptive scans that are simulated."""

from __future__ import annotations

import argparse

from bluesky_cdi.cli.arguments import above_0, positive
from bluesky_cdi.cli.bench.common import Part, add_out, finish, prepare, tell

EMBEDDINGS = ["critic", "radial profile", "class tokens", "none"]


def _agent_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--embeddings", nargs="+", choices=EMBEDDINGS, default=EMBEDDINGS, metavar="NAME",
        help="each is held against the first of them (default: 'critic' 'radial profile' 'class tokens' 'none')",
    )  # fmt: skip
    add(
        "--samples",
        nargs="+",
        default=["particles", "leaves"],
        metavar="KIND",
        help="simulated samples (default: particles leaves)",
    )
    add("--seeds", type=positive, default=5, help="scans of each (default: %(default)s)")
    add("--budget", type=positive, default=60, help="frames of a scan (default: %(default)s)")
    add("--batch", type=positive, default=12, help="frames of a decision (default: %(default)s)")
    add("--extent", type=above_0, default=1.8, metavar="UM", help="side of its window (default: %(default)s)")
    add("--photons", type=above_0, default=1e5, help="of a frame (default: 1e5)")
    add("--reconstructor", default="pinn", help="which reconstructor (default: %(default)s)")
    add_out(command)


def _bench_agent(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports.agent import agent as table
    from bluesky_cdi.bench.suites.agent import Options, agent

    prepare(args)
    torch.set_num_threads(1)
    options = Options(
        args.embeddings,
        args.samples,
        args.seeds,
        args.budget,
        args.batch,
        args.extent,
        args.photons,
        args.reconstructor,
    )
    found = agent(options, tell)
    return finish(args, found, table(found))


AGENT = Part(
    "agent",
    "what an agent gains from embeddings of frames, in simulated adaptive scans",
    _agent_options,
    _bench_agent,
)
