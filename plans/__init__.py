"""Bluesky plans for scanning diffraction: fixed patterns, and scans steered by the reconstruction."""

from bluesky_cdi.plans._adaptive import adaptive_ptycho
from bluesky_cdi.plans._patterns import ptycho_raster, ptycho_spiral

__all__ = ["adaptive_ptycho", "ptycho_raster", "ptycho_spiral"]
