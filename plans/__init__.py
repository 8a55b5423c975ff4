"""Bluesky plans for scanning diffraction: fixed patterns, fly scans, and scans steered by the reconstruction."""

from bluesky_cdi.plans._adaptive import adaptive_ptycho
from bluesky_cdi.plans._fly import ptycho_fly
from bluesky_cdi.plans._patterns import ptycho_raster, ptycho_spiral

__all__ = ["adaptive_ptycho", "ptycho_fly", "ptycho_raster", "ptycho_spiral"]
