"""Whether a scan is measured and reconstructed whole while the host of its reconstruction fails again and again.

A session on the simulated beamline has its reconstruction on a host, both on this machine. During one raster the host
is killed, ended, stopped for a while (nothing of it is heard: what a network that is cut looks like from the session),
and its device has no memory, in turns. A raster without faults comes before it.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.host_faults import FACTORY, SETTLE_S, Faults, HostProcess
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.suites.events import raster_config
from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError, WorkerError
from bluesky_cdi.memory import keep_loaded
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.remote import WorkerProcess
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    frames : int
        Of the raster; the next square is measured.
    faults : int
        Spread evenly over the raster.
    exposure_s : float
        Of a frame, seconds: the host must have time to come back.
    unreachable_s : float
        How long the host is stopped, seconds.
    step_px : int
        Pixels from frame to frame.
    device : str
        The host's, as PyTorch calls it.
    """

    frames: int = 10_000
    faults: int = 20
    exposure_s: float = 0.05
    unreachable_s: float = 60.0
    step_px: int = 12
    device: str = "auto"


def host(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure a raster without faults and one with them.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with what is done next.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, one a raster: ``events`` emitted, ``in_catalog``, whether these are the
        same frames (``same``), frames in the final result (``reconstructed``), whether it is ``complete``, ``failed``
        results before it, the longest and the median time between two events, seconds, the longest that a collection
        of garbage held this process up (``longest_collection_s``), how many ``faults`` came, by kind, how many found
        the reconstruction ``up``, and after how long it was there again, seconds.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    side = math.ceil(math.sqrt(options.frames))
    with tempfile.TemporaryDirectory() as folder, HostProcess(Path(folder), options.device) as served:
        config = _config(options, side, served.address)
        with Session(config, Path(folder) / "catalog", monitor_key="i0", factory=FACTORY) as session:
            # As a profile does.
            keep_loaded()
            tell("a raster without faults")
            rows = [_raster(session, config, None)]
            if not isinstance(session.live, WorkerProcess):
                raise BlueskyCDIError("the session must have a process for its reconstruction")
            tell(f"a raster with {options.faults} faults")
            faults = Faults(options.faults, side**2, options.unreachable_s, served, session.live, tell)
            rows.append(_raster(session, config, faults))
    return record([torch.device("cpu")], {**asdict(options), "frames": side**2}, rows=rows)


def _config(options: Options, side: int, address: str) -> Config:
    made = raster_config(side, options.step_px).model_dump(mode="json")
    made["scan"]["exposure_s"] = options.exposure_s
    made["probe"]["trust"] = True
    made["reconstructor"] |= {
        "name": "rpie",
        "refine_iterations": 1,
        "final_steps": 1,
        "host": {"address": [address], "otherwise": "none", "connect_s": 2.0, "retry_s": 1.0},
    }
    return Config.model_validate(made)


class _Collections:
    """Takes the time of collections of garbage, which hold up all threads of this process: one of `gc.callbacks`.

    Attributes
    ----------
    longest_s : float
        Of the longest one, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.longest_s = 0.0
        self._clock, self._began = clock, clock()

    def __call__(self, phase: str, about: Mapping[str, int]) -> None:
        """Learn that one begins or ends."""
        if phase == "start":
            self._began = self._clock()
        else:
            self.longest_s = max(self.longest_s, self._clock() - self._began)


def _raster(session: Session, config: Config, faults: Faults | None) -> dict[str, Any]:
    from bluesky_cdi.catalog import find_results, load_result

    beamline, scan = simulated_beamline(config, session.frames_directory), config.scan
    stamps: list[float] = []
    sums: list[float] = []
    uids: list[str] = []

    def see(name: str, doc: Any) -> None:
        if name == "start":
            uids.append(doc["uid"])
        elif name == "event" and "diff_total" in doc["data"]:
            stamps.append(time.perf_counter())
            sums.append(doc["data"]["diff_total"])
            if faults is not None:
                faults.see(len(stamps))

    token, collections = session.RE.subscribe(see), _Collections()
    gc.callbacks.append(collections)
    try:
        session.RE(
            ptycho_raster(
                [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x, session.live,
                extent_um=scan.extent_um, step_um=scan.step_um,
            )
        )  # fmt: skip
    finally:
        gc.callbacks.remove(collections)
        session.RE.unsubscribe(token)
    if faults is not None:
        faults.close()
    try:
        session.wait(SETTLE_S)
        error = None
    except WorkerError as err:
        error = str(err)
    kept = session.catalog.raw[uids[-1]]["primary"]["diff_image"].read().sum(axis=(1, 2))
    results = find_results(session.catalog, uids[-1])
    last = results[-1] if results else None
    whole = last is not None and last.complete
    frames = len(set(load_result(session.catalog, str(last.uid)).frame_seq_nums)) if last is not None and whole else 0
    return {
        "events": len(stamps),
        "in_catalog": len(kept),
        "same": bool(np.array_equal(kept, sums)),
        "reconstructed": frames,
        "complete": whole,
        "error": error,
        "failed": sum(not each.complete for each in results),
        "longest_gap_s": float(np.diff(stamps).max()),
        "median_gap_s": float(np.median(np.diff(stamps))),
        "longest_collection_s": collections.longest_s,
        **({"faults": {}, "up": 0, "back_s": []} if faults is None else faults.notes()),
    }
