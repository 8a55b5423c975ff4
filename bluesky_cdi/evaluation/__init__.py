"""How good an image and its predicted errors are.

Ptychography fixes an object up to a complex scale, and up to a shift and a linear phase ramp when the
probe is free too; `align` removes them before anything is compared. Arrays are (Y, X), pairs are (y, x).
"""

from bluesky_cdi.evaluation.alignment import (
    Aligned,
    align,
    crop_to,
    illuminated_mask,
    wrap_rad,
)
from bluesky_cdi.evaluation.calibration import (
    ause,
    expected_calibration_error,
    interval_coverage,
    interval_widths,
    rank_correlation,
    share_inside,
)
from bluesky_cdi.evaluation.comparison import Comparison, compare, compare_estimate
from bluesky_cdi.evaluation.frc import (
    FRC,
    SNR_HALF_BIT,
    SNR_ONE_BIT,
    fourier_ring_correlation,
    frc_threshold,
)
from bluesky_cdi.evaluation.image import (
    Dose,
    complex_nrmse,
    dose,
    phase_mae_rad,
    psnr,
    ssim,
)
from bluesky_cdi.evaluation.single_shot import (
    Resolved,
    conjugate_twin,
    phase_retrieval_transfer,
    resolve_ambiguities,
    transfer_resolution_px,
    translate,
)

__all__ = [
    "FRC",
    "SNR_HALF_BIT",
    "SNR_ONE_BIT",
    "Aligned",
    "Comparison",
    "Dose",
    "Resolved",
    "align",
    "ause",
    "compare",
    "compare_estimate",
    "complex_nrmse",
    "conjugate_twin",
    "crop_to",
    "dose",
    "expected_calibration_error",
    "fourier_ring_correlation",
    "frc_threshold",
    "illuminated_mask",
    "interval_coverage",
    "interval_widths",
    "phase_mae_rad",
    "phase_retrieval_transfer",
    "psnr",
    "rank_correlation",
    "resolve_ambiguities",
    "share_inside",
    "ssim",
    "transfer_resolution_px",
    "translate",
    "wrap_rad",
]
