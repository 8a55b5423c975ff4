"""Consumers of Bluesky documents: frames for a reconstruction worker, and a live view of its estimates."""

from bluesky_cdi.callbacks._assembler import FrameAssembler
from bluesky_cdi.callbacks._live_view import LiveReconstruction
from bluesky_cdi.callbacks._sink import FrameSink

__all__ = ["FrameAssembler", "FrameSink", "LiveReconstruction"]
