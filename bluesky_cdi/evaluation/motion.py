"""What a fly scan's documents tell of the whole run: how far the probe moved during exposures, and dropped frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bluesky_cdi.protocols import Estimate

MOTION, DROPPED = "motion", "dropped_frames"
RUN_NOTES = (MOTION, DROPPED)
# Way of the probe during an exposure, sample pixels, from which the image is doubtful: images of the simulated beamline
# are about as good as those of step scans up to 2 pixels, a tenth worse at 4 (docs/fly-scans.md says too how far they
# differ from scan to scan).
BLUR_DOUBTFUL_PX = 4.0
# From here on it is remarked: one pixel takes a third off the contrast of the finest structures, sinc(1/2) = 0.64.
BLUR_REMARKED_PX = 1.0
# Positions between samples that are known no better are doubtful, sample pixels.
POSITIONS_DOUBTFUL_PX = 1.0


def with_run_notes(estimate: Estimate, notes: Mapping[str, Any]) -> Estimate:
    """Note in an estimate's `source` what is known of its run as a whole.

    Parameters
    ----------
    estimate : Estimate
        The final one of the run.
    notes : Mapping
        As of `RunInfo.notes`.
    """
    known = {name: notes[name] for name in RUN_NOTES if name in notes}
    return replace(estimate, source={**estimate.source, **known}) if known else estimate


def motion_doubts(source: Mapping[str, Any], pixel_m: float) -> Iterator[str]:
    """Say what of the motion speaks against an image.

    Parameters
    ----------
    source : Mapping
        Of its estimate.
    pixel_m : float
        Sample pixel, metres.
    """
    if (moved := _pixels(source, "median_m", pixel_m)) > BLUR_DOUBTFUL_PX:
        yield f"{_blur_said(moved)}: a shorter exposure or a slower motion sharpens it"
    if (error := _pixels(source, "position_error_m", pixel_m)) > POSITIONS_DOUBTFUL_PX:
        yield f"positions between samples are known to {error:.2g} pixels only: sample them more often"


def motion_remarks(source: Mapping[str, Any], pixel_m: float) -> Iterator[str]:
    """Say what else is to be known of a fly scan.

    Parameters
    ----------
    source : Mapping
        Of its estimate.
    pixel_m : float
        Sample pixel, metres.
    """
    if BLUR_REMARKED_PX < (moved := _pixels(source, "median_m", pixel_m)) <= BLUR_DOUBTFUL_PX:
        yield _blur_said(moved)
    if count := source.get(DROPPED, 0):
        yield f"{count} frame(s) were dropped by the detector, by its own count"


def _blur_said(moved_px: float) -> str:
    return f"the probe moved by {moved_px:.2g} pixels during an exposure, which blurs along the motion"


def _pixels(source: Mapping[str, Any], name: str, pixel_m: float) -> float:
    return float(source.get(MOTION, {}).get(name, 0.0)) / pixel_m
