"""``bluesky-cdi bench``: how fast networks and engines are, and how good."""

from __future__ import annotations

import argparse
from typing import Any

from bluesky_cdi.cli.bench.compression import add_compression
from bluesky_cdi.cli.bench.engines import add_engines, add_lsqml, add_single_shot
from bluesky_cdi.cli.bench.host import add_host
from bluesky_cdi.cli.bench.images import (
    SUITES,
    add_drift,
    add_faults,
    add_fine_tuning,
    add_latents,
    add_live,
    add_probe_checks,
    add_quality,
    add_scan,
)
from bluesky_cdi.cli.bench.many import add_many
from bluesky_cdi.cli.bench.pretraining import add_pretraining
from bluesky_cdi.cli.bench.rate import add_rate
from bluesky_cdi.cli.bench.resolution import add_resolution
from bluesky_cdi.cli.bench.scaling import add_scaling
from bluesky_cdi.cli.bench.speed import add_events, add_memory, add_steps, add_throughput
from bluesky_cdi.cli.bench.trust import add_trust

__all__ = ["SUITES", "add_bench"]


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
    for add_part in (
        add_throughput,
        add_quality,
        add_trust,
        add_scan,
        add_probe_checks,
        add_drift,
        add_faults,
        add_latents,
        add_pretraining,
        add_live,
        add_steps,
        add_events,
        add_host,
        add_rate,
        add_memory,
        add_compression,
        add_many,
        add_resolution,
        add_fine_tuning,
        add_scaling,
        add_engines,
        add_lsqml,
        add_single_shot,
    ):
        add_part(parts, common)
