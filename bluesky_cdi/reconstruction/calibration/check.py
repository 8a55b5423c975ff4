"""The predicted errors of a finished run, held against the halves of its frames."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.reconstruction.calibration.halves import HalfPixels
from bluesky_cdi.reconstruction.calibration.record import MOST, Calibrating, Check

logger = logging.getLogger(__name__)

# Factors on predicted errors from which on it is said that they were wrong.
SAID = 1.25


def checked_estimate(estimate: Estimate, calibration: Calibrating, pixels: HalfPixels | None) -> Estimate:
    """Change predicted errors by what the halves of the frames tell, and note that.

    Parameters
    ----------
    estimate : Estimate
        The final one of a run.
    calibration : Calibrating
        What made its errors true to size.
    pixels : HalfPixels or None
        What the halves show; None: nothing.

    Returns
    -------
    Estimate
        Its ``source["uncertainty"]["check"]`` says what was found.
    """
    said = dict(estimate.source["uncertainty"])
    check = None if pixels is None else calibration.checked(pixels)
    if check is None:
        said["check"] = {"says": "not checked: the frames have no two halves that show the same"}
        return replace(estimate, source={**estimate.source, "uncertainty": said})
    said["check"] = _told(check)
    if said["check"]["says"]:
        logger.info("predicted errors: %s", said["check"]["says"])
    phase = check.factors["phase"]
    return replace(
        estimate,
        std_amplitude=_times(estimate.std_amplitude, check.factors["amplitude"], MOST["amplitude"]),
        std_phase_rad=_times(estimate.std_phase_rad, phase, MOST["phase"]),
        frame_uncertainty=_times(estimate.frame_uncertainty, phase, MOST["phase"]),
        source={**estimate.source, "uncertainty": said},
    )


def _told(check: Check) -> Mapping[str, Any]:
    factor, share = check.factors["phase"], check.inside["phase"]["90"]
    says = ""
    if not 1 / SAID < factor < SAID:
        word = "widened" if factor > 1 else "narrowed"
        says = (
            f"{word} by {factor:.2f}: {100 * share:.0f} % of what two halves of the frames differ by were inside the "
            "intervals of 90 % that had been predicted of it"
        )
    return {"inside": check.inside, "factors": dict(check.factors), "says": says}


def _times(std: FloatArray, factor: float, most: float) -> FloatArray:
    """Multiply deviations; those that stand for what is not known stay."""
    return np.where(std < most, np.minimum(std * factor, most), std).astype(np.float32)
