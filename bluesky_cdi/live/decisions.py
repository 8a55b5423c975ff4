"""What a plan announced, and its questions until they are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.messages import Request, refuse, stopped
from bluesky_cdi.live.run_job import RunJob
from bluesky_cdi.protocols import Agent, Estimate, FloatArray


class Scan:
    """Answers a plan's questions from the estimates of its run.

    Parameters
    ----------
    uid : str
        Of the derived run that the scan's reconstruction is.
    agent : Agent or None
        None for a scan that asks for nothing.

    Attributes
    ----------
    job : RunJob or None
        Of its run, once that has started.
    """

    def __init__(self, uid: str, agent: Agent | None) -> None:
        self.uid = uid
        self.job: RunJob | None = None
        self._agent = agent
        self._error: WorkerError | None = None
        self._requests: list[Request] = []

    @property
    def is_adaptive(self) -> bool:
        """Whether it asks for positions."""
        return self._agent is not None

    @property
    def coverage_path_m(self) -> FloatArray:
        """Positions that cover the window evenly, shape (m, 2), metres; none for a scan that asks for nothing."""
        return np.empty((0, 2)) if self._agent is None else self._agent.coverage_path()

    def ask(self, request: Request) -> None:
        """Take a question; `serve` answers it."""
        if self._agent is None:
            refuse(request.answer, WorkerError("the scan that began is not adaptive: `begin` an adaptive area to ask"))
        elif self._error is not None:
            refuse(request.answer, self._error)
        else:
            self._requests.append(request)

    @property
    def can_decide(self) -> bool:
        """Whether there are questions whose frames are in."""
        return bool(self._due())

    def serve(self, points_of: Callable[[Estimate], Sequence[dict[str, Any]]]) -> None:
        """Answer the questions whose frames are in.

        Parameters
        ----------
        points_of : callable
            From an estimate to the points that the agent ingests.

        Raises
        ------
        Exception
            What the agent raises; that question is refused already.
        """
        for request in self._due():
            self._requests.remove(request)
            if self._agent is not None and request.answer.set_running_or_notify_cancel():
                self._decide(request, self._agent, points_of)

    def refuse(self, error: WorkerError) -> None:
        """Refuse the open questions."""
        requests, self._requests = self._requests, []
        for request in requests:
            refuse(request.answer, error)

    def fail(self, error: WorkerError) -> None:
        """Refuse the open questions and all that follow."""
        self._error = error
        self.refuse(error)

    def _due(self) -> list[Request]:
        ingested = 0 if self.job is None else self.job.ingested
        return [request for request in self._requests if request.after <= ingested]

    def _decide(
        self, request: Request, agent: Agent, points_of: Callable[[Estimate], Sequence[dict[str, Any]]]
    ) -> None:
        estimate = None if self.job is None else self.job.estimate
        try:
            started = time.perf_counter()
            if estimate is not None:
                agent.ingest(points_of(estimate))
            proposal = agent.propose(request.n)
            known = 0 if estimate is None else estimate.n_frames
            proposal = replace(proposal, n_ingested=known, decision_s=time.perf_counter() - started)
        except Exception as err:
            request.answer.set_exception(stopped(err))
            raise
        request.answer.set_result(proposal)
