"""What an event costs the scan: bare, with the journal, and in a session with catalog and live reconstruction.

Rasters without exposure on the simulated beamline, whose stage and detector answer at once, so that nothing hides the
cost. The three ways take turns, since other work on the machine slows them all. In further rasters of the session the
catalog's server gets a large request from outside, or one of the other two processes is stopped for a while.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from bluesky_cdi.bench.machine import record, resident_mib
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.journal import Journal
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.remote import WorkerProcess
from bluesky_cdi.session import Session, stop_engine
from bluesky_cdi.sim_devices import simulated_beamline

WAYS = ("bare", "journal", "session")
# A request's body, in bytes, and how long a process is stopped.
BODY, STOPPED_S = 100_000_000, 3.0
# The reconstruction and the catalog may need longer than the scan: nothing here waits for the beam.
SETTLE_S = 900.0


# After how many events something is done.
Disturbance = tuple[int, Callable[[], None]]


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    events : int
        Of each way, in all.
    rounds : int
        Rasters that these are split into.
    step_px : int
        Pixels from frame to frame.
    """

    events: int = 3000
    rounds: int = 3
    step_px: int = 12


def events(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure the three ways.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with the name of each raster before it begins.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: for each way the mean, median and longest time from one event to the
        next in milliseconds, and the processor time of this process for each event. For the session also
        ``settle_s``, the seconds until all was reconstructed and in the catalog, what the catalog and the
        reconstruction then held, and ``resident_mib``, the memory of its three processes (own, reconstruction,
        catalog) after each raster. ``disturbed`` has the same for a raster of the session with each disturbance.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    side = math.ceil(math.sqrt(options.events / options.rounds))
    config = raster_config(side, options.step_px)
    taken: dict[str, list[_Raster]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, Session(config, Path(folder) / "catalog") as session:
        for k in range(options.rounds):
            for way in WAYS:
                tell(f"{way} {k + 1} of {options.rounds}")
                if way == "session":
                    taken[way].append(_in_session(session, config))
                else:
                    taken[way].append(_alone(config, Path(folder) / f"{way}{k}", way == "journal"))
        rows = {way: _row(rasters) for way, rasters in taken.items()}
        disturbed = {}
        for name, disturb in _disturbances(session).items():
            tell(name)
            disturbed[name] = _row([_in_session(session, config, (side**2 // 3, disturb))])
    settings = {**asdict(options), "events": side**2 * options.rounds, "raster": side**2}
    return record([torch.device("cpu")], settings, rows=rows, disturbed=disturbed)


@dataclass(frozen=True)
class _Raster:
    """One raster: seconds between its events, processor seconds of this process, and what became of it."""

    gaps_s: np.ndarray[Any, Any]
    cpu_s: float
    settle_s: float = 0.0
    in_catalog: int = 0
    reconstructed: int = 0
    resident_mib: tuple[float | None, ...] = ()


def raster_config(side: int, step_px: int) -> Config:
    """Configure a square raster around 0 without exposure.

    Parameters
    ----------
    side : int
        Frames along a side.
    step_px : int
        Pixels from frame to frame.
    """
    step_um = step_px * Geometry(**load_config().geometry.model_dump()).pixel_m * 1e6
    return load_config(
        overrides={
            "scan": {"extent_um": [(side - 1) * step_um] * 2, "step_um": step_um, "exposure_s": 0.0},
            "simulation": {"velocity_m_per_s": 0.1},
        }
    )


def _alone(config: Config, folder: Path, journal: bool) -> _Raster:
    from bluesky import RunEngine

    with contextlib.ExitStack() as stack:
        engine = RunEngine({})
        stack.callback(stop_engine, engine)
        if journal:
            engine.subscribe(stack.enter_context(contextlib.closing(Journal(folder / "journal"))))
        return _measure(engine, config, folder / "frames", None)


def _in_session(session: Session, config: Config, disturbance: Disturbance | None = None) -> _Raster:
    from bluesky_cdi.catalog import find_results

    found = _measure(session.RE, config, session.frames_directory, session.live, disturbance)
    started = time.perf_counter()
    session.wait(SETTLE_S)
    settle_s = time.perf_counter() - started
    raw = session.catalog.raw.values().last()
    result = find_results(session.catalog, raw.start["uid"])[-1]
    rows = len(raw["primary"].base["internal"].read())
    memory = tuple(map(resident_mib, (os.getpid(), *other_pids(session))))
    return _Raster(found.gaps_s, found.cpu_s, settle_s, rows, int(result.n_frames or 0), memory)


def _disturbances(session: Session) -> dict[str, Callable[[], None]]:
    """Give what is done to the processes beside the scan's own."""

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(STOPPED_S, os.kill, (pid, signal.SIGCONT)).start()

    def send() -> None:
        threading.Thread(target=_send, args=(session.uri,)).start()

    return {
        f"{BODY // 1_000_000} MB sent to the server": send,
        f"reconstruction stopped for {STOPPED_S:g} s": lambda: stop(other_pids(session)[0]),
        f"catalog stopped for {STOPPED_S:g} s": lambda: stop(other_pids(session)[1]),
    }


def other_pids(session: Session) -> tuple[int, int]:
    """Give the numbers of the processes of a session's reconstruction and catalog.

    Raises
    ------
    ConfigError
        If it does without them.
    """
    worker, keeper = session.live, session.keeper
    if not isinstance(worker, WorkerProcess) or worker.link is None or keeper is None:
        raise ConfigError("the session must have processes of its own: leave `in_process` of both sections false")
    return worker.link.pid, keeper.pid


def _send(uri: str) -> None:
    """Send a request with a large body, and no key, until it is refused."""
    address = urlsplit(uri)
    head = f"POST /api/v1/metadata/ HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"
    with (
        socket.create_connection((address.hostname, address.port or 80), 60.0) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(head.encode())
        for _ in range(BODY // 2**20):
            client.sendall(b" " * 2**20)


def _measure(engine: Any, config: Config, frames: Path, live: Any, disturbance: Disturbance | None = None) -> _Raster:
    beamline, scan = simulated_beamline(config, frames), config.scan
    stamps: list[float] = []

    def see(name: str, doc: Any) -> None:
        stamps.append(time.perf_counter())
        if disturbance is not None and len(stamps) == disturbance[0]:
            disturbance[1]()

    token = engine.subscribe(see, "event")
    used = time.process_time()
    try:
        engine(
            ptycho_raster(
                [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x, live,
                extent_um=scan.extent_um, step_um=scan.step_um,
            )
        )  # fmt: skip
    finally:
        engine.unsubscribe(token)
    return _Raster(np.diff(stamps), time.process_time() - used)


def _row(rasters: list[_Raster]) -> dict[str, Any]:
    gaps_ms = 1e3 * np.concatenate([each.gaps_s for each in rasters])
    return {
        "mean_ms": float(gaps_ms.mean()),
        "median_ms": float(np.median(gaps_ms)),
        "longest_ms": float(gaps_ms.max()),
        "cpu_ms": 1e3 * sum(each.cpu_s for each in rasters) / sum(len(each.gaps_s) + 1 for each in rasters),
        "settle_s": [each.settle_s for each in rasters],
        "in_catalog": [each.in_catalog for each in rasters],
        "reconstructed": [each.reconstructed for each in rasters],
        "resident_mib": [each.resident_mib for each in rasters],
    }
