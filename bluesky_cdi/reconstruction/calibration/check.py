"""The predicted errors of a finished run, held against the halves of its frames."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bluesky_cdi.evaluation import illuminated_mask
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
    said["check"] = _report(check)
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


def judged_again(
    estimate: Estimate,
    std_amplitude: FloatArray,
    std_phase_rad: FloatArray,
    frame_uncertainty: FloatArray,
    said: Mapping[str, Any],
) -> Estimate:
    """Give an estimate the errors that are predicted of it in the end, and note by how much they differ.

    Parameters
    ----------
    estimate : Estimate
        The final one of a run.
    std_amplitude, std_phase_rad : ndarray, shape (Y, X)
        The errors.
    frame_uncertainty : ndarray, shape (n,)
        Those of the phase under its frames.
    said : Mapping
        What is said of what predicts them.
    """
    parts = (("amplitude", estimate.std_amplitude, std_amplitude), ("phase", estimate.std_phase_rad, std_phase_rad))
    # Where light fell: at the border few photons make all errors large.
    lit = illuminated_mask(estimate.coverage)
    factors = {part: float(np.median(now[lit] / before[lit])) if lit.any() else 1.0 for part, before, now in parts}
    says = ""
    if not 1 / SAID < factors["phase"] < SAID:
        word, than = ("widened", "more") if factors["phase"] > 1 else ("narrowed", "less")
        says = (
            f"{word} to {factors['phase']:.2f} of what was predicted while frames came: two halves of the frames "
            f"differ by {than} than that"
        )
        logger.info("predicted errors: %s", says)
    uncertainty = {**said, "check": {"factors": factors, "says": says}}
    return replace(
        estimate,
        std_amplitude=std_amplitude,
        std_phase_rad=std_phase_rad,
        frame_uncertainty=frame_uncertainty,
        source={**estimate.source, "uncertainty": uncertainty},
    )


def _report(check: Check) -> Mapping[str, Any]:
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
