"""The devices of a beamline, wired together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bluesky_cdi.config import Config
from bluesky_cdi.sim_devices._beam import Beam
from bluesky_cdi.sim_devices._clock import Clock
from bluesky_cdi.sim_devices._detector import FrameMode, SimAreaDetector
from bluesky_cdi.sim_devices._fly_detector import SimFlyDetector
from bluesky_cdi.sim_devices._monitor import SimMonitor
from bluesky_cdi.sim_devices._replayed import RecordedScan, ReplayedSource
from bluesky_cdi.sim_devices._scanner import SimScanner
from bluesky_cdi.sim_devices._shutter import SimShutter
from bluesky_cdi.sim_devices._simulated import SimulatedSource, Truth, travel_limits_um
from bluesky_cdi.sim_devices._stage import SimStage
from bluesky_cdi.sim_devices._ticker import TriggerLine

UM_PER_M = 1e6


@dataclass(frozen=True, eq=False)
class Beamline:
    """Devices that belong together.

    Attributes
    ----------
    detector : SimAreaDetector
        ``diff``: frames under ``diff_image``; a `SimFlyDetector` where there is a `scanner`.
    stage : SimStage
        ``stage``: axes ``stage_y`` and ``stage_x``.
    monitor : SimMonitor
        ``i0``.
    shutter : SimShutter
        ``shutter``.
    scanner : SimScanner or None
        ``scanner``: flies the stage; None for a recorded scan, which has frames at its positions only.
    truth : Truth or None
        What the simulation knows, for tests and figures; None for a recorded scan.
    """

    detector: SimAreaDetector
    stage: SimStage
    monitor: SimMonitor
    shutter: SimShutter
    scanner: SimScanner | None
    truth: Truth | None


def simulated_beamline(config: Config, directory: Path | str, clock: Clock | None = None) -> Beamline:
    """Make a beamline with a synthetic sample.

    Parameters
    ----------
    config : Config
        The stage starts at the centre of ``config.scan`` and may leave its window by a tenth of
        the extent on each side; ``config.scan.exposure_s`` is the exposure that
        ``config.simulation.photons`` and ``background`` belong to, and the detector's first one.
    directory : path
        Folder of the detector's files.
    clock : Clock, optional
        The time that moves and exposures take; absent, it is real.

    Raises
    ------
    ConfigError, GeometryError
        If the configuration describes no possible experiment.
    """
    simulation, exposure_s = config.simulation, config.scan.exposure_s
    source = SimulatedSource(config)
    shutter = SimShutter(name="shutter")
    beam = Beam(simulation.flux_fluctuation, seed=(simulation.seed, 1), is_open=lambda: shutter.is_open)
    stage = SimStage(
        name="stage",
        velocity_um_per_s=simulation.velocity_m_per_s * UM_PER_M,
        limits_um=travel_limits_um(config),
        start_um=config.scan.centre_um,
        clock=clock,
    )
    line = TriggerLine()
    monitor = SimMonitor(name="i0", beam=beam, nominal_s=exposure_s, seed=(simulation.seed, 2))
    detector = SimFlyDetector(
        name="diff",
        source=source,
        beam=beam,
        line=line,
        flux_key=monitor.name,
        nominal_s=exposure_s,
        position_m=lambda: stage.position_m,
        directory=directory,
        frame_mode=simulation.frames,
        exposure_s=exposure_s,
        clock=clock,
    )
    scanner = SimScanner(name="scanner", stage=stage, line=line, directory=directory, clock=clock)
    return Beamline(detector, stage, monitor, shutter, scanner, source.truth)


def replayed_beamline(scan: RecordedScan, directory: Path | str, frames: FrameMode = "file") -> Beamline:
    """Make a beamline that gives the frames of a recorded scan again.

    Wherever the stage is sent, it reads back the nearest recorded position, and the detector
    gives that position's frame as it was recorded. Beam and monitor are constant, since what they
    did during the recording is in the frames already. Exposures take no time unless `exposure_s` is set.

    Parameters
    ----------
    scan : RecordedScan
        Frames, positions and geometry.
    directory : path
        Folder of the detector's files.
    frames : {'file', 'inline'}
        Where frames go.

    Raises
    ------
    ConfigError
        If `frames` is neither of the two.
    """
    source = ReplayedSource(scan)
    shutter = SimShutter(name="shutter")
    beam = Beam(is_open=lambda: shutter.is_open)
    first = scan.positions_m[0] * UM_PER_M
    stage = SimStage(
        name="stage",
        velocity_um_per_s=Config().simulation.velocity_m_per_s * UM_PER_M,
        limits_um=source.limits_um,
        start_um=(float(first[0]), float(first[1])),
        snap=source.snap,
    )
    detector = SimAreaDetector(
        name="diff",
        source=source,
        beam=beam,
        position_m=lambda: stage.position_m,
        directory=directory,
        frame_mode=frames,
    )
    return Beamline(detector, stage, SimMonitor(name="i0", beam=beam), shutter, None, None)
