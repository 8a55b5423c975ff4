"""How much memory the three processes of a session hold, run after run.

What a process holds is more than what it uses: Python collects objects that refer to one another in circles now and
then only (each status of an ophyd device is one), and the C library keeps freed memory for later. So in the session's
own process it is also counted what is in use, and how much is held once both have given back what they can.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.bench.machine import record, resident_mib
from bluesky_cdi.bench.suites.events import SETTLE_S, other_pids, raster_config
from bluesky_cdi.memory import give_memory_back
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

# The first run imports and fills what stays.
WARM = 2


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    runs : int
        Rasters, one after the other, on the same devices.
    events : int
        Of each, nearly: the raster is square.
    step_px : int
        Pixels from frame to frame.
    tidy : bool
        Whether the session's own process collects and gives back what it can after each run: then it grows by what it
        uses alone.
    """

    runs: int = 10
    events: int = 300
    step_px: int = 12
    tidy: bool = False


def memory(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure the processes after each run, when it is reconstructed and in the catalog.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with the name of each run before it begins.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``resident_mib``: what own process, reconstruction and catalog hold after each
        run. ``own`` has for the second run and the last (tidy: for each), of the session's own process: ``run``,
        ``objects`` (that Python's garbage collector knows) and ``blocks`` (of Python's allocator) after a collection,
        and ``resident_mib`` once free memory is given back (None where only the C library could tell).
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    side = math.isqrt(options.events)
    config = raster_config(side, options.step_px)
    held, own = [], []
    with tempfile.TemporaryDirectory() as folder, Session(config, Path(folder) / "catalog") as session:
        beamline, scan = simulated_beamline(config, session.frames_directory), config.scan
        for run in range(1, options.runs + 1):
            tell(f"run {run} of {options.runs}")
            session.RE(
                ptycho_raster(
                    [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x, session.live,
                    extent_um=scan.extent_um, step_um=scan.step_um,
                )
            )  # fmt: skip
            session.wait(SETTLE_S)
            held.append([resident_mib(pid) for pid in (os.getpid(), *other_pids(session))])
            if options.tidy or run in (WARM, options.runs):
                own.append({"run": run, **_in_use()})
    settings = {**asdict(options), "events": side**2}
    return record([torch.device("cpu")], settings, resident_mib=held, own=own)


def _in_use() -> dict[str, Any]:
    """Count what this process uses, and measure what it holds at least."""
    gc.collect()
    found = {"objects": len(gc.get_objects()), "blocks": sys.getallocatedblocks()}
    return {**found, "resident_mib": resident_mib(os.getpid()) if give_memory_back() else None}
