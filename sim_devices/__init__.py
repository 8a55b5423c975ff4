"""Simulated and replayed beamline devices, for classic ophyd."""

from bluesky_cdi.sim_devices._beam import Beam, Shot
from bluesky_cdi.sim_devices._beamline import Beamline, replayed_beamline, simulated_beamline
from bluesky_cdi.sim_devices._clock import Alarm, Clock, ManualClock, RealClock
from bluesky_cdi.sim_devices._detector import SimAreaDetector
from bluesky_cdi.sim_devices._errors import NotStagedError, OutOfRangeError
from bluesky_cdi.sim_devices._fly_detector import SimFlyDetector
from bluesky_cdi.sim_devices._monitor import SimMonitor
from bluesky_cdi.sim_devices._replayed import RecordedScan, ReplayedSource
from bluesky_cdi.sim_devices._scanner import SimScanner
from bluesky_cdi.sim_devices._shutter import SimShutter
from bluesky_cdi.sim_devices._simulated import SimulatedSource, Truth
from bluesky_cdi.sim_devices._source import FrameSource, MovingSource
from bluesky_cdi.sim_devices._stage import SimAxis, SimStage
from bluesky_cdi.sim_devices._ticker import TriggerLine

__all__ = [
    "Alarm",
    "Beam",
    "Beamline",
    "Clock",
    "FrameSource",
    "ManualClock",
    "MovingSource",
    "NotStagedError",
    "OutOfRangeError",
    "RealClock",
    "RecordedScan",
    "ReplayedSource",
    "Shot",
    "SimAreaDetector",
    "SimAxis",
    "SimFlyDetector",
    "SimMonitor",
    "SimScanner",
    "SimShutter",
    "SimStage",
    "SimulatedSource",
    "TriggerLine",
    "Truth",
    "replayed_beamline",
    "simulated_beamline",
]
