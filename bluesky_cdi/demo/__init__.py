"""The whole loop once: an adaptive scan, reconstructed live, kept in the catalog, compared and drawn."""

from bluesky_cdi.demo.report import Outcome
from bluesky_cdi.demo.run import run
from bluesky_cdi.demo.settings import Setting, Target, replayed, simulated

__all__ = ["Outcome", "Setting", "Target", "replayed", "run", "simulated"]
