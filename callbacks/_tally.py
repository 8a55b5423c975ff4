"""What of a run's frames is told in one line at its end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np


class FrameTally:
    """Counts what is unusual about the frames of one run.

    Attributes
    ----------
    stated : dtype or None
        Type of a pixel as announced.
    """

    def __init__(self) -> None:
        self.stated: np.dtype[Any] | None = None
        self._numbers: set[int] = set()
        self._counts: Counter[str] = Counter()

    def take(self, seq_num: int) -> None:
        """Count a frame that is handed on; its number may have come before."""
        if seq_num in self._numbers:
            self._counts["came again, and the last one counts"] += 1
        self._numbers.add(seq_num)

    def leave_out(self, why: str) -> None:
        """Count a frame that is not handed on."""
        self._counts[f"{why} and are left out"] += 1

    def look(self, found: np.dtype[Any]) -> None:
        """Count a frame of a file whose type is not the one that was announced; its counts are what they are."""
        if self.stated is not None and (self.stated.kind, self.stated.itemsize) != (found.kind, found.itemsize):
            self._counts[f"are {found} in their file, where the descriptor states {self.stated}"] += 1

    @property
    def summary(self) -> str:
        """All of it in one line; empty where nothing was unusual."""
        return "; ".join(f"{n} frame(s) {what}" for what, n in self._counts.items())
