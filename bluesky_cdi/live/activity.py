"""What the worker's thread is at, and whether it takes longer than it may.

A computation gives signs of life: it begins something, or asks whether it is to come back. One that hangs gives none.
How long it is usually silent is learned from the run itself, so that a fast reconstruction that hangs is told of
within seconds, and a slow one is not. That it is ended is decided by much longer times, which a busy machine, a
kernel that is compiled and a full memory do not reach.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

# So many stretches of a kind are remembered: one that was slow once (a kernel was compiled) is forgotten after them.
REMEMBERED = 16
# A silence twice as long as any of these is not usual any more; nor is one that is so many seconds longer.
USUAL, GRACE_S = 2.0, 1.5
# Silences beyond the usual that end the process: in all, and the last part of it in which nothing was computed.
STUCK_S, IDLE_S = 120.0, 30.0
# Nothing is computed in a process that uses less of a processor than this; its beats alone take a tenth of it.
IDLE_SHARE = 0.02
# Two looks are at most so far apart; the time beyond was not this process's: it, or the machine, was stopped.
LOOK_MAX_S = 1.0


@dataclass(frozen=True)
class Silence:
    """What the worker's thread is at, without a sign of life for longer than is usual.

    Attributes
    ----------
    at : str
        What it is at.
    for_s : float
        How long it has been silent, seconds.
    usual_s : float
        How long it may be silent at that, seconds.
    left_s : float
        Time until it is taken for hung, seconds.
    """

    at: str
    for_s: float
    usual_s: float
    left_s: float


class Activity:
    """Signs of life of one thread, which another one looks at.

    Parameters
    ----------
    first_s : float
        How long the thread may be silent at what it has not done before, seconds.
    tune_s : float
        How much longer any silence may be, seconds: time to tune a network.
    clock, processor_s : callable
        Time, and processor time of this process, seconds.
    """

    def __init__(
        self,
        first_s: float,
        tune_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        processor_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._first_s, self._tune_s, self._clock, self._processor_s = first_s, tune_s, clock, processor_s
        # By what the thread was at: the longest silence of each of the last stretches.
        self._longest: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._lock = threading.Lock()
        self._at: str | None = None
        self._signs, self._last, self._silence = 0, clock(), 0.0
        # Of the looking thread.
        self._signs_before, self._looked = 0, clock()
        self._quiet_s = self._idle_s = 0.0
        self._used_before = processor_s()

    def begin(self, at: str | None) -> None:
        """Begin something; the thread's own.

        Parameters
        ----------
        at : str or None
            What; None: to wait for work.
        """
        self.sign()
        with self._lock:
            if self._at is not None:
                self._longest[self._at].append(self._silence)
            self._at, self._silence = at, 0.0

    def sign(self) -> None:
        """Give a sign of life; the thread's own."""
        now = self._clock()
        self._silence = max(self._silence, now - self._last)
        self._last = now
        self._signs += 1

    def watched(self, ask: Callable[[], bool]) -> Callable[[], bool]:
        """Give a question that is a sign of life each time that the thread asks it.

        Parameters
        ----------
        ask : callable
            The question: whether to come back from a computation.
        """

        def asked() -> bool:
            self.sign()
            return ask()

        return asked

    def look(self) -> Silence | None:
        """Look at the thread, about twice a second; what it is at if it has been silent for longer than is usual."""
        with self._lock:
            at = self._at
            known = None if at is None else self._longest.get(at)
            longest = max(known) if known else None
        now, used, signs = self._clock(), self._processor_s(), self._signs
        passed, spent = min(now - self._looked, LOOK_MAX_S), used - self._used_before
        self._looked, self._used_before = now, used
        if at is None or signs != self._signs_before:
            # It gave signs since the last look, the last of them at most that long ago.
            self._quiet_s = min(now - self._last, passed)
        else:
            self._quiet_s += passed
        self._signs_before = signs
        if at is None:
            return None
        usual_s = self._tune_s + (self._first_s if longest is None else USUAL * longest)
        beyond_s = self._quiet_s - usual_s
        # What was never done before may wait for something that is made: a kernel, in another process.
        is_idle = beyond_s > 0 and longest is not None and spent <= IDLE_SHARE * passed
        self._idle_s = self._idle_s + passed if is_idle else 0.0
        if beyond_s <= GRACE_S:
            return None
        left_s = STUCK_S - beyond_s
        return Silence(at, self._quiet_s, usual_s, min(left_s, IDLE_S - self._idle_s) if is_idle else left_s)
