"""``bluesky-cdi train``: the network on simulated scans."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import torch

    from bluesky_cdi.models.unrolled import UnrolledConfig

# The networks that can be trained: `models.unrolled.PRESETS`, which would load torch, and the baseline.
MODELS = ("tiny", "small", "large", "ptychonn")


def add_train(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    train = commands.add_parser("train", parents=[common], help="train the network on simulated scans")
    add = train.add_argument
    add("out", type=Path, help="file to write, ending in .safetensors; its record goes beside it")
    add(
        "--seconds",
        type=float,
        default=525.0,
        help="time to train; what comes before and after is reported (default: %(default)s)",
    )
    add("--seed", type=int, default=1, help="of scenes and first weights (default: %(default)s)")
    add("--learning-rate", type=float, default=1.5e-3, help="the highest (default: %(default)s)")
    add("--model", choices=MODELS, default="small", help="size of the network (default: %(default)s)")
    add("--attention", action="store_true", help="self-attention at the coarsest level of each stage")
    add(
        "--subsets",
        type=int,
        default=1,
        metavar="N",
        help="parts of the frames that a stage goes through one after the other before its U-Net (default 1: none)",
    )
    add("--scaled", action="store_true", help="stages see and make changes in units of the physics step's size too")
    add("--supervised", type=float, default=1.0, metavar="WEIGHT", help="of the error to the truth; 0: without labels")
    add("--physics", type=float, default=1.0, metavar="WEIGHT", help="of the frames' deviance; 0: labels alone")
    add(
        "--photons",
        type=float,
        nargs=2,
        default=(1e3, 1e8),
        metavar=("LEAST", "MOST"),
        help="of a frame (default: 1e3 1e8)",
    )
    add("--probe", type=Path, metavar="SCAN", help="train for the probe of this scan file alone (default: all kinds)")
    # `torchrun` looks through the options too, so none may be short for one of its own (`--start`: `--start-method`).
    add(
        "--initial",
        action="append",
        default=[],
        metavar="FILE",
        help="weights to go on from, shipped or a file, of this size or less of it; repeated: their mean",
    )
    add("--resume", action="store_true", help="go on with an interrupted run of the same options")
    add(
        "--device",
        default="auto",
        help="auto, cpu or cuda; several GPUs: torchrun -m bluesky_cdi train ... (default: %(default)s)",
    )
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.log import configure_logging
    from bluesky_cdi.models.ptychonn import PtychoNNConfig
    from bluesky_cdi.models.weights import is_shipped
    from bluesky_cdi.signals import EndingSignals
    from bluesky_cdi.training.denormals import denormals_flushed
    from bluesky_cdi.training.pretrain import PretrainConfig, pretrain
    from bluesky_cdi.training.process_group import joined

    configure_logging(logging.INFO + 10 * args.quiet)
    if args.out.suffix != ".safetensors":
        raise BlueskyCDIError(f"the weights file must end in .safetensors; got {args.out}")
    if args.supervised <= 0 and args.physics <= 0:
        raise BlueskyCDIError("one of --supervised and --physics must be above 0: there is nothing to learn from")
    # Matrix products in TF32 and convolutions tuned to their sizes: speed, at no cost to bf16 training. The baseline's
    # batches have another number of frames each time, and tuning for each took longer than training.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = args.model != "ptychonn"
    if (args.attention or args.scaled or args.subsets != 1) and args.model == "ptychonn":
        raise BlueskyCDIError(
            "--attention, --scaled and --subsets are options of the unrolled networks, not of --model ptychonn"
        )
    if args.subsets < 1:
        raise BlueskyCDIError(f"--subsets must be 1 or more; got {args.subsets}")
    config = PretrainConfig(
        seconds=args.seconds,
        seed=args.seed,
        learning_rate=args.learning_rate,
        supervised=args.supervised,
        physics=args.physics,
        photons=(args.photons[0], args.photons[1]),
        model=PtychoNNConfig() if args.model == "ptychonn" else _size(args),
    )
    probe = _probe(args.probe) if args.probe else None
    # Told to end, it keeps what it has learned.
    with denormals_flushed(), EndingSignals(), joined(args.device) as processes:
        record = pretrain(
            config, processes, args.out, args.initial, probe=probe, resume=args.resume, quiet=bool(args.quiet)
        )
    if not processes.leads:
        return 0
    rows = [
        (f"{dose} photons, {method}", f"NRMSE {value}")
        for dose, row in record["validation"].items()
        for method, value in row.items()
    ]
    shipped = [("in SHIPPED_SHA256", f'"{args.out.stem}": "{record["sha256"]}",')] if is_shipped(args.out) else []
    # Minutes on a CPU: not at the end of a job whose time is counted.
    next_step = [] if args.model == "ptychonn" else [("calibrate errors by", f"bluesky-cdi calibrate {args.out}")]
    judged = ("held-out scans", f"{record['validation_scans']} a dose")
    last = [("weights", str(args.out)), *shipped, *next_step]
    say_result(args, record, [("steps", str(record["steps"])), judged, *rows, *last])
    return 0


def _size(args: argparse.Namespace) -> UnrolledConfig:
    """Give the size of an unrolled network as asked."""
    from bluesky_cdi.models.unrolled import PRESETS
    from bluesky_cdi.training.starts import PASSES

    size = PRESETS[args.model]
    # Before the step that the U-Net sees there must be one that is a sweep.
    steps = size.steps if args.subsets == 1 else max(2, size.steps)
    chosen = {"subsets": args.subsets, "attention": args.attention, "scaled": args.scaled}
    return replace(size, steps=steps, passes=PASSES, **chosen)


def _probe(path: Path) -> torch.Tensor:
    import torch

    from bluesky_cdi.io import read_scan

    scan = read_scan(path)
    if scan.probe is None:
        raise BlueskyCDIError(f"{path} holds no probe to train for: write its guess into the file, or omit --probe")
    if scan.geometry.propagation == "near":
        raise BlueskyCDIError(f"{path} is a near field; training for one probe draws far fields: omit --probe")
    return torch.from_numpy(scan.probe)
