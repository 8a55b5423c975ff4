"""How good an image and its predicted errors are.

Ptychography fixes an object up to a complex scale, and up to a shift and a linear phase ramp when the
probe is free too; `align` removes them before anything is compared. Arrays are (Y, X), pairs are (y, x).
"""

from bluesky_cdi.metrics.alignment import (
    ILLUMINATED_SHARE,
    Aligned,
    align,
    crop_to,
    illuminated,
    wrap_rad,
)
from bluesky_cdi.metrics.calibration import (
    ause,
    expected_calibration_error,
    interval_coverage,
    rank_correlation,
)
from bluesky_cdi.metrics.frc import (
    FRC,
    SNR_HALF_BIT,
    SNR_ONE_BIT,
    fourier_ring_correlation,
    frc_threshold,
)
from bluesky_cdi.metrics.image import (
    Dose,
    compare,
    complex_nrmse,
    dose,
    phase_mae_rad,
    psnr,
    ssim,
)
from bluesky_cdi.metrics.single_shot import (
    Resolved,
    conjugate_twin,
    phase_retrieval_transfer,
    resolve_ambiguities,
    translate,
)

__all__ = [
    "FRC",
    "ILLUMINATED_SHARE",
    "SNR_HALF_BIT",
    "SNR_ONE_BIT",
    "Aligned",
    "Dose",
    "Resolved",
    "align",
    "ause",
    "compare",
    "complex_nrmse",
    "conjugate_twin",
    "crop_to",
    "dose",
    "expected_calibration_error",
    "fourier_ring_correlation",
    "frc_threshold",
    "illuminated",
    "interval_coverage",
    "phase_mae_rad",
    "phase_retrieval_transfer",
    "psnr",
    "rank_correlation",
    "resolve_ambiguities",
    "ssim",
    "translate",
    "wrap_rad",
]
