"""Those who wait until the newest run has come far enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeGuard

from bluesky_cdi.live.messages import PointsAfter, Wait, refuse, stopped
from bluesky_cdi.live.run_job import RunJob
from bluesky_cdi.protocols import Estimate

PointsOf = Callable[[Estimate], Sequence[dict[str, Any]]]


class Waiting:
    """Keeps questions about the newest run until they can be answered."""

    def __init__(self) -> None:
        self._waits: list[Wait] = []
        self._questions: list[PointsAfter] = []

    def take(self, message: Wait | PointsAfter) -> None:
        """Take a question; `answer` answers it."""
        if isinstance(message, Wait):
            self._waits.append(message)
        else:
            self._questions.append(message)

    def answer(self, job: RunJob | None, error: Exception | None, points_of: PointsOf) -> None:
        """Answer what can be answered now.

        Parameters
        ----------
        job : RunJob or None
            The newest run's.
        error : Exception or None
            Why its reconstruction failed.
        points_of : callable
            From an estimate to the points of its frames.
        """
        if job is None or not job.is_open:
            waits, self._waits = self._waits, []
            for wait in waits:
                _give(wait.answer, None)
        questions, self._questions = self._questions, []
        for question in questions:
            if error is not None:
                refuse(question.answer, stopped(error))
            elif _is_measured(job) and question.after <= job.ingested:
                _give_points(question.answer, job.estimate, points_of)
            else:
                self._questions.append(question)

    def refuse(self, error: Exception) -> None:
        """Refuse all."""
        for wait in self._waits:
            refuse(wait.answer, error)
        for question in self._questions:
            refuse(question.answer, error)


def _is_measured(job: RunJob | None) -> TypeGuard[RunJob]:
    """Tell whether frames of a run may still come: nobody asks during a run for the estimate of one before."""
    return job is not None and job.is_open and not job.is_finishing


def _give_points(answer: Future[Any], estimate: Estimate | None, points_of: PointsOf) -> None:
    try:
        points = [] if estimate is None else points_of(estimate)
    except Exception as err:  # noqa: BLE001 (whatever it is, who asked must hear of it)
        refuse(answer, stopped(err))
    else:
        _give(answer, points)


def _give(answer: Future[Any], value: Any) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_result(value)
