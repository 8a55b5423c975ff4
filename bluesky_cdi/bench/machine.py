"""The devices that a benchmark runs on."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from bluesky_cdi import __version__
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.physics.illuminated_frames import has_triton


def machine(devices: Sequence[torch.device]) -> dict[str, Any]:
    """Say what the numbers were measured on."""
    return {
        "devices": [torch.cuda.get_device_name(d) if d.type == "cuda" else platform.machine() for d in devices],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fused_kernels": devices[0].type == "cuda" and has_triton(),
        "bluesky_cdi": __version__,
    }


class Stopwatch:
    """Adds up the time of what is done while it is entered, to the end of the computing on the device.

    Parameters
    ----------
    device : torch.device
        Device that computes.
    seconds, cpu_seconds : float
        What it begins with.

    Attributes
    ----------
    seconds : float
        By the clock.
    cpu_seconds : float
        Of this process's processors.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._device = device
        self._began = (0.0, 0.0)
        self.seconds, self.cpu_seconds = seconds, cpu_seconds

    def start(self) -> None:
        """Go on."""
        synchronise(self._device)
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stand still, once all is computed."""
        synchronise(self._device)
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]

    def __enter__(self) -> Stopwatch:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def resident_mib(pid: int) -> float | None:
    """Read how much memory a process holds, in MiB; None where there is no Linux, or no such process, to tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def anonymous_mib(pid: int) -> float | None:
    """Read how much memory a process holds that lies in no file, in MiB; None where there is no Linux to tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon:")), None)


def record(devices: Sequence[torch.device], settings: Mapping[str, Any], **results: Any) -> dict[str, Any]:
    """Put results together with what they were measured on, as plain JSON values.

    Parameters
    ----------
    devices : sequence of torch.device
        Devices that computed.
    settings : Mapping
        What was asked for.
    **results
        Each under its name; in them numbers that are not finite, which JSON does not know, become null.

    Returns
    -------
    dict
        ``machine``, ``settings`` and the results.
    """
    return {"machine": machine(devices), "settings": dict(settings), **{name: plain(r) for name, r in results.items()}}


def plain(value: Any) -> Any:
    """Turn mappings and sequences of numbers and strings into JSON values; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def devices_of(name: str, number: int) -> list[torch.device]:
    """Find the first `number` devices of a kind.

    Parameters
    ----------
    name : str
        As PyTorch calls it; ``auto``: GPUs where there are any, else the CPU.
    number : int
        How many; of the CPU it is the same one.

    Returns
    -------
    list of torch.device

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
