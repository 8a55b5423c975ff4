"""Where drawings go: a window, a file, a film."""

from __future__ import annotations

import io
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.live_view.panels import NEXT_COLOUR
from bluesky_cdi.viz.objects import NOT_MEASURED
from bluesky_cdi.viz.panels import PATH_COLOUR, UNCOVERED
from bluesky_cdi.whole_file import whole_file, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A film in a GIF is made at its end, from pictures in memory: of a longer run every second one is dropped, again and
# again, and they are this wide at most.
GIF_PICTURES, GIF_WIDTH_PX = 200, 1000
# Its colours are those of the panels' maps, so many of each, and of what is drawn on them: a palette that is made of a
# picture's own colours bends the ends of their scales.
GIF_COLOURS = {"gray": 80, "viridis": 56, "magma": 64, "plasma": 24, "RdBu_r": 16, "twilight": 8}
GIF_MARKS = (PATH_COLOUR, NEXT_COLOUR, NOT_MEASURED, UNCOVERED)


class Window:
    """A window of Matplotlib's, in the thread that makes it; for the main thread.

    Parameters
    ----------
    size_in : tuple of float
        Its figure's size, inches.

    Raises
    ------
    ConfigError
        If Matplotlib has no window here.
    """

    def __init__(self, size_in: tuple[float, float]) -> None:
        import matplotlib
        import matplotlib.pyplot as plt
        from matplotlib.backends.registry import backend_registry

        backend = matplotlib.get_backend()
        toolkit: str | None = backend_registry.resolve_backend(backend)[1]  # type: ignore[no-untyped-call]
        if toolkit is None:
            raise ConfigError(
                f"a window needs a display and a toolkit that Matplotlib knows (Qt, Tk, GTK, wx); it has found none "
                f"and draws with {backend}. Install PyQt6 or Python's tkinter, or set live_view.window to never."
            )
        self.figure: Figure = plt.figure("bluesky_cdi: live view", figsize=size_in, dpi=_dpi(size_in))
        plt.show(block=False)

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it."""
        import matplotlib.pyplot as plt

        return plt.fignum_exists("bluesky_cdi: live view")

    @property
    def is_in_use(self) -> bool:
        """Whether somebody moves or enlarges a panel, whom a new drawing would disturb."""
        return bool(getattr(getattr(self.figure.canvas, "toolbar", None), "mode", ""))

    def show(self) -> None:
        """Show what the figure holds now."""
        self.figure.canvas.draw_idle()
        self.figure.canvas.flush_events()

    def attend(self, seconds: float) -> None:
        """Answer mouse and keys for a while."""
        self.figure.canvas.start_event_loop(seconds)


def _dpi(size_in: tuple[float, float]) -> float:
    """Choose a resolution at which a figure fits on a screen of 1600 pixels."""
    return min(100.0, 1600 / size_in[0])


class Film(Protocol):
    """Takes pictures of one run."""

    def add(self, figure: Figure, png: bytes) -> None:
        """Take a picture."""

    def end(self) -> None:
        """Write the film, in place of one of that name."""


def film(path: Path, fps: int) -> Film:
    """Begin a film.

    Parameters
    ----------
    path : path
        A `.gif`, or an `.mp4` where ffmpeg is installed.
    fps : int
        How fast its pictures follow each other when it is shown, per second.

    Raises
    ------
    ConfigError
        If there is no ffmpeg, or no such folder.
    """
    from matplotlib.animation import FFMpegWriter

    if not path.parent.is_dir():
        raise ConfigError(f"live_view.animation needs a folder that exists; there is no {path.parent}")
    if path.suffix.lower() == ".gif":
        return _Gif(path, fps)
    if not FFMpegWriter.isAvailable():
        raise ConfigError(
            f"an .mp4 needs ffmpeg, which is not found: install it, or set live_view.animation to "
            f"{str(path.with_suffix('.gif'))!r}"
        )
    return _Mp4(path, fps)


class _Mp4:
    def __init__(self, path: Path, fps: int) -> None:
        from matplotlib import rcParams
        from matplotlib.animation import FFMpegWriter

        self._path, self._unfinished = path, ExitStack()
        # The file's name ends otherwise until it is whole.
        self._writer = FFMpegWriter(fps=fps, extra_args=[*rcParams["animation.ffmpeg_args"], "-f", "mp4"])
        self._has_begun = False

    def add(self, figure: Figure, png: bytes) -> None:
        del png
        if not self._has_begun:
            with ExitStack() as opening:
                partial = opening.enter_context(whole_file(self._path))
                self._writer.setup(figure, partial, figure.dpi)
                self._unfinished = opening.pop_all()
            self._has_begun = True
        self._writer.grab_frame()

    def end(self) -> None:
        with self._unfinished:
            if self._has_begun:
                self._writer.finish()


@cache
def _palette() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image

    scales = [colormaps[name](np.linspace(0, 1, number))[:, :3] for name, number in GIF_COLOURS.items()]
    colours = np.concatenate([*scales, [to_rgb(mark) for mark in GIF_MARKS]])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * colours).astype(np.uint8).tobytes())
    return palette


class _Gif:
    def __init__(self, path: Path, fps: int) -> None:
        self._path, self._fps = path, fps
        self._pictures: list[Any] = []
        self._came, self._every = 0, 1

    def add(self, figure: Figure, png: bytes) -> None:
        from PIL import Image

        del figure
        if self._came % self._every == 0:
            if len(self._pictures) >= GIF_PICTURES:
                del self._pictures[1::2]
                self._every *= 2
            picture = Image.open(io.BytesIO(png)).convert("RGB")
            picture.thumbnail((GIF_WIDTH_PX, GIF_WIDTH_PX), Image.Resampling.LANCZOS)
            self._pictures.append(picture.quantize(palette=_palette(), dither=Image.Dither.NONE))
        self._came += 1

    def end(self) -> None:
        if self._pictures:
            first, *others = self._pictures
            file = io.BytesIO()
            pause_ms = round(1000 / self._fps)
            first.save(file, "GIF", save_all=True, append_images=others, duration=pause_ms, loop=0)
            write_whole(self._path, file.getvalue())
