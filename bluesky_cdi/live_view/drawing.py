"""The figure of a live view: its panels side by side, on axes that are laid out without being tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bluesky_cdi.config import LiveViewConfig
from bluesky_cdi.live_view.kept import Kept
from bluesky_cdi.live_view.panels import MAPS, OF_FRAMES, PANELS
from bluesky_cdi.live_view.scene import Scene
from bluesky_cdi.live_view.words import title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches of a panel with its scale and its labels, and of the title above all.
PANEL_IN, HEAD_IN = (3.6, 3.0), 0.45
# Text of a panel stays in it.
FONT_PT = 8
BEFORE_AN_IMAGE = ("pattern", "words")


class Drawing:
    """Draws scenes into a figure, one after the other; of one thread.

    Parameters
    ----------
    settings : LiveViewConfig
        What is drawn.
    """

    def __init__(self, settings: LiveViewConfig) -> None:
        self._settings, self._kept = settings, Kept(settings)

    def draw(self, fig: Figure, scene: Scene) -> list[str]:
        """Draw a scene in place of what the figure held; a panel that can't be drawn is left empty.

        Parameters
        ----------
        fig : Figure
            Of any size; `size_in` says which has room for all panels.
        scene : Scene
            What is to be seen.

        Returns
        -------
        list of str
            Why panels can't be drawn.
        """
        from matplotlib import rc_context

        faults: list[str] = []
        names = self.panels(scene)
        columns, rows = _grid(len(names))
        width, height = fig.get_size_inches()
        with rc_context({"font.size": FONT_PT, "axes.titlesize": FONT_PT + 1}):
            fig.clear()
            grid = fig.add_gridspec(
                rows, columns, left=0.7 / width, right=1 - 0.75 / width, bottom=0.45 / height,
                top=1 - (HEAD_IN + 0.25) / height, wspace=0.62, hspace=0.3,
            )  # fmt: skip
            for k, name in enumerate(names):
                ax = fig.add_subplot(grid[k // columns, k % columns])
                try:
                    PANELS[name](ax, scene, self._kept)
                except Exception as err:  # noqa: BLE001 - the other panels are worth seeing
                    faults.append(f"{name} can't be drawn: {type(err).__name__}: {err}")
                    ax.clear()
                    ax.set_axis_off()
            fig.suptitle(title_of(scene), fontsize=FONT_PT + 4, y=1 - 0.1 / height, va="top")
        return faults

    def panels(self, scene: Scene) -> tuple[str, ...]:
        """Name what is drawn of a scene, in order."""
        settings, sight = self._settings, scene.sight
        if sight is None and scene.estimate is None:
            return BEFORE_AN_IMAGE[1:]
        if sight is None:
            return tuple(name for name in settings.panels if name not in OF_FRAMES)
        # In the near field a frame is a shadow: it has no direct beam, and its middle does not tell a slope.
        maps = MAPS if sight.geometry["propagation"] == "far" else MAPS[:1]
        if scene.estimate is None:
            return (*(() if settings.scan_maps == "never" else maps), *BEFORE_AN_IMAGE)
        return (*settings.panels, *(maps if settings.scan_maps == "always" else ()))

    def size_in(self) -> tuple[float, float]:
        """Give the size of a figure that has room for all panels at any time, inches (width, height)."""
        kept = len(MAPS) if self._settings.scan_maps == "always" else 0
        sizes = [_grid(len(self._settings.panels) + kept), _grid(len(MAPS) + len(BEFORE_AN_IMAGE))]
        columns, rows = (max(sides) for sides in zip(*sizes, strict=True))
        return columns * PANEL_IN[0] + 0.6, rows * PANEL_IN[1] + HEAD_IN


def _grid(panels: int) -> tuple[int, int]:
    """Choose columns and rows."""
    columns = 5 if panels > 8 else 4 if panels > 3 else max(panels, 1)
    return columns, max(1, math.ceil(panels / columns))
