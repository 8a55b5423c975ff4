"""The queue between those who send messages and the thread that handles them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from bluesky_cdi.live.messages import Begin, LeftOut, Message, PointsAfter, Request, Start, Wait, refuse
from bluesky_cdi.protocols import Frame

# Frames that may wait however large they are.
LEAST_FRAMES = 64


@dataclass(frozen=True)
class QueueLimits:
    """How many frames may wait; of a further one only the number is kept.

    Parameters
    ----------
    frames : int, optional
        Most of them.
    bytes : int
        Most memory that they may take, where `frames` is absent; `LEAST_FRAMES` may wait whatever they take.
    """

    frames: int | None = None
    bytes: int = 2**30

    def hold(self, frames: int, of_bytes: int) -> bool:
        """Tell whether another frame may wait beside those that do, which take `of_bytes`."""
        if self.frames is not None:
            return frames < self.frames
        return of_bytes < self.bytes or frames < LEAST_FRAMES


class Inbox:
    """Keeps messages in their order; frames that wait together are handed out together.

    Parameters
    ----------
    limits : QueueLimits
        Of the frames that may wait; a further one is replaced by the note that it was left out.

    Attributes
    ----------
    frames : int
        That wait now.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self.frames = self._bytes = self._newer_runs = 0
        self._closed_with: Exception | None = None
        self._waits = False

    def put(self, message: Message) -> bool:
        """Take a message.

        Returns
        -------
        bool
            Whether it was taken as it is: False for a frame too many. In a closed inbox questions are refused
            and nothing else has an effect.
        """
        with self._changed:
            fits = not isinstance(message, Frame) or self._limits.hold(self.frames, self._bytes)
            if self._closed_with is None:
                self._append(message if fits or not isinstance(message, Frame) else LeftOut(message.seq_num))
                return fits
            error = self._closed_with
        _refuse(message, error)
        return True

    def batch(self, wait_s: float | None = None) -> Iterator[list[Frame | LeftOut] | Message]:
        """Hand out what is here now, message by message, with frames that follow one another as one list.

        Frames that come after those while the message before is handled are in their list too.

        Parameters
        ----------
        wait_s : float, optional
            How long to wait for a message if there is none, seconds; for ever if absent.
        """
        with self._changed:
            if wait_s is None or wait_s > 0:
                self._waits = True
                self._changed.wait_for(lambda: self._messages, wait_s)
                self._waits = False
            left = len(self._messages)
        while left > 0:
            with self._changed:
                frames: list[Frame | LeftOut] = []
                while self._messages and isinstance(self._messages[0], (Frame, LeftOut)):
                    frames.append(self._pop())  # type: ignore[arg-type]
                item = frames or self._pop()
            left -= len(frames) or 1
            yield item

    @property
    def is_closed(self) -> bool:
        """Whether nothing is handled any more."""
        return self._closed_with is not None

    @property
    def is_waited_for(self) -> bool:
        """Whether whoever handles the messages has handled them all."""
        return self._waits and not self._messages

    def newer_run_waits(self) -> bool:
        """Tell whether a scan was announced, or a run started, that is not handed out yet."""
        return self._newer_runs > 0

    def close(self, error: Exception) -> None:
        """Refuse the questions that wait, and all that come from now on.

        Parameters
        ----------
        error : Exception
            What those who asked get.
        """
        with self._changed:
            self._closed_with = error
            left = list(self._messages)
            self._messages.clear()
        for message in left:
            _refuse(message, error)

    def _append(self, message: Message) -> None:
        self._messages.append(message)
        self._count(message, 1)
        self._changed.notify_all()

    def _pop(self) -> Message:
        message = self._messages.popleft()
        self._count(message, -1)
        return message

    def _count(self, message: Message, by: int) -> None:
        if isinstance(message, Frame):
            self.frames += by
            self._bytes += by * message.counts.nbytes
        self._newer_runs += by * isinstance(message, (Begin, Start))


def _refuse(message: Message, error: Exception) -> None:
    if isinstance(message, (Begin, Request, PointsAfter, Wait)):
        refuse(message.answer, error)
