"""What becomes of a scan's documents while the host of its reconstruction fails again and again; needs no catalog.

The frames lie in a file, as a detector leaves them. The scan is a thread that writes documents to the journal at a
rate, as a RunEngine does in a session: what it waits for, a RunEngine waits for. The host computes with the network, on
a GPU if it has one, whose memory is then taken in earnest.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.host_faults import FACTORY, LOOK_S, SETTLE_S, Faults, HostProcess, is_up
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.paced_run import PacedRun
from bluesky_cdi.bench.suites import rate
from bluesky_cdi.config import Config
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.journal import Journal, JournalReader, run_files
from bluesky_cdi.remote import WorkerProcess
from bluesky_cdi.remote.setup import live_arguments


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    frames : int
        Of the scan; the next square is sent.
    faults : int
        Spread evenly over the scan.
    frames_s : float
        Frames a second.
    unreachable_s : float
        How long the host is stopped, seconds.
    device : str
        The host's, as PyTorch calls it.
    weights : str
        The network's name or file.
    """

    frames: int = 10_000
    faults: int = 20
    frames_s: float = 20.0
    unreachable_s: float = 60.0
    device: str = "auto"
    weights: str = "canvas-small"


def host_documents(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure a scan with faults.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with what is done next.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows`` with one row, as of `suites.host.host`; ``in_catalog`` is what the
        journal has, and ``longest_write_s`` the longest time that the scan waited for it.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    side = math.ceil(math.sqrt(options.frames))
    with tempfile.TemporaryDirectory(prefix="bluesky_cdi-") as name:
        folder = Path(name)
        tell(f"simulating {side**2} frames")
        with HostProcess(folder, options.device) as served:
            config = _config(options, side, served.address)
            run = replace(rate.simulated(config, folder), form="rows")
            row = _scan(run, config, folder / "session", options, served, tell)
    device = torch.device("cuda" if options.device.startswith("cuda") else "cpu")
    return record([device], {**asdict(options), "frames": side**2}, rows=[row])


def _config(options: Options, side: int, address: str) -> Config:
    made = rate.config_of(rate.Options(side, options.weights)).model_dump(mode="json")
    made["reconstructor"]["final_steps"] = 1
    made["reconstructor"]["host"] = {"address": [address], "otherwise": "none", "connect_s": 2.0, "retry_s": 1.0}
    return Config.model_validate(made)


def _scan(
    run: PacedRun, config: Config, folder: Path, options: Options, served: HostProcess, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Send a run, and wait for its result."""
    number = len(run.positions_m)
    live = WorkerProcess(FACTORY, live_arguments(config, folder), (), config.reconstructor.host)
    with _ended(live), contextlib.closing(Journal(folder / "journal" / "raw", live.appended)) as journal:
        while not is_up(live):
            time.sleep(LOOK_S)
        faults = Faults(options.faults, number, options.unreachable_s, served, live, tell)
        tell(f"a scan with {options.faults} faults")
        ready, stamps = list(run.documents(options.frames_s)), []
        began, longest_s = time.perf_counter(), 0.0
        for frames, docs in ready:
            time.sleep(max(0.0, began + frames / options.frames_s - time.perf_counter()))
            before = time.perf_counter()
            for name, doc in docs:
                journal(name, doc)
            longest_s = max(longest_s, time.perf_counter() - before)
            if docs[-1][0] == "event":
                stamps.append(time.perf_counter())
                faults.see(frames)
        faults.close()
        tell("waiting for the result")
        error = None
        try:
            live.wait(SETTLE_S)
        except WorkerError as err:
            error = str(err)
    kept = _kept(folder)
    frames, is_whole, failed = _result(folder / "results")
    return {
        "events": len(stamps),
        "in_catalog": len(kept),
        "same": kept == list(range(1, number + 1)),
        "reconstructed": frames,
        "complete": is_whole,
        "error": error,
        "failed": failed,
        "longest_gap_s": float(np.diff(stamps).max()),
        "median_gap_s": float(np.median(np.diff(stamps))),
        "longest_write_s": longest_s,
        **faults.notes(),
    }


@contextlib.contextmanager
def _ended(live: WorkerProcess) -> Iterator[None]:
    """End the reconstruction: after what it is doing, or at once where the benchmark is ended."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(WorkerError):
            live.close(0.0)
        raise
    live.close()


def _kept(folder: Path) -> list[int]:
    """List the numbers of the frames whose events the journal has."""
    [path] = run_files(folder / "journal" / "raw")
    with contextlib.closing(JournalReader(path)) as reader:
        return [doc["seq_num"] for name, doc in reader.documents() if name == "event"]


def _result(folder: Path) -> tuple[int, bool, int]:
    """Count the frames of the complete result, tell whether there is one, and count those that are not."""
    import h5py

    from bluesky_cdi.catalog.schema import PER_FRAME

    frames, whole, others = 0, False, 0
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            if file.attrs["complete"]:
                frames, whole = len(np.unique(file[f"{PER_FRAME}/frame_seq_num"][:])), True
            else:
                others += 1
    return frames, whole, others
