"""How much memory the reconstruction's process holds in the course of one long scan, in simulated time.

The documents of a scan that would take an hour come as fast as the images keep up with: the next ones once few frames
wait, as at a rate that the machine sustains. Counts beyond `reconstructor.memory_mb` lie in a file that is mapped into
memory, which the system may take away; what is counted is what it can't, the anonymous memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.bench.machine import anonymous_mib, record
from bluesky_cdi.bench.suites import rate
from bluesky_cdi.bench.suites.events import raster_config
from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.journal import Journal
from bluesky_cdi.remote.setup import live_arguments, live_setup

# Frames that may wait for an image before the next ones come, and how often that is looked at, seconds.
WAITING, LOOK_S = 256, 0.02
# Frames between two looks at the memory, as a share of all. The beginning is what comes before `AFTER`: until then the
# frames of one region, of `reconstructor.window_px`, become more. Means are taken over `PART`.
EVERY, AFTER, PART = 0.02, 0.4, 0.2
SETTLE_S = 1800.0


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    side : int
        Frames along each side of the raster.
    seconds : float
        What the scan would take.
    step_px : int
        Pixels from frame to frame.
    memory_mb : int
        `reconstructor.memory_mb`.
    weights : str
        The network's name or file.
    device : str
        Where is computed, as PyTorch calls it.
    """

    side: int = 120
    seconds: float = 3600.0
    step_px: int = 12
    memory_mb: int = 32
    weights: str = "canvas-small"
    device: str = "cpu"


def scan_memory(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure the process while frames come, and once the image is final.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with how far it is.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``scan``: ``frames``, how many were ``reconstructed``, ``took_s``, ``course``
        (frames sent, MiB of anonymous memory), ``from_mib``, ``least_mib`` and ``most_mib`` after the beginning,
        ``growth`` (how much the mean of the last fifth is above that of the one after the beginning), ``final_mib``.

    Raises
    ------
    BlueskyCDIError
        If the system does not tell what memory is anonymous.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    if anonymous_mib(os.getpid()) is None:
        raise BlueskyCDIError("memory is counted from /proc, which only Linux has")
    config = _config(options)
    with tempfile.TemporaryDirectory(prefix="bluesky_cdi-") as name:
        tell(f"simulating {options.side**2} frames")
        run = rate.simulated(config, Path(name))
        found = _scan(run.documents(1.0), len(run.positions_m), config, Path(name) / "session", tell)
    return record([torch.device(options.device)], asdict(options), scan=found)


def _config(options: Options) -> Config:
    made = raster_config(options.side, options.step_px).model_dump(mode="json")
    made["simulation"]["sample"] = "natural"
    made["reconstructor"] |= {
        "weights": options.weights, "device": options.device, "memory_mb": options.memory_mb, "final_steps": 1
    }  # fmt: skip
    return Config.model_validate(made)


def _scan(documents: Any, number: int, config: Config, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Send a run's documents, never many ahead of the image."""
    images, journal = rate.Images(number), Journal(folder / "journal")
    worker, buffer = live_setup(live_arguments(config, folder), journal).start([images])
    course: list[tuple[int, float]] = []
    began, due = time.perf_counter(), EVERY
    try:
        for sent, together in documents:
            while sent - images.imaged > WAITING:
                worker.check()
                time.sleep(LOOK_S)
            for name, doc in together:
                buffer(name, doc)
            if together[-1][0] == "event" and sent >= due * number:
                due += EVERY
                course.append((sent, anonymous_mib(os.getpid()) or 0.0))
                tell(f"{sent} frames: {course[-1][1]:.0f} MiB")
        buffer.drain(SETTLE_S)
        worker.wait(SETTLE_S)
    finally:
        buffer.close()
        worker.close(SETTLE_S)
        journal.close()
    return {
        **_summary(course, number),
        "frames": number,
        "reconstructed": images.imaged,
        "took_s": time.perf_counter() - began,
        "final_mib": anonymous_mib(os.getpid()),
        "course": course,
    }


def _summary(course: list[tuple[int, float]], number: int) -> dict[str, float]:
    """Say how memory went after the beginning."""
    after = [mib for sent, mib in course if sent >= AFTER * number]
    first = [mib for sent, mib in course if AFTER <= sent / number < AFTER + PART]
    last = [mib for sent, mib in course if sent / number > 1 - PART]
    at_first, at_last = sum(first) / len(first), sum(last) / len(last)
    return {"from_mib": after[0], "least_mib": min(after), "most_mib": max(after), "growth": at_last / at_first - 1}
