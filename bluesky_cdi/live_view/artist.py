"""The process that draws a live view: scenes in, drawings out, one at a time, in its main thread.

Started by `LiveView`, with the number of an open socket as its argument. It ends when told, or when the other end is
gone. What comes and goes over the socket is packed by `bluesky_cdi.packing`:

========== ============================= ===========================================================
from       message                       meaning
========== ============================= ===========================================================
session    setup, settings, folder       first of all: `LiveViewConfig` as plain values; the session's folder
session    window                        open a window with the next scene
session    scene, fields, wants picture  draw this; fields are those of `pack_scene`
session    close                         write the film, and end
artist     drawn, picture, complaints    it is drawn: the next may come; PNG or None; what went wrong
========== ============================= ===========================================================
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bluesky_cdi.config import LiveViewConfig
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.live_view.drawing import Drawing
from bluesky_cdi.live_view.outputs import Film, Window, film
from bluesky_cdi.live_view.scene import Scene, unpack_scene
from bluesky_cdi.live_view.words import said, title_of
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.whole_file import write_whole

ATTEND_S = 0.05
NICE = 10
FILM_FPS = 5


class Artist:
    """Draws scenes, and hands the drawings to where they are wanted.

    What goes wrong with a drawing or a place is told once, and the rest goes on.

    Parameters
    ----------
    settings : LiveViewConfig
        What is drawn, and where it goes.
    folder : path
        Where files without a folder of their own go.
    make_window : callable
        Makes a window of a size in inches.
    """

    def __init__(
        self, settings: LiveViewConfig, folder: Path, make_window: Callable[[tuple[float, float]], Window] = Window
    ) -> None:
        from matplotlib.figure import Figure

        self._settings, self._folder, self._make_window = settings, folder, make_window
        self._drawing = Drawing(settings)
        self._figure = Figure(figsize=self._drawing.size_in(), dpi=100)
        self._scene = Scene()
        self.window: Window | None = None
        self._opens = False
        self._film: tuple[str, Film] | None = None
        self._said: set[str] = set()

    def warm_up(self) -> None:
        """Load what the first drawing needs, which takes longer than the drawing."""
        for name in ("scipy.spatial", "scipy.sparse.linalg", "scipy.sparse.csgraph"):
            import_module(name)
        self._render(Scene(), [], [])

    def open(self) -> None:
        """Open a window with the next scene, unless there is one."""
        self._opens = self.window is None or not self.window.is_open

    def draw(self, fields: Mapping[str, Any], *, wants_picture: bool = False) -> tuple[bytes | None, list[str]]:
        """Draw a scene.

        Parameters
        ----------
        fields : Mapping
            As `pack_scene` gives them.
        wants_picture : bool
            Whether the drawing is given back.

        Returns
        -------
        bytes or None
            A PNG, if it is wanted.
        list of str
            What went wrong for the first time.
        """
        complaints: list[str] = []
        scene = self._scene = unpack_scene(fields, self._scene)
        self._attempt(complaints, self._show_window, scene, complaints)
        is_of_run = scene.sight is not None
        wants_file = self._settings.file is not None and is_of_run
        wants_film = self._settings.animation is not None and is_of_run
        png: list[bytes] = []
        if wants_picture or wants_file or wants_film:
            self._attempt(complaints, self._render, scene, png, complaints)
        for data in png:
            if self._settings.file is not None and wants_file:
                self._attempt(complaints, write_whole, self._folder / self._settings.file.expanduser(), data)
            if wants_film:
                self._attempt(complaints, self._take_picture, scene, data)
        return (png[0] if png and wants_picture else None), complaints

    def end(self) -> list[str]:
        """Write the film of the last run; what goes wrong with that."""
        complaints: list[str] = []
        (_, last), self._film = self._film or ("", None), None
        if last is not None:
            self._attempt(complaints, last.end)
        return complaints

    def _show_window(self, scene: Scene, complaints: list[str]) -> None:
        if self._opens:
            self._opens = False
            self.window = self._make_window(self._drawing.size_in())
        if self.window is not None and self.window.is_open and not self.window.is_in_use:
            self._tell(complaints, *self._drawing.draw(self.window.figure, scene))
            self.window.show()

    def _render(self, scene: Scene, into: list[bytes], complaints: list[str]) -> None:
        self._tell(complaints, *self._drawing.draw(self._figure, scene))
        file = io.BytesIO()
        notes = {"Title": title_of(scene), "Description": "\n".join(said(scene))}
        self._figure.savefig(file, format="png", metadata=notes)
        into.append(file.getvalue())

    def _take_picture(self, scene: Scene, png: bytes) -> None:
        if scene.sight is None or self._settings.animation is None:
            return
        if self._film is None or self._film[0] != scene.sight.uid:
            before, self._film = self._film, None
            if before is not None:
                before[1].end()
            name = str(self._settings.animation.expanduser()).replace("{scan_id}", str(scene.sight.scan_id))
            self._film = scene.sight.uid, film(self._folder / name, FILM_FPS)
        self._film[1].add(self._figure, png)

    def _attempt(self, complaints: list[str], step: Callable[..., None], *args: Any) -> None:
        """Do a step; tell of a fault once."""
        try:
            step(*args)
        except Exception as err:  # noqa: BLE001 - a picture is never worth more than the rest
            self._tell(complaints, str(err) if isinstance(err, BlueskyCDIError) else f"{type(err).__name__}: {err}")

    def _tell(self, complaints: list[str], *said: str) -> None:
        """Note what is said for the first time."""
        new = [each for each in said if each not in self._said]
        self._said.update(new)
        complaints += new


def serve(connection: Connection, make: Callable[[LiveViewConfig, Path], Artist] = Artist) -> None:
    """Draw what a session sends until it says to close, or is gone.

    Parameters
    ----------
    connection : Connection
        To the session.
    make : callable
        Makes who draws.
    """
    _, settings, folder = unpack(connection.recv_bytes())
    artist = make(LiveViewConfig.model_validate(settings), Path(folder))
    artist.warm_up()
    try:
        while True:
            while artist.window is not None and artist.window.is_open and not connection.poll():
                artist.window.attend(ATTEND_S)
            name, *values = unpack(connection.recv_bytes())
            if name == "window":
                artist.open()
            elif name == "scene":
                picture, complaints = artist.draw(values[0], wants_picture=values[1])
                connection.send_bytes(pack(["drawn", picture, complaints]))
            elif name == "close":
                connection.send_bytes(pack(["drawn", None, artist.end()]))
                return
    except (EOFError, OSError):
        # The session is gone; what was drawn of its last run is kept.
        artist.end()


def main() -> None:
    """Draw for the session at the other end of the socket that the first argument numbers."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # What measures and reconstructs comes first where cores are few.
    os.nice(NICE)
    serve(Connection(int(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
