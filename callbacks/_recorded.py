"""The frames of a run that is recorded already."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bluesky_cdi.callbacks._assembler import FrameAssembler
from bluesky_cdi.callbacks._checks import BoolImage
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import DocumentError
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.protocols import Frame, RunInfo

logger = logging.getLogger(__name__)


class _Kept:
    """A sink that keeps one run; of a `seq_num` that comes twice the last one counts."""

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.frames: dict[int, Frame] = {}
        self.left_out: dict[int, Exception] = {}
        self.error: Exception | None = None
        self.notes: Mapping[str, Any] = {}

    def start_run(self, info: RunInfo) -> None:
        self.info = info

    def put(self, frame: Frame) -> None:
        self.frames[frame.seq_num] = frame

    def leave_out(self, seq_num: int, error: Exception) -> None:
        self.left_out[seq_num] = error

    def end_run(self, exit_status: str, reason: str, notes: Mapping[str, Any]) -> None:
        self.notes = notes

    def fail(self, error: Exception, start: Mapping[str, Any]) -> None:
        self.error = error


def collect_frames(
    documents: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    settings: DocumentsConfig | None = None,
    mask: BoolImage | None = None,
    preprocessing: Preprocessing | None = None,
) -> tuple[RunInfo, list[Frame]]:
    """Collect the frames of one run from its documents; those that can't be used are left out, which is logged.

    Parameters
    ----------
    documents : iterable of (name, document)
        From start to stop.
    settings : DocumentsConfig, optional
        What of the documents makes a frame.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels of the detector.
    preprocessing : Preprocessing, optional
        What is done to the frames; None: nothing.

    Returns
    -------
    info : RunInfo
        With the `notes` of a run that has ended.
    frames : list of Frame
        In the order of their numbers.

    Raises
    ------
    BlueskyCDIError
        If the documents or most of the frames can't be used.
    """
    kept = _Kept()
    settings = settings or DocumentsConfig()
    assembler = FrameAssembler(kept, **settings.model_dump(), mask=mask, every_run=True, preprocessing=preprocessing)
    for name, document in documents:
        assembler(name, document)
    if kept.error is not None:
        raise kept.error
    if kept.left_out:
        first = min(kept.left_out)
        logger.warning(
            "%d frame(s) of run %s can't be used and are left out; the first is %d: %s",
            len(kept.left_out),
            None if kept.info is None else kept.info.scan_id,
            first,
            kept.left_out[first],
        )
    if len(kept.left_out) > len(kept.frames):
        raise kept.left_out[first]
    if kept.info is None or not kept.frames:
        raise DocumentError(
            f"the run has no frames with their positions in the stream {settings.stream!r}: there is nothing to "
            "reconstruct"
        )
    return replace(kept.info, notes=kept.notes), [kept.frames[number] for number in sorted(kept.frames)]
