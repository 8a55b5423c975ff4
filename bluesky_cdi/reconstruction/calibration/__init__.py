"""Predicted errors made true to size: a record of how they were wrong on simulated scans, applied to those of a run."""

from bluesky_cdi.reconstruction.calibration.check import checked_estimate
from bluesky_cdi.reconstruction.calibration.conditions import Conditions, conditions_of
from bluesky_cdi.reconstruction.calibration.files import calibration_of
from bluesky_cdi.reconstruction.calibration.halves import HalfPixels, half_pixels
from bluesky_cdi.reconstruction.calibration.record import LEVELS, Calibrating, Calibration, Uncalibrated

__all__ = [
    "LEVELS",
    "Calibrating",
    "Calibration",
    "Conditions",
    "HalfPixels",
    "Uncalibrated",
    "calibration_of",
    "checked_estimate",
    "conditions_of",
    "half_pixels",
]
