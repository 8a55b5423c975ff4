"""What receives the frames that an assembler joins."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from bluesky_cdi.protocols import Frame, RunInfo


@runtime_checkable
class FrameSink(Protocol):
    """Takes the frames of one run at a time; none of its methods may block for long or raise."""

    def start_run(self, info: RunInfo) -> None:
        """Open a run: called once, when the shape of its frames is known, before the first of them."""

    def put(self, frame: Frame) -> None:
        """Take one frame; a `seq_num` that came before replaces the earlier frame."""

    def end_run(self, exit_status: str, reason: str) -> None:
        """Close the run: called once for each `start_run`, after a failure too.

        `exit_status` is the stop document's: ``success``, ``abort`` or ``fail``.
        """

    def fail(self, error: Exception) -> None:
        """Learn that the run can't be reconstructed: called at most once a run, and no frame follows.

        It may come before `start_run`. The scan itself goes on and is recorded.
        """
