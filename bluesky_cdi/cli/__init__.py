"""The command ``bluesky-cdi``.

Results go to standard output, everything else to standard error. Exit codes: 0, 1 (failed), 2
(usage), 130 (Ctrl-C).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi import __version__
from bluesky_cdi.cli.bench import add_bench
from bluesky_cdi.cli.browse import add_browse
from bluesky_cdi.cli.calibrate import add_calibrate
from bluesky_cdi.cli.compare import add_compare
from bluesky_cdi.cli.convert import add_convert
from bluesky_cdi.cli.demo import add_demo
from bluesky_cdi.cli.doctor import add_doctor
from bluesky_cdi.cli.export import add_export
from bluesky_cdi.cli.fit_latents import add_fit_latents
from bluesky_cdi.cli.follow import add_follow
from bluesky_cdi.cli.inspect import add_inspect
from bluesky_cdi.cli.latents import add_latents
from bluesky_cdi.cli.new_profile import add_new_profile
from bluesky_cdi.cli.output import say_error
from bluesky_cdi.cli.pretrain import add_pretrain
from bluesky_cdi.cli.probe import add_probe
from bluesky_cdi.cli.reconstruct import add_reconstruct
from bluesky_cdi.cli.reconstruct_many import add_reconstruct_many
from bluesky_cdi.cli.reconstruct_single import add_reconstruct_single
from bluesky_cdi.cli.restore import add_restore
from bluesky_cdi.cli.resume import add_resume
from bluesky_cdi.cli.serve import add_serve
from bluesky_cdi.cli.serve_reconstructor import add_serve_reconstructor
from bluesky_cdi.cli.shell import add_shell
from bluesky_cdi.cli.train import MODELS, add_train
from bluesky_cdi.cli.train_heads import add_train_heads
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.signals import INTERRUPTED

__all__ = ["MODELS", "main"]

# Options that a command has may stand before it too; there they have names of their own, or the command's defaults
# would take their place.
BEFORE = "before_"
COMMON = ("config", "verbose", "quiet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from bluesky_cdi.log import configure_logging, keep_traceback

    args = _joined(_parser().parse_args(argv))
    configure_logging(logging.WARNING - 10 * args.verbose + 10 * args.quiet)
    try:
        return int(args.run(args))
    except BlueskyCDIError as err:
        say_error(str(err))
        keep_traceback(err)
        return 1
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough of it (`| head`). What the interpreter still flushes goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as err:  # noqa: BLE001 - the last resort of a command
        say_error(f"{type(err).__name__}: {err} (not foreseen here: {keep_traceback(err)})")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bluesky-cdi", description="Live, adaptive coherent diffraction imaging with Bluesky."
    )
    parser.add_argument("--version", action="version", version=f"bluesky-cdi {__version__}")
    _add_common(parser, BEFORE)
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (
        add_demo,
        add_inspect,
        add_reconstruct,
        add_reconstruct_many,
        add_probe,
        add_reconstruct_single,
        add_convert,
        add_compare,
        add_browse,
        add_export,
        add_latents,
        add_serve,
        add_follow,
        add_serve_reconstructor,
        add_resume,
        add_restore,
        add_shell,
        add_new_profile,
        add_doctor,
        add_train,
        add_train_heads,
        add_pretrain,
        add_calibrate,
        add_fit_latents,
        add_bench,
    ):
        add_command(commands, common)
    _describe(parser)
    return parser


def _describe(parser: argparse.ArgumentParser) -> None:
    """Let the help of each command begin with what the list of all says of it."""
    for group in parser._actions:
        if isinstance(group, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in group._choices_actions}
            for name, command in group.choices.items():
                command.description = command.description or helps[name]
                _describe(command)


def _add_common(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Add the options that every command has, under names that begin with a prefix."""

    def add(*flags: str, **options: Any) -> None:
        parser.add_argument(*flags, dest=prefix + flags[-1].lstrip("-"), **options)

    add("-c", "--config", type=Path, action="append", default=[], metavar="FILE", help="YAML file; later ones win")
    add("-v", "--verbose", action="count", default=0, help="say more (twice: even more)")
    add("-q", "--quiet", action="count", default=0, help="say less, no progress bar")
    add("--json", action="store_true", help="print the result as JSON")


def _joined(args: argparse.Namespace) -> argparse.Namespace:
    """Add what stands before the command to what stands after it."""
    for name in COMMON:
        setattr(args, name, getattr(args, BEFORE + name) + getattr(args, name))
    args.json = args.before_json or args.json
    return args
