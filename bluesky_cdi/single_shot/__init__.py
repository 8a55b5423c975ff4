"""Reconstruction from one frame: single-shot and Fresnel coherent diffraction imaging.

Updates are pure functions on a batch of exit waves, (s, N, N), one a random start; `reconstruct_single_shot`
runs a schedule of them and judges what comes out.
"""

from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint, within_phase
from bluesky_cdi.single_shot.detector import PreparedFrame, check_counts, flagged_pixels, prepare_frame, square_window
from bluesky_cdi.single_shot.error_reduction import error_reduction
from bluesky_cdi.single_shot.hybrid_input_output import hybrid_input_output
from bluesky_cdi.single_shot.optics import scaled_illumination, single_shot_propagator
from bluesky_cdi.single_shot.raar import raar
from bluesky_cdi.single_shot.reconstruct import reconstruct_single_shot
from bluesky_cdi.single_shot.settings import UPDATES, SingleShotSettings, Stage, check_settings
from bluesky_cdi.single_shot.support import (
    ShrinkWrap,
    autocorrelation_support,
    check_oversampling,
    shrink_wrap,
)
from bluesky_cdi.single_shot.verdicts import SingleShotResult, expected_noise_r

__all__ = [
    "UPDATES",
    "MeasuredModulus",
    "PreparedFrame",
    "SampleConstraint",
    "ShrinkWrap",
    "SingleShotResult",
    "SingleShotSettings",
    "Stage",
    "autocorrelation_support",
    "check_counts",
    "check_oversampling",
    "check_settings",
    "error_reduction",
    "expected_noise_r",
    "flagged_pixels",
    "hybrid_input_output",
    "prepare_frame",
    "raar",
    "reconstruct_single_shot",
    "scaled_illumination",
    "shrink_wrap",
    "single_shot_propagator",
    "square_window",
    "within_phase",
]
