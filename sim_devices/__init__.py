"""Simulated and replayed beamline devices, for classic ophyd."""

from bluesky_cdi.sim_devices._beam import Beam, Shot
from bluesky_cdi.sim_devices._beamline import Beamline, replayed_beamline, simulated_beamline
from bluesky_cdi.sim_devices._clock import Alarm, Clock, ManualClock, RealClock
from bluesky_cdi.sim_devices._detector import SimAreaDetector
from bluesky_cdi.sim_devices._errors import NotStagedError, OutOfRangeError
from bluesky_cdi.sim_devices._monitor import SimMonitor
from bluesky_cdi.sim_devices._replayed import RecordedScan, ReplayedSource
from bluesky_cdi.sim_devices._shutter import SimShutter
from bluesky_cdi.sim_devices._simulated import SimulatedSource, Truth
from bluesky_cdi.sim_devices._source import FrameSource
from bluesky_cdi.sim_devices._stage import SimAxis, SimStage

__all__ = [
    "Alarm",
    "Beam",
    "Beamline",
    "Clock",
    "FrameSource",
    "ManualClock",
    "NotStagedError",
    "OutOfRangeError",
    "RealClock",
    "RecordedScan",
    "ReplayedSource",
    "Shot",
    "SimAreaDetector",
    "SimAxis",
    "SimMonitor",
    "SimShutter",
    "SimStage",
    "SimulatedSource",
    "Truth",
    "replayed_beamline",
    "simulated_beamline",
]
