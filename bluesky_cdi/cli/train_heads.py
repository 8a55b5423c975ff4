"""``bluesky-cdi train-heads``: heads beside a network, which predict its errors and can disagree."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError


def add_train_heads(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "train-heads", parents=[common], help="train what predicts a network's errors in several ways, beside it"
    )
    add = command.add_argument
    add("out", type=Path, help="file to write, ending in .heads.safetensors; its record goes beside it")
    add("--weights", default="canvas-small", metavar="FILE", help="of the network, shipped or a file (%(default)s)")
    add("--seconds", type=float, default=240.0, help="time to train (default: %(default)s)")
    add("--steps", type=positive, help="train for so many steps instead, which the same seed repeats")
    add("--seed", type=int, default=1)
    add("--learning-rate", type=float, default=1e-3)
    add("--members", type=positive, default=4, help="of the ensemble (default: %(default)s)")
    add("--dropout", type=float, default=0.1, metavar="SHARE", help="of the channels (default: %(default)s)")
    add("--device", default="auto", help="PyTorch device (default: a GPU where there is one)")
    command.set_defaults(run=_train_heads)


def _train_heads(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.log import configure_logging
    from bluesky_cdi.models.weights import HEADS, is_shipped, load_weights
    from bluesky_cdi.training.denormals import denormals_flushed
    from bluesky_cdi.training.heads import HeadsTraining, train_heads

    configure_logging(logging.INFO + 10 * args.quiet)
    ending = f"{HEADS}.safetensors"
    if not args.out.name.endswith(ending):
        raise BlueskyCDIError(f"the file of the heads must end in {ending}; got {args.out}")
    if not 0 <= args.dropout < 1:
        raise BlueskyCDIError(f"--dropout must be from 0 to below 1; got {args.dropout}")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    device = torch.device(name)
    config = HeadsTraining(
        seconds=args.seconds,
        steps=args.steps,
        seed=args.seed,
        learning_rate=args.learning_rate,
        members=args.members,
        dropout=args.dropout,
    )
    with denormals_flushed():
        record = train_heads(config, load_weights(args.weights, device), args.out, device, quiet=bool(args.quiet))
    rows = [
        (f"{dose} photons, {what}", str(value))
        for dose, row in record["validation"].items()
        for what, value in row.items()
    ]
    shipped = [("in SHIPPED_SHA256", f'"{args.out.stem}": "{record["sha256"]}",')] if is_shipped(args.out) else []
    say_result(args, record, [("steps", str(record["steps"])), *rows, ("weights", str(args.out)), *shipped])
    return 0
