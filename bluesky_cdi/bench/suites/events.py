"""What an event costs the scan: bare, with the journal, and in a session with catalog and live reconstruction.

Rasters without exposure on the simulated beamline, whose stage and detector answer at once, so that nothing hides the
cost. The three ways take turns, since other work on the machine slows them all.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.journal import Journal
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

WAYS = ("bare", "journal", "session")
# The reconstruction and the catalog may need longer than the scan: nothing here waits for the beam.
SETTLE_S = 900.0


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
        ``settle_s``, the seconds until all was reconstructed and in the catalog, and what the catalog and the
        reconstruction then held.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    side = math.ceil(math.sqrt(options.events / options.rounds))
    config = _config(side, options.step_px)
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
    return record([torch.device("cpu")], {**asdict(options), "events": side**2 * options.rounds}, rows=rows)


@dataclass(frozen=True)
class _Raster:
    """One raster: seconds between its events, processor seconds of this process, and what became of it."""

    gaps_s: np.ndarray[Any, Any]
    cpu_s: float
    settle_s: float = 0.0
    in_catalog: int = 0
    reconstructed: int = 0


def _config(side: int, step_px: int) -> Config:
    """Configure a square raster around 0 without exposure."""
    step_um = step_px * Geometry(**load_config().geometry.model_dump()).pixel_m * 1e6
    return load_config(
        overrides={
            "scan": {"extent_um": [(side - 1) * step_um] * 2, "step_um": step_um, "exposure_s": 0.0},
            "simulation": {"velocity_m_per_s": 0.1},
        }
    )


def _alone(config: Config, folder: Path, journal: bool) -> _Raster:
    from bluesky import RunEngine

    with _engine(RunEngine({})) as engine, contextlib.ExitStack() as stack:
        if journal:
            engine.subscribe(stack.enter_context(contextlib.closing(Journal(folder / "journal"))))
        return _measure(engine, config, folder / "frames", None)


def _in_session(session: Session, config: Config) -> _Raster:
    from bluesky_cdi.catalog import find_results

    found = _measure(session.RE, config, session.frames_directory, session.live)
    started = time.perf_counter()
    session.wait(SETTLE_S)
    settle_s = time.perf_counter() - started
    raw = session.catalog.raw.values().last()
    (result,) = find_results(session.catalog, raw.start["uid"])
    rows = len(raw["primary"].base["internal"].read())
    return _Raster(found.gaps_s, found.cpu_s, settle_s, rows, int(result.n_frames or 0))


def _measure(engine: Any, config: Config, frames: Path, live: Any) -> _Raster:
    beamline, stamps, scan = simulated_beamline(config, frames), [], config.scan
    token = engine.subscribe(lambda *_: stamps.append(time.perf_counter()), "event")
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


@contextlib.contextmanager
def _engine(engine: Any) -> Iterator[Any]:
    try:
        yield engine
    finally:
        engine.loop.call_soon_threadsafe(engine.loop.stop)


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
    }
