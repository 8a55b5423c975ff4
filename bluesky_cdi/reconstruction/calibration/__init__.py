"""Predicted errors made true to size: a record of how they were wrong on simulated scans, applied to those of a run."""

from bluesky_cdi.reconstruction.calibration.check import checked_estimate, judged_again
from bluesky_cdi.reconstruction.calibration.conditions import Conditions, conditions_of
from bluesky_cdi.reconstruction.calibration.files import calibration_of
from bluesky_cdi.reconstruction.calibration.halves import HalfPixels, half_pixels
from bluesky_cdi.reconstruction.calibration.judge import Judge, final_judge, live_judge
from bluesky_cdi.reconstruction.calibration.record import LEVELS, Calibrating, Calibration, Uncalibrated

__all__ = [
    "LEVELS",
    "Calibrating",
    "Calibration",
    "Conditions",
    "HalfPixels",
    "Judge",
    "Uncalibrated",
    "calibration_of",
    "checked_estimate",
    "conditions_of",
    "final_judge",
    "half_pixels",
    "judged_again",
    "live_judge",
]
