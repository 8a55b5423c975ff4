"""Options that say how recorded scans are reconstructed, and the configuration that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.cli.arguments import count, positive
from bluesky_cdi.cli.detector import add_detector_options, detector_settings

if TYPE_CHECKING:
    from bluesky_cdi.config import Config


def add_method_options(command: argparse.ArgumentParser) -> None:
    """Add the options of engine, probe, checks and detector.

    Parameters
    ----------
    command : ArgumentParser
        Where they are added.
    """
    from bluesky_cdi.engines import PTYCHOGRAPHY

    add = command.add_argument
    add(
        "--engine",
        choices=("pinn", *PTYCHOGRAPHY),
        default="lsqml",
        help="an iterative engine, or the network and then LSQ-ML (default: %(default)s)",
    )
    add("--iterations", type=count, default=100, help="most iterations (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=1e-3,
        help="end when five iterations lower the deviance by less than this share; 0: never (default: %(default)s)",
    )
    add("--modes", type=int, choices=range(1, 9), default=3, help="incoherent probe modes (default: %(default)s)")
    add("--batch", type=positive, help="frames a mini-batch (default: the engine's own)")
    add("--fixed-positions", action="store_true", help="keep the positions (lsqml and pinn refine them)")
    add(
        "--fine-tune",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="tune the network on this scan for so long (pinn only; default: not at all)",
    )
    add("--uncertainty", metavar="NAME", help="what predicts errors (reconstructor.uncertainty of a configuration)")
    add("--focus-to-sample", type=float, metavar="METRES", help="near field: distance of the sample behind the focus")
    add("--probe", type=Path, metavar="FILE", help="first guess of the probe, a file that `bluesky-cdi probe` wrote")
    add("--trust-probe", action="store_true", help="don't check the probe by the frames before")
    add(
        "--trust-orientation",
        action="store_true",
        help="don't check which way round the frames lie, nor whether positions of a fly scan lag",
    )
    add_detector_options(command)


def method_config(args: argparse.Namespace, threads: int = 0) -> Config:
    """Load the configuration, with what the options say.

    Parameters
    ----------
    args : Namespace
        With the options of `add_method_options`.
    threads : int
        CPU threads; 0 leaves PyTorch's own choice.

    Raises
    ------
    ConfigError
        If a file or an option can't be used.
    """
    from bluesky_cdi.config import load_config

    settings = {
        "name": args.engine,
        "tolerance": args.tolerance,
        "batch": args.batch,
        "refine_positions": args.engine in ("lsqml", "pinn") and not args.fixed_positions,
        "fine_tune_s": args.fine_tune,
        "background": 0.0,
        "threads": threads,
        **({"uncertainty": args.uncertainty} if args.uncertainty else {}),
    }
    sections = {"reconstructor": settings, "probe": {"modes": args.modes}, "detector": detector_settings(args)}
    return load_config(args.config, sections)
