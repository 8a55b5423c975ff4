"""What more workers are worth: a series of simulated scans by one worker and by several, turn and turn about.

*Efficiency* is the clock's time with one worker over that with n, over n: 1 where each new worker takes its full share.
On a machine that does other things as well it says little: then look at the processors' time of a scan, with one
worker over that with n, which tells what workers cost one another by caches and memory alone.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.bench.cases import Case, scan_of
from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import load_config
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.io import write_scan
from bluesky_cdi.many import Method, ScanFile, Task, run_tasks
from bluesky_cdi.many.workers import cores, gpus_of, local_workers

SAMPLES = ("cells", "star", "leaves", "lines")
# A load above this share of the cores before anything is begun: other programs compute.
BUSY = 0.25


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    scans : int
        In the series.
    workers : int
        To be compared with one.
    repeats : int
        How often each number of workers does the series.
    engine : str
        Which reconstructs.
    iterations : int
        All of which are done.
    frame_px : int
        Pixels along a side of the frames.
    """

    scans: int = 8
    workers: int = 2
    repeats: int = 3
    engine: str = "lsqml"
    iterations: int = 60
    frame_px: int = 64


def many(options: Options, on_progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure how much faster several workers are than one.

    Parameters
    ----------
    options : Options
        What is measured.
    on_progress : callable
        Told a line after each turn.

    Returns
    -------
    dict
        Plain JSON values: ``turns`` one by one, and ``efficiency``, by the clock and by the processors.

    Raises
    ------
    BlueskyCDIError
        If a scan fails.
    """
    load = os.getloadavg()[0]
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = _series(options, Path(folder))
        for repeat in range(options.repeats):
            # Whatever else the machine does meets both in turn.
            for number in (1, options.workers) if repeat % 2 == 0 else (options.workers, 1):
                turns.append(_turn(tasks, number))
                on_progress(f"{number} worker(s): {turns[-1]['seconds']:.1f} s")
    found = {
        "load_before": load,
        "is_busy": load > BUSY * cores(),
        "turns": turns,
        "efficiency": {
            "clock": _ratio(turns, "seconds", options.workers) / options.workers,
            "processors": _ratio(turns, "cpu_s_a_scan", options.workers),
        },
    }
    gpus = gpus_of("auto")
    devices = [torch.device("cuda", k) for k in range(len(gpus))] or [torch.device("cpu")]
    return record(devices, asdict(options), **found)


def _series(options: Options, folder: Path) -> list[Task]:
    settings = {"name": options.engine, "tolerance": 0.0, "threads": 1, "background": 0.0}
    config = load_config(overrides={"reconstructor": settings, "probe": {"modes": 1}})
    method = Method(config, options.iterations, orientation=False, check_in=False)
    tasks = []
    for k in range(options.scans):
        path = folder / f"scan{k}.npz"
        case = Case(sample=SAMPLES[k % len(SAMPLES)], frame_px=options.frame_px, field=1.0)
        write_scan(path, scan_of(case, k))
        tasks.append(Task(path.stem, ScanFile(path), method, folder / f"{path.stem}.cxi"))
    return tasks


def _turn(tasks: Sequence[Task], number: int) -> dict[str, Any]:
    """Do the series once; each worker has done a short scan before, and has loaded what it needs."""
    began = time.perf_counter()
    with local_workers(number, gpus_of("auto")) as workers:
        method = replace(tasks[0].method, iterations=1)
        first = [replace(tasks[0], name=f"first{k}", method=method, out=tasks[0].out.with_name(f"first{k}.cxi"))
                 for k in range(number)]  # fmt: skip
        run_tasks(first, workers)
        ready = time.perf_counter()
        rows = run_tasks(tasks, workers)
        ended = time.perf_counter()
    if failed := [row for row in rows if row.state != "done"]:
        raise BlueskyCDIError(f"{failed[0].scan} {failed[0].state}: {failed[0].reason}")
    cpu_s = sum(row.cpu_s or 0.0 for row in rows)
    return {
        "workers": number,
        "begin_s": ready - began,
        "seconds": ended - ready,
        "cpu_s_a_scan": cpu_s / len(rows),
        # How much of the clock's time its workers had a processor.
        "share_of_processors": cpu_s / (number * (ended - ready)),
    }


def _ratio(turns: Sequence[dict[str, Any]], key: str, workers: int) -> float:
    """Divide the median of one worker by that of several."""
    one, several = (statistics.median(float(turn[key]) for turn in turns if turn["workers"] == n) for n in (1, workers))
    return one / several
