"""What receives the frames that an assembler joins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from bluesky_cdi.protocols import Frame, RunInfo


@runtime_checkable
class FrameSink(Protocol):
    """Takes the frames of one run at a time; none of its methods may block for long or raise."""

    def start_run(self, info: RunInfo) -> None:
        """Open a run: called once, when the shape of its frames is known, before the first of them."""

    def put(self, frame: Frame) -> None:
        """Take one frame; a `seq_num` that came before replaces the earlier frame."""

    def leave_out(self, seq_num: int, error: Exception) -> None:
        """Learn that a frame can't be used; the run goes on.

        Parameters
        ----------
        seq_num : int
            The event's number.
        error : Exception
            Why: its file or its values.
        """

    def end_run(self, exit_status: str, reason: str, notes: Mapping[str, Any]) -> None:
        """Close the run: called once for each `start_run`, after a failure too.

        Parameters
        ----------
        exit_status : {'success', 'abort', 'fail'}
            The stop document's.
        reason : str
            The stop document's; empty if it has none.
        notes : Mapping
            What the documents tell of the run as a whole, as `bluesky_cdi.protocols.RunInfo.notes`.
        """

    def fail(self, error: Exception, start: Mapping[str, Any]) -> None:
        """Learn that a run can't be reconstructed: called at most once a run, and no frame of it follows.

        It may come before `start_run`, and for a run beside the one that is fed. The scan itself goes on and is
        recorded.

        Parameters
        ----------
        error : Exception
            Why.
        start : Mapping
            The run's start document.
        """
