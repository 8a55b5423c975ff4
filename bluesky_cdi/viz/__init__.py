"""Figures: an estimate at one moment, an object to hand on, the demo's comparison, reconstructions side by side.

Nothing here touches pyplot's global state, so a figure may be drawn in any thread; matplotlib is
loaded by the first figure, not by the import. Images are (Y, X), positions (y, x) in metres.
"""

from bluesky_cdi.viz.comparisons import show_comparison, show_images
from bluesky_cdi.viz.detector import show_detector
from bluesky_cdi.viz.estimates import figure_demo, show_estimate
from bluesky_cdi.viz.latents import show_latents
from bluesky_cdi.viz.masked_frames import MaskedFrame, show_masked_frames
from bluesky_cdi.viz.objects import show_object
from bluesky_cdi.viz.panels import save_figure
from bluesky_cdi.viz.probes import show_probes
from bluesky_cdi.viz.single_shot import show_single_shot
from bluesky_cdi.viz.thumbnail import thumbnail_png

__all__ = [
    "MaskedFrame",
    "figure_demo",
    "save_figure",
    "show_comparison",
    "show_detector",
    "show_estimate",
    "show_images",
    "show_latents",
    "show_masked_frames",
    "show_object",
    "show_probes",
    "show_single_shot",
    "thumbnail_png",
]
