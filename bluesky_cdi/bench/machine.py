"""The devices that a benchmark runs on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

from bluesky_cdi import __version__
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.lit_frames import has_triton


def machine(devices: Sequence[torch.device]) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "devices": [torch.cuda.get_device_name(d) if d.type == "cuda" else platform.machine() for d in devices],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fused_kernels": devices[0].type == "cuda" and has_triton(),
        "bluesky_cdi": __version__,
    }


def devices_of(name: str, number: int) -> list[torch.device]:
    """The first `number` devices of a kind; ``auto``: GPUs where there are any, else the CPU (`number` times).

    Raises
    ------
    ConfigError
        If there are not as many, or the name means nothing.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:0; got {name!r}") from err
    if device.type != "cuda":
        return [device] * number
    there, first = torch.cuda.device_count(), device.index or 0
    if first + number > there:
        raise ConfigError(f"{number} GPU(s) from number {first} on are asked for; PyTorch sees {there}")
    return [torch.device("cuda", first + i) for i in range(number)]


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
