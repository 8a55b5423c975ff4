"""Consumers of Bluesky documents: frames for a reconstruction worker."""

from bluesky_cdi.callbacks._assembler import FrameAssembler
from bluesky_cdi.callbacks._recorded import collect_frames
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys
from bluesky_cdi.callbacks._value_check import ValueCheck

__all__ = [
    "FrameAssembler",
    "FrameSink",
    "KeyChoice",
    "StreamKeys",
    "ValueCheck",
    "collect_frames",
]
