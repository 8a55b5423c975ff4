"""Types of arguments and what several commands prepare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.config import Config


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive whole number; got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive whole number; got {text!r}")
    return int(text)


def _config(args: argparse.Namespace) -> Config:
    from bluesky_cdi.config import load_config

    return load_config(args.config)


def _set_threads(config: Config) -> None:
    """Keep PyTorch from taking the cores that the RunEngine and the simulated detector need."""
    import torch

    if config.reconstructor.threads:
        torch.set_num_threads(config.reconstructor.threads)


def _make_folder(folder: Path) -> None:
    """Before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise BlueskyCDIError(f"can't write into {folder}: {err}. Name another place.") from err
