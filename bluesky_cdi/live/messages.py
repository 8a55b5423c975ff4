"""What comes into the worker's inbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.protocols import Frame, Proposal, RunInfo, ScanArea, ScanTicket


@dataclass(frozen=True, eq=False)
class Begin:
    """A plan announces a scan; `uid` is that of the derived run that its reconstruction will be."""

    area: ScanArea
    uid: str
    answer: Future[ScanTicket]


@dataclass(frozen=True, eq=False)
class Request:
    """A plan asks for `n` positions, decided once frame number `after` is in the reconstruction."""

    n: int
    after: int
    answer: Future[Proposal]


@dataclass(frozen=True, eq=False)
class PointsAfter:
    """Somebody asks what the run's image says of each frame, once frame number `after` is in it or left out."""

    after: int
    answer: Future[Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, eq=False)
class Start:
    """A run's frames are about to come; `uid` is that of its derived run."""

    info: RunInfo
    uid: str


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A frame that the full inbox did not take, or that can't be used: then `error` tells why."""

    seq_num: int
    error: Exception | None = None


@dataclass(frozen=True, eq=False)
class End:
    """The run that started last has no more frames; `notes` are those of `RunInfo`, known by now."""

    exit_status: str
    reason: str
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fail:
    """A run's frames can't be used; `uid` is that of its derived run."""

    uid: str
    start: Mapping[str, Any]
    error: Exception


@dataclass(frozen=True, eq=False)
class Wait:
    """Somebody waits until no run is being reconstructed."""

    answer: Future[None]


@dataclass(frozen=True, eq=False)
class Close:
    """The worker is to end."""


Message = Begin | Request | PointsAfter | Start | Frame | LeftOut | End | Fail | Wait | Close


def refuse(answer: Future[Any], error: Exception) -> None:
    """Answer a question with an error, unless it is answered or withdrawn.

    Parameters
    ----------
    answer : Future
        The question's.
    error : Exception
        What whoever asked gets.
    """
    if not answer.done() and answer.set_running_or_notify_cancel():
        answer.set_exception(error)


def stopped(error: Exception) -> WorkerError:
    """Make the error that a plan sees from what went wrong in the worker."""
    if isinstance(error, WorkerError):
        return error
    what = f"{type(error).__name__}: {error}".rstrip(".")
    return WorkerError(f"the reconstruction worker stopped: {what}. The raw run is intact.")
