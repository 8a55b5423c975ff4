"""``bluesky-cdi demo``: an adaptive scan, reconstructed live."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import DEMO_OUTPUT, configured, set_threads
from bluesky_cdi.cli.output import command_line, say_result


def add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    demo = commands.add_parser(
        "demo", parents=[common], help="an adaptive scan, reconstructed live, on a simulated or replayed beamline"
    )
    add = demo.add_argument
    add("--out", type=Path, default=DEMO_OUTPUT, metavar="DIR", help="catalog and figure (default: %(default)s)")
    # A recorded scan has frames at its positions only.
    on = demo.add_mutually_exclusive_group().add_argument
    on("--replay", type=Path, metavar="FILE", help="a recorded scan instead of the simulated beamline")
    on("--fly", action="store_true", help="each batch is one flight of the simulated stage")
    add("--reference", type=Path, metavar="FILE", help="its reference (default: reference.npz beside it)")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from bluesky_cdi import demo

    config = configured(args)
    set_threads(config)
    setting = demo.replayed(config, args.replay, args.reference) if args.replay else demo.simulated(config)
    outcome = demo.run(setting, args.out, show_progress=not args.quiet, fly=args.fly)
    results = f"{args.out} ({command_line('browse', args.out)})"
    rows = [*outcome.table.items(), ("results", results), ("figure", str(outcome.figure))]
    say_result(args, dict(outcome.numbers), rows)
    return 0
