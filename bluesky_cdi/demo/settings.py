"""What a demonstration runs on: a simulated beamline, or a recorded scan that is replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.protocols import ComplexArray

if TYPE_CHECKING:
    from bluesky_cdi.io import Reference, Scan
    from bluesky_cdi.sim_devices import Beamline

logger = logging.getLogger(__name__)

# Share of a recorded scan's frames that its replay may use.
REPLAY_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Target:
    """What the result is compared with: a simulation's truth, or a recorded scan's reference.

    Attributes
    ----------
    name : str
        How the table calls it.
    object : ndarray, shape (Y, X), complex
    origin_m : tuple of float
        Sample position (y, x) of its pixel [0, 0], metres.
    """

    name: str
    object: ComplexArray
    origin_m: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Setting:
    """What a demonstration runs on.

    Attributes
    ----------
    config : Config
    make_beamline : callable
        From the folder for frames to the devices.
    make_target : callable
        From the devices to what the result is compared with; gives None if there is nothing.
    title : str
    sample : str
        What is measured, as the run's metadata name it.
    full_scan_frames : int
        Frames of the full scan of the same window.
    session_options : Mapping
        Further arguments of the session.
    """

    config: Config
    make_beamline: Callable[[Path], Beamline]
    make_target: Callable[[Beamline], Target | None]
    title: str
    sample: str
    full_scan_frames: int
    session_options: Mapping[str, Any] = field(default_factory=dict)


def simulated(config: Config) -> Setting:
    """Set the demonstration up on the simulated beamline."""
    from bluesky_cdi.agent.patterns import raster
    from bluesky_cdi.sim_devices import simulated_beamline

    scan = config.scan
    half = np.array(scan.extent_um) / 2
    full = raster(-half, half, scan.step_um)

    def target(beamline: Beamline) -> Target | None:
        truth = beamline.truth
        return None if truth is None else Target("truth", truth.object, truth.origin_m)

    return Setting(
        config=config,
        make_beamline=lambda directory: simulated_beamline(config, directory),
        make_target=target,
        title=f"Adaptive ptychography of a simulated sample ({config.simulation.sample})",
        sample=config.simulation.sample,
        full_scan_frames=len(full),
        session_options={"monitor_key": "i0"},
    )


def replayed(config: Config, path: Path, reference: Path | None = None) -> Setting:
    """Set the demonstration up on a recorded scan, from `scan.budget` of its frames and at most half of them.

    Parameters
    ----------
    config : Config
        Geometry and window are replaced by the scan's.
    path : Path
        A scan that `bluesky_cdi.io.read_scan` reads.
    reference : Path, optional
        Reference reconstruction; by default ``reference.npz`` beside the scan, where there is one.

    Returns
    -------
    Setting

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If a file can't be used.
    """
    import torch

    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.io import read_reference, read_scan
    from bluesky_cdi.physics.probes import width_px
    from bluesky_cdi.sim_devices import replayed_beamline

    scan = read_scan(path)
    found = read_reference(reference, scan) if reference else _reference_beside(path, scan)
    space = SearchSpace.from_positions(scan.positions_m)
    options: dict[str, Any] = {"space": space, "mask": scan.mask}
    if scan.probe is not None:
        width = width_px(torch.from_numpy(np.asarray(scan.probe))) * scan.geometry.pixel_m
        options |= {"probe": scan.probe, "probe_width_m": width}
    return Setting(
        config=_replay_config(config, scan, space.spacing_m),
        make_beamline=lambda directory: replayed_beamline(scan, directory),
        make_target=lambda _: Target("reference", found.object, found.origin_m) if found else None,
        title=f"Adaptive ptychography, replayed from a recorded scan ({scan.name or path.name})",
        sample=scan.name or path.name,
        full_scan_frames=len(scan),
        session_options=options,
    )


def _reference_beside(path: Path, scan: Scan) -> Reference | None:
    """Read a fitting ``reference.npz`` in the scan's folder; one of another form is no reason to fail."""
    from bluesky_cdi.io import read_reference

    beside = path.with_name("reference.npz")
    if not beside.is_file():
        return None
    try:
        return read_reference(beside, scan)
    except ScanFileError as err:
        logger.warning("no comparison: %s", err)
        return None


def _replay_config(config: Config, scan: Scan, spacing_m: float) -> Config:
    """Give the configuration the recorded scan's geometry and window, and no dwell to hide decisions behind."""
    low, high = scan.positions_m.min(axis=0) * 1e6, scan.positions_m.max(axis=0) * 1e6
    budget = max(1, min(config.scan.budget, int(REPLAY_SHARE * len(scan))))
    geometry = scan.geometry
    return config.model_copy(
        update={
            "geometry": config.geometry.model_copy(update={**geometry.as_metadata(), "frame_px": geometry.frame_px}),
            "probe": config.probe.model_copy(update={"modes": max(config.probe.modes, 3)}),
            "reconstructor": config.reconstructor.model_copy(update={"background": 0.0, "step_budget_s": 30.0}),
            "scan": config.scan.model_copy(
                update={
                    "centre_um": tuple(map(float, (low + high) / 2)),
                    "extent_um": tuple(map(float, high - low)),
                    "step_um": spacing_m * 1e6,
                    "budget": budget,
                    "batch": min(config.scan.batch, budget),
                    "decision_timeout_s": 60.0,
                }
            ),
        }
    )
