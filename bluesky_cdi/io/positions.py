"""Whether recorded positions can be in metres."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import FloatArray

logger = logging.getLogger(__name__)

# Neighbours farther apart than one field of view share no pixel. That is legal (isolated particles, one frame
# each); a hundred is not plausible, and micrometres taken for metres give 1e4 to 1e6.
MOST_FIELDS = 100.0
# Different positions that all lie within this part of a pixel are no scan: a stage doesn't resolve it.
LEAST_PIXELS = 1e-4
# A distance in millimetres or an energy in keV makes the sample pixel a thousand times too large: steps of less than
# this part of it, in a scan of no more than so many of them.
LEAST_STEP_PIXELS, SMALL_SCAN_PIXELS = 0.1, 10.0


def check_unit(positions_m: FloatArray, geometry: Geometry) -> None:
    """Refuse positions that can't be in metres, and warn of frames that do not overlap, or are hardly apart.

    The baseline is the field of view of one frame, ``N * pixel``, and how far the nearest other
    position is, in the median. Within one field of view frames overlap, as ptychography needs.
    Micrometres and millimetres in place of metres multiply the distance by 1e6 and 1e3: the
    first is always found, the second where the step is at least a tenth of the field of view.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    geometry : Geometry
        Of the scan; its frame and sample pixel make the field of view.

    Raises
    ------
    GeometryError
        If the median distance exceeds 100 fields of view, or positions that differ do so by less than 1e-4 pixel.
    """
    distinct = np.unique(positions_m, axis=0)
    if len(distinct) < 2:
        return
    extent = float(np.ptp(distinct, axis=0).max())
    if extent < LEAST_PIXELS * geometry.pixel_m:
        raise GeometryError(
            f"positions must be in metres; all {len(distinct)} different ones lie within {extent:.3g} m, which is "
            f"{extent / geometry.pixel_m:.3g} of a sample pixel. Were metres taken for pixels?"
        )
    field_m = geometry.frame_px * geometry.pixel_m
    spacing = median_spacing(distinct)
    if not spacing <= MOST_FIELDS * field_m:
        raise GeometryError(
            f"positions must be in metres; neighbours are {spacing:.3g} m apart (median), {spacing / field_m:.3g} "
            f"times the field of view of a frame ({field_m:.3g} m). They look like micrometres or millimetres, or "
            "energy, distance and pixel of the file are wrong."
        )
    if spacing < LEAST_STEP_PIXELS * geometry.pixel_m and extent < SMALL_SCAN_PIXELS * geometry.pixel_m:
        logger.warning(
            "neighbouring positions are %.3g m apart (median), %.2g of a sample pixel (%.3g m). Unless all frames were "
            "taken at one place: are positions, distance and detector pixel in metres, and the energy in eV (not keV)?",
            spacing,
            spacing / geometry.pixel_m,
            geometry.pixel_m,
        )
    if spacing > field_m:
        logger.warning(
            "neighbouring positions are %.3g m apart (median) and a frame sees %.3g m: the frames don't overlap. "
            "Are positions, distance and detector pixel in metres, and the energy in eV?",
            spacing,
            field_m,
        )


def median_spacing(distinct: np.ndarray[Any, Any]) -> float:
    """Compute the median distance of two or more different positions, shape (n, 2), to their nearest neighbours."""
    from scipy.spatial import KDTree

    distance, _ = KDTree(distinct).query(distinct, k=2)
    return float(np.median(distance[:, 1]))
