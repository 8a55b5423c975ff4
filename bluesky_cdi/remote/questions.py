"""What was asked of another process and is not answered yet."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.messages import refuse


@dataclass(eq=False)
class Question:
    """A message and whoever waits for its answer.

    Attributes
    ----------
    message : list
        Name, number and values.
    answer : Future
    was_sent : bool
    """

    message: list[Any]
    answer: Future[Any]
    was_sent: bool = False


class Questions:
    """Keeps the open questions by their numbers; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Question] = {}
        self._n = 0

    def ask(self, name: str, *values: Any) -> Question:
        """Make a question: its name, then its values."""
        with self._lock:
            self._n += 1
            question = self._open[self._n] = Question([name, self._n, *values], Future())
        return question

    def answer(self, number: int, value: Any, error: WorkerError | None) -> None:
        """Answer a question, if it is still open.

        Parameters
        ----------
        number : int
            Its number.
        value : object
            The answer.
        error : WorkerError or None
            Why there is none.
        """
        with self._lock:
            question = self._open.pop(number, None)
        if question is None:
            return
        if error is not None:
            refuse(question.answer, error)
        elif question.answer.set_running_or_notify_cancel():
            question.answer.set_result(value)

    def refuse(self, error: WorkerError, keep: Collection[str] = ()) -> None:
        """Answer the open questions with an error.

        Parameters
        ----------
        error : WorkerError
            What those who asked get.
        keep : collection of str
            Names of questions that stay open: they can be asked again.
        """
        with self._lock:
            refused = [number for number, question in self._open.items() if question.message[0] not in keep]
            answers = [self._open.pop(number).answer for number in refused]
        for answer in answers:
            refuse(answer, error)

    def sent(self) -> list[Question]:
        """List the open questions that were sent, in their order."""
        with self._lock:
            return [question for question in self._open.values() if question.was_sent]
