"""Consumers of Bluesky documents: frames for a reconstruction worker."""

from bluesky_cdi.callbacks._assembler import FrameAssembler
from bluesky_cdi.callbacks._frame_files import Elsewhere, FrameFiles, Part, local_path, path_of
from bluesky_cdi.callbacks._places import stamped_places
from bluesky_cdi.callbacks._raw_rows import rows_of
from bluesky_cdi.callbacks._recorded import collect_frames
from bluesky_cdi.callbacks._shared_folders import SharedFolders
from bluesky_cdi.callbacks._sink import FrameSink
from bluesky_cdi.callbacks._stamped_run import position_stream
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys, frame_key_of
from bluesky_cdi.callbacks._value_check import ValueCheck

__all__ = [
    "Elsewhere",
    "FrameAssembler",
    "FrameFiles",
    "FrameSink",
    "KeyChoice",
    "Part",
    "SharedFolders",
    "StreamKeys",
    "ValueCheck",
    "collect_frames",
    "frame_key_of",
    "local_path",
    "path_of",
    "position_stream",
    "rows_of",
    "stamped_places",
]
