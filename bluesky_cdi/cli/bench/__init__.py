"""``bluesky-cdi bench``: how fast networks and engines are, and how good."""

from __future__ import annotations

import argparse
from typing import Any

from bluesky_cdi.cli.bench.agent import AGENT
from bluesky_cdi.cli.bench.beyond_aperture import BEYOND_APERTURE
from bluesky_cdi.cli.bench.compression import COMPRESSION
from bluesky_cdi.cli.bench.engines import ENGINES, LSQML, SINGLE_SHOT
from bluesky_cdi.cli.bench.host import HOST
from bluesky_cdi.cli.bench.images import (
    DRIFT,
    FAULTS,
    FINE_TUNING,
    LATENTS,
    LIVE,
    PROBE_CHECKS,
    QUALITY,
    SCAN,
    SUITES,
)
from bluesky_cdi.cli.bench.many import MANY
from bluesky_cdi.cli.bench.pretraining import PRETRAINING, TRANSFER
from bluesky_cdi.cli.bench.rate import RATE
from bluesky_cdi.cli.bench.resolution import RESOLUTION
from bluesky_cdi.cli.bench.scaling import SCALING
from bluesky_cdi.cli.bench.speed import EVENTS, MEMORY, STEPS, THROUGHPUT
from bluesky_cdi.cli.bench.trust import TRUST

__all__ = ["SUITES", "add_bench"]

# In the order of `bluesky-cdi bench --help`.
PARTS = (
    THROUGHPUT,
    QUALITY,
    TRUST,
    SCAN,
    PROBE_CHECKS,
    DRIFT,
    FAULTS,
    HOST,
    LATENTS,
    PRETRAINING,
    TRANSFER,
    AGENT,
    LIVE,
    STEPS,
    EVENTS,
    RATE,
    MEMORY,
    COMPRESSION,
    MANY,
    RESOLUTION,
    BEYOND_APERTURE,
    FINE_TUNING,
    SCALING,
    ENGINES,
    LSQML,
    SINGLE_SHOT,
)


def add_bench(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its parts to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    bench = commands.add_parser("bench", help="measure speed on this machine, and quality")
    parts = bench.add_subparsers(dest="part", required=True, metavar="WHAT")
    for part in PARTS:
        command = parts.add_parser(part.name, parents=[common], help=part.help)
        part.add_options(command)
        command.set_defaults(run=part.run)
