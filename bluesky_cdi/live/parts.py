"""What the worker is made of: who reconstructs, decides, records and listens, and how long things may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from bluesky_cdi.protocols import Agent, Estimate, Reconstructor, RunInfo, ScanArea


class Recorder(Protocol):
    """Keeps the estimates of one run; `bluesky_cdi.catalog.ResultPublisher` is one."""

    def publish(self, estimate: Estimate) -> None:
        """Keep an update."""

    def close(self, estimate: Estimate | None, exit_status: Any, reason: str) -> None:
        """Keep the final estimate and end."""


class Checkpoint(Protocol):
    """Keeps what one run's reconstruction needs to go on later, in another process."""

    def save(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep a state of `Reconstructor.checkpoint` in place of the one before."""

    def remove(self) -> None:
        """Forget the state: the reconstruction is finished."""


@dataclass(frozen=True, eq=False)
class WorkerParts:
    """What the worker is made of.

    Attributes
    ----------
    make_reconstructor : callable
        From a run to its reconstructor.
    make_agent : callable
        From the area of a scan to its agent.
    make_recorder : callable
        From a run and the uid of its derived run to the recorder.
    points_of : callable
        From an estimate to the points that the agent ingests.
    make_checkpoint : callable, optional
        From a run and the uid of its derived run to what keeps its state; without it, no state is kept.
    listeners : sequence of callable
        Called with each estimate, in the worker's thread: a live view, a history. One that raises hears no more
        of that run.
    """

    make_reconstructor: Callable[[RunInfo], Reconstructor]
    make_agent: Callable[[ScanArea], Agent]
    make_recorder: Callable[[RunInfo, str], Recorder]
    points_of: Callable[[Estimate], Sequence[dict[str, Any]]]
    make_checkpoint: Callable[[RunInfo, str], Checkpoint] | None = None
    listeners: Sequence[Callable[[Estimate], None]] = ()


@dataclass(frozen=True)
class Pace:
    """How long the worker may work on what.

    Attributes
    ----------
    step_s : float
        Time for a step, seconds.
    final_steps : int
        Most steps after a run's last frame: frames that were left out are read again, for at most `step_s`, and then
        one of the last refinements is done. 0: neither; a quick image is followed by a full one in any case.
    final_s : float
        Time for all of them, seconds; before them, as long at most for what is looked for beside the image.
    checkpoint_s : float
        Time between two saved states, seconds.
    tune_s : float
        Time that a step may take beside to tune the network, seconds.
    latency_s : float
        How long a frame may wait for an image with it, seconds, before images are made quickly; see `Tempo`.
    """

    step_s: float = 5.0
    final_steps: int = 10
    final_s: float = 60.0
    checkpoint_s: float = 60.0
    tune_s: float = 0.0
    latency_s: float = math.inf
