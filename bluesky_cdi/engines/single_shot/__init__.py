"""Reconstruction from one frame: single-shot and Fresnel coherent diffraction imaging.

Updates are pure functions on a batch of waves, (s, N, N), one a random start; `reconstruct_single_shot`
runs a schedule of them and judges what comes out.
"""

from bluesky_cdi.engines.single_shot.constraints import MeasuredModulus, SampleConstraint, within_phase
from bluesky_cdi.engines.single_shot.error_reduction import error_reduction
from bluesky_cdi.engines.single_shot.hybrid_input_output import hybrid_input_output
from bluesky_cdi.engines.single_shot.raar import raar
from bluesky_cdi.engines.single_shot.reconstruct import (
    SingleShotResult,
    SingleShotSettings,
    Stage,
    expected_noise_r,
    reconstruct_single_shot,
)
from bluesky_cdi.engines.single_shot.support import (
    ShrinkWrap,
    autocorrelation_support,
    check_oversampling,
    shrink_wrap,
)

__all__ = [
    "MeasuredModulus",
    "SampleConstraint",
    "ShrinkWrap",
    "SingleShotResult",
    "SingleShotSettings",
    "Stage",
    "autocorrelation_support",
    "check_oversampling",
    "error_reduction",
    "expected_noise_r",
    "hybrid_input_output",
    "raar",
    "reconstruct_single_shot",
    "shrink_wrap",
    "within_phase",
]
