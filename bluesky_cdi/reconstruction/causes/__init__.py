"""Cheap tests of what makes frames unlike their model: probe, places, detector, beam, object."""

from bluesky_cdi.reconstruction.causes.finding import CAUSES, Finding
from bluesky_cdi.reconstruction.causes.watch import CauseWatch

__all__ = ["CAUSES", "CauseWatch", "Finding"]
