"""``bluesky-cdi pretrain``: the frame encoder, on simulated and recorded scans, without labels."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.models.frame_encoder import FrameEncoderConfig

# Channels of a head of attention.
HEAD_CHANNELS = 64


def add_pretrain(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "pretrain", parents=[common], help="train the frame encoder without labels, on simulated and recorded scans"
    )
    add = command.add_argument
    add("out", type=Path, help="file to write, ending in .encoder.safetensors; its record goes beside it")
    add("--seconds", type=float, default=400.0, help="time to train (default: %(default)s)")
    add("--steps", type=positive, help="train for so many steps instead, which the same seed repeats")
    add("--seed", type=int, default=1, help="of scans and first weights (default: %(default)s)")
    add("--learning-rate", type=float, default=8e-4, help="the highest (default: %(default)s)")
    add(
        "--photons",
        type=float,
        nargs=2,
        default=(1e3, 1e8),
        metavar=("LEAST", "MOST"),
        help="of a simulated frame (default: 1e3 1e8)",
    )
    add(
        "--files",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="recorded scans, and folders of them, which half of the batches come from",
    )
    add(
        "--initial",
        metavar="NAME",
        help="frame encoder to go on from: frames.encoder, or a file; its sizes are taken over (default: from nothing)",
    )
    add(
        "--single-frames", action="store_true",
        help="learn from single simulated frames of isolated samples, for `bench single-shot --encoder`",
    )  # fmt: skip
    add("--patch", type=positive, help="pixels along a side of a patch (default: 8)")
    add("--width", type=positive, help="channels of a token, a multiple of 64 (default: 256)")
    add("--depth", type=positive, help="blocks of the encoder (default: 6)")
    add("--resume", action="store_true", help="go on with an interrupted run of the same options")
    add(
        "--device",
        default="auto",
        help="auto, cpu or cuda; several GPUs: torchrun -m bluesky_cdi pretrain ... (default: %(default)s)",
    )
    command.set_defaults(run=_pretrain)


def _pretrain(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.log import configure_logging
    from bluesky_cdi.models.frame_weights import load_frame_model
    from bluesky_cdi.models.weights import ENCODER, is_shipped, path_of
    from bluesky_cdi.signals import EndingSignals
    from bluesky_cdi.training.denormals import denormals_flushed
    from bluesky_cdi.training.pretraining.run import PretrainingConfig, pretrain_frames
    from bluesky_cdi.training.process_group import joined

    configure_logging(logging.INFO + 10 * args.quiet)
    ending = f"{ENCODER}.safetensors"
    if not args.out.name.endswith(ending):
        raise BlueskyCDIError(f"the file of the encoder must end in {ending}; got {args.out}")
    initial = None if args.initial is None else path_of(args.initial)
    if initial is not None and any((args.patch, args.width, args.depth)):
        raise BlueskyCDIError("--initial has its own sizes: leave out --patch, --width and --depth")
    model = _sizes(args) if initial is None else load_frame_model(initial).model.config
    torch.backends.cuda.matmul.allow_tf32 = True
    config = PretrainingConfig(
        seconds=args.seconds,
        steps=args.steps,
        seed=args.seed,
        learning_rate=args.learning_rate,
        photons=(args.photons[0], args.photons[1]),
        model=model,
        single_frames=args.single_frames,
    )
    # Told to end, it keeps what it has learned.
    with denormals_flushed(), EndingSignals(), joined(args.device) as processes:
        record = pretrain_frames(
            config, processes, args.out, args.files, initial=initial, resume=args.resume, quiet=bool(args.quiet)
        )
    if not processes.leads:
        return 0
    rows = [
        (f"{dose} photons, {what}", str(value))
        for dose, row in record["validation"].items()
        for what, value in row.items()
    ]
    shipped = [("in SHIPPED_SHA256", f'"{args.out.stem}": "{record["sha256"]}",')] if is_shipped(args.out) else []
    say_result(args, record, [("steps", str(record["steps"])), *rows, ("weights", str(args.out)), *shipped])
    return 0


def _sizes(args: argparse.Namespace) -> FrameEncoderConfig:
    from bluesky_cdi.models.frame_encoder import FrameEncoderConfig

    width = args.width or 256
    if width % HEAD_CHANNELS:
        raise BlueskyCDIError(f"--width must be a multiple of {HEAD_CHANNELS}; got {width}")
    # The decoders are three quarters as wide, in heads of the same size.
    heads = width // HEAD_CHANNELS
    small = max(1, 3 * heads // 4)
    return FrameEncoderConfig(
        patch=args.patch or 8,
        width=width,
        depth=args.depth or 6,
        heads=heads,
        decoder_width=HEAD_CHANNELS * small,
        decoder_heads=small,
    )
