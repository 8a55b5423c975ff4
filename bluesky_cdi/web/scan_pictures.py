"""What the frames of a scan say by themselves, painted where their light fell: images on the grid of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bluesky_cdi.errors import CatalogError
from bluesky_cdi.evaluation.scan_maps import ScanMapper, ScanMaps, integrated_phase
from bluesky_cdi.latents.painting import paint_frames
from bluesky_cdi.protocols import Estimate, FloatArray, Frame
from bluesky_cdi.recorded_run import RecordedRun
from bluesky_cdi.web.pictures import Colours, Picture, draw

# Of a map: unit and colour map.
SCAN_MAPS: Mapping[str, tuple[str, Colours]] = {
    "transmission": ("photons of a frame", "gray"),
    "dark_field": ("photons beside the direct beam", "magma"),
    "integrated_phase": ("rad", "gray"),
}
# Of all frames: more are not read while somebody waits, nor held beside all else.
PIXELS_MAX = 2**27


def sums_of_frames(run: RecordedRun) -> ScanMaps:
    """Sum the frames of a run, each by itself.

    Parameters
    ----------
    run : RecordedRun
        Its frames, as the reconstruction took them.
    """
    from bluesky_cdi.reconstruction.bad_pixels import valid_pixels

    scan = run.scan
    mapper = ScanMapper(scan.geometry, scan.mask, valid_pixels)
    flux = np.ones(len(scan)) if scan.flux is None else scan.flux
    for k, number in enumerate(run.numbers):
        mapper.add(Frame(number, scan.positions_m[k], scan.counts[k], flux=float(flux[k])))
    return mapper.maps()


def scan_picture(maps: ScanMaps, estimate: Estimate, name: str) -> Picture:
    """Draw a map of a scan on the grid of its result; between frames it is averaged, weighted with their light.

    Parameters
    ----------
    maps : ScanMaps
        Of the scan's frames.
    estimate : Estimate
        Says where their light fell.
    name : str
        One of `SCAN_MAPS`.

    Raises
    ------
    CatalogError
        If the frames don't tell: in the near field there are transmissions alone.
    """
    unit, colours = SCAN_MAPS[name]
    of_number = dict(zip(maps.seq_nums.tolist(), _values(maps, name), strict=True))
    values = np.array([of_number.get(number, np.nan) for number in estimate.frame_seq_nums.tolist()])
    known = np.isfinite(values)
    if not known.any():
        raise CatalogError(f"the frames of this scan tell no {name.replace('_', ' ')}: a few in the far field would")
    seen = replace(estimate, positions_m=estimate.positions_m[known])
    return draw(paint_frames(seen, values[known, np.newaxis])[..., 0], colours=colours, unit=unit)


def _values(maps: ScanMaps, name: str) -> FloatArray:
    if name == "transmission":
        return maps.photons
    if name == "dark_field":
        return maps.dark_photons
    slopes = maps.gradient_rad_per_m
    # What is the same in all is the place of the beam on the detector, not the sample.
    level = np.nanmean(slopes, axis=0) if np.isfinite(slopes).any() else 0.0
    return integrated_phase(maps.positions_m, slopes - level)
