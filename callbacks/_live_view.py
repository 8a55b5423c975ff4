"""The reconstruction as it grows, in a figure."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from bluesky.callbacks.core import make_callback_safe
from bluesky.callbacks.mpl_plotting import QtAwareCallback

from bluesky_cdi.protocols import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class LiveReconstruction:
    """Shows each estimate: amplitude, phase, phase uncertainty, and coverage with the scan path.

    Give it to the worker as a listener; it may be called from any thread. Under a Qt backend
    the drawing happens in the main thread, which Bluesky keeps alive during a run. Under a
    backend without a window (Agg) it happens in the calling thread. Under another window
    toolkit an estimate that comes from another thread is kept until `draw` is called from the
    main thread. A fault while drawing is logged and never reaches the caller.

    Make it in the main thread.

    Parameters
    ----------
    min_interval_s : float
        Shortest time between two drawings, seconds. What comes sooner is kept, not drawn.
    figure : Figure, optional
        Where to draw; without it, a new figure at the first estimate.

    Attributes
    ----------
    figure : Figure or None
        What is drawn into; None before the first estimate.
    """

    def __init__(self, *, min_interval_s: float = 0.5, figure: Figure | None = None) -> None:
        self.figure = figure
        self._min_interval_s = min_interval_s
        self._lock = threading.Lock()
        self._undrawn: Estimate | None = None
        self._drawn_at = -float("inf")
        self._painter = _Painter(self)

    def __call__(self, estimate: Estimate) -> None:
        """Take an estimate; draw it unless the last drawing is too recent."""
        with self._lock:
            self._undrawn = estimate
        if time.monotonic() - self._drawn_at >= self._min_interval_s and not _belongs_to_another_thread():
            self.draw()

    def draw(self) -> None:
        """Draw the newest estimate now, if it isn't drawn yet: for the end of a run."""
        with self._lock:
            estimate, self._undrawn = self._undrawn, None
        if estimate is not None:
            self._drawn_at = time.monotonic()
            self._painter("estimate", {"estimate": estimate})


class _Painter(QtAwareCallback):  # type: ignore[misc]
    """Draws; `QtAwareCallback` brings the call to the thread of the windows."""

    def __init__(self, view: LiveReconstruction) -> None:
        super().__init__()
        self._view = view

    @make_callback_safe(logger=logger)  # type: ignore[untyped-decorator]
    def estimate(self, doc: dict[str, Any]) -> None:
        from bluesky_cdi.viz import show_estimate

        if self._view.figure is None:
            self._view.figure = _new_figure()
        figure = self._view.figure
        show_estimate(doc["estimate"], fig=figure)
        figure.canvas.draw_idle()


def _new_figure() -> Figure:
    if _toolkit() is None:
        from matplotlib.figure import Figure

        return Figure(figsize=(11, 9))
    import matplotlib.pyplot as plt

    return plt.figure("reconstruction", figsize=(11, 9))


def _toolkit() -> str | None:
    """Name the window toolkit of matplotlib's backend; None where it has no windows."""
    import matplotlib
    from matplotlib.backends.registry import backend_registry

    toolkit: str | None = backend_registry.resolve_backend(matplotlib.get_backend())[1]  # type: ignore[no-untyped-call]
    return toolkit


def _belongs_to_another_thread() -> bool:
    """Tell whether drawing here would touch windows that only the main thread may touch."""
    return threading.current_thread() is not threading.main_thread() and _toolkit() not in (None, "qt")
