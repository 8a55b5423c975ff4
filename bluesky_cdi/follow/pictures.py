"""Images of runs as PNG files, drawn without a window."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bluesky_cdi.protocols import Estimate

SIZE_INCHES = (11, 9)
# Shortest time between two drawings of a run that goes on, seconds.
LIVE_S = 2.0


class Pictures:
    """Draws into a folder; may be called from any thread, and is done with one picture at a time.

    Parameters
    ----------
    folder : path
        Is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()

    def draw(self, estimate: Estimate, name: str) -> Path:
        """Draw an estimate; its file, which is whole at any time.

        Parameters
        ----------
        estimate : Estimate
            Of a run.
        name : str
            Of the file, without its ending; what is no letter, digit, ``-`` or ``_`` in it becomes ``_``.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from bluesky_cdi.viz import show_estimate

        # Numbers of runs come from elsewhere, and need not be numbers.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        path, unfinished = self._folder / f"{name}.png", self._folder / f".{name}.png"
        with self._lock:
            figure = Figure(figsize=SIZE_INCHES)
            FigureCanvasAgg(figure)
            show_estimate(estimate, fig=figure)
            figure.savefig(unfinished, format="png")
            unfinished.replace(path)
        return path

    def live(self, lane: int) -> Callable[[Estimate], None]:
        """Give a listener that keeps drawing the newest estimate of a lane, as ``live.png``, ``live-2.png``...

        Parameters
        ----------
        lane : int
            Its number, from 0.
        """
        name, drawn_s = "live" if lane == 0 else f"live-{lane + 1}", -LIVE_S

        def listener(estimate: Estimate) -> None:
            nonlocal drawn_s
            if time.monotonic() - drawn_s >= LIVE_S:
                self.draw(estimate, name)
                drawn_s = time.monotonic()

        return listener
