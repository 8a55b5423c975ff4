"""A session's live view: it looks at what there is to see, and has a process of its own draw it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bluesky_cdi.catalog.history import DECISIONS, proposals_of
from bluesky_cdi.config import LiveViewConfig
from bluesky_cdi.live_view.scene import Scene, pack_scene
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.protocols import RAW_UID, Estimate, Proposal
from bluesky_cdi.signals import ipython_shell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# How long the last drawing may take when the session closes, seconds.
CLOSE_S = 20.0
LOOK_S = 0.05
# A sight that was asked for so long ago may be older than the newest, seconds.
FRESH_S = 0.2
# After a drawing nothing is drawn for so many times what that took: half of a core is enough for pictures.
REST = 1.0
# Images over which it is told how fast frames come into them.
RATE_IMAGES = 6
# Matplotlib's backends that have a window.
WITH_WINDOW = (
    "tkagg", "tkcairo", "qtagg", "qtcairo", "qt5agg", "qt5cairo", "gtk3agg", "gtk3cairo", "gtk4agg", "gtk4cairo",
    "wx", "wxagg", "wxcairo", "macosx",
)  # fmt: skip
BACKEND = "MPLBACKEND"


class Live(Protocol):
    """What is looked at: a session's worker."""

    @property
    def latest(self) -> Estimate | None:
        """The newest image."""

    @property
    def look(self) -> Callable[[int], Future[Sight]] | None:
        """Gives the next sight after one of a number."""


class LiveView:
    """Shows a session's runs while they go on: in a window, in notebooks, in a file, as a film.

    Nothing is drawn in this process, and the thread that looks at the reconstruction is this object's own: neither
    the RunEngine nor the worker waits for it. While a drawing is made, images and frames that come are passed over;
    the next drawing shows the newest.

    In a notebook, a cell that ends with it shows it, and what is shown there is renewed in place.

    Parameters
    ----------
    settings : LiveViewConfig
        Where it is shown, how often, and what is in it.
    folder : path
        Where files without a folder of their own go.
    live : callable
        Gives the worker, or None as long as there is none.

    Attributes
    ----------
    is_shown : bool
        Whether it is shown anywhere, as far as is known.
    """

    def __init__(self, settings: LiveViewConfig, folder: Path, live: Callable[[], Live | None]) -> None:
        self._settings, self._folder, self._live = settings, folder, live
        self._changed = threading.Condition()
        self._closing = self._opens = self._is_wanted = False
        self._thread: threading.Thread | None = None
        self._alone: Estimate | None = None
        self._proposal: Proposal | None = None
        self._sight: Sight | None = None
        self._asked: Future[Sight] | None = None
        self._asked_s = math.inf
        self._images: deque[tuple[float, str, int]] = deque(maxlen=RATE_IMAGES)
        self._decisions = ""
        self._handles: list[Any] = []
        self._picture: bytes | None = None

    @property
    def is_shown(self) -> bool:
        """Whether somebody wants to see it."""
        return self._thread is not None

    def begin(self) -> None:
        """Show it where the settings say so; where it has no window for want of a display, that is logged."""
        window = self._settings.window
        if window == "auto" and (why := why_no_window()):
            logger.info("the live view has no window: %s", why)
        elif window != "never":
            self.open()
        if self._settings.file is not None or self._settings.animation is not None:
            self._start()

    def open(self) -> None:
        """Open its window, with the first frame that comes; again, if it was closed."""
        with self._changed:
            self._opens = True
            self._changed.notify_all()
        self._start()

    def show(self, estimate: Estimate) -> Figure:
        """Show an image, of the catalog perhaps, wherever this is shown, until another run begins.

        Parameters
        ----------
        estimate : Estimate
            The image.

        Returns
        -------
        Figure
            The same as a figure of its own, which notebooks draw by themselves.
        """
        from bluesky_cdi.viz import show_estimate

        with self._changed:
            self._alone = estimate
        return show_estimate(estimate)

    def document(self, name: str, doc: Mapping[str, Any]) -> None:
        """Learn of a run's beginning, and of what the agent decides; a callback of the RunEngine that never raises.

        Parameters
        ----------
        name : str
            Kind of the document.
        doc : Mapping
            The document.
        """
        if name == "start":
            self._alone = self._proposal = None
            if self._is_wanted:
                # Again, if what draws has died.
                self._start()
        elif name == "descriptor" and doc.get("name") == DECISIONS:
            self._decisions = doc["uid"]
        elif name == "event" and doc.get("descriptor") == self._decisions:
            with contextlib.suppress(LookupError, TypeError, ValueError):  # somebody else's stream of that name
                self._proposal = proposals_of({key: [value] for key, value in doc["data"].items()})[0]
        elif name == "stop":
            self._proposal = None

    def close(self) -> None:
        """Draw what came last, and end the process that draws."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        first = {"text/plain": "the live view begins with the first frame"}
        shown = Image(data=self._picture) if self._picture else first
        handle = display(shown, display_id=True, raw=self._picture is None)
        if handle is not None:
            self._handles.append(handle)
        self._start()

    def _start(self) -> None:
        with self._changed:
            self._is_wanted = True
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="bluesky_cdi-live-view", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        artist, sent, period_s = None, Scene(), 1 / self._settings.most_fps
        try:
            artist = ArtistProcess(self._settings, self._folder)
            while True:
                began_s, is_last = time.monotonic(), self._closing
                if self._opens:
                    self._opens = False
                    artist.send(["window"])
                scene = self._scene()
                if not _same(scene, sent) and (scene.sight is not None or scene.estimate is not None):
                    message = ["scene", pack_scene(scene, sent), bool(self._handles)]
                    self._take(artist.ask(message, lambda: self._closing))
                    sent = scene
                if is_last:
                    return
                with self._changed:
                    took_s = time.monotonic() - began_s
                    left_s = max(LOOK_S, period_s - took_s, REST * took_s)
                    self._changed.wait_for(lambda: self._closing, left_s)
        except (EOFError, OSError) as err:
            logger.warning("the live view has ended: %s (the scan goes on; session.live_view.open() begins anew)", err)
            self._thread = None
        except Exception:
            logger.exception("the live view has ended (the scan goes on; session.live_view.open() begins anew)")
            self._thread = None
        finally:
            if artist is not None:
                artist.close()

    def _scene(self) -> Scene:
        """Look at what there is to see now."""
        live = self._live()
        if self._alone is not None or live is None:
            return Scene(estimate=self._alone)
        self._look(live)
        estimate, sight = live.latest, self._sight
        if sight is None and live.look is None:
            return Scene(estimate=estimate)
        if sight is None or (estimate is not None and estimate.source.get(RAW_UID) != sight.uid):
            # That of the run before, whose frames are gone.
            estimate = None
        if self._closing and sight is not None and estimate is not None and sight.received < estimate.n_frames:
            # The worker has ended since: of the frames that are in its last image, no newer sight comes any more.
            sight = sight.outdated(estimate.n_frames)
        proposal = self._proposal
        where: dict[str, Any] = (
            {} if proposal is None else {"proposed_m": proposal.positions_m, "reason": proposal.reason}
        )
        return Scene(sight, estimate, imaged_hz=self._imaged_hz(estimate), **where)

    def _look(self, live: Live) -> None:
        """Take the sight that was asked for, if it has come, and ask for the next."""
        if self._asked is not None and not self._asked.done():
            return
        asked_s = self._asked_s
        self._take_sight(live)
        if self._asked is not None and time.monotonic() > asked_s + FRESH_S:
            # What came was from before the last drawing: there may be a newer one, which is there at once then.
            wait([self._asked], FRESH_S)
            if self._asked.done():
                self._take_sight(live)

    def _take_sight(self, live: Live) -> None:
        known = 0 if self._sight is None else self._sight.number
        if self._asked is not None:
            try:
                self._sight = self._asked.result()
                known = self._sight.number
            except Exception as err:  # noqa: BLE001 - of a process that is gone; the next one counts from 1
                logger.debug("the frames can't be looked at: %s", err)
                known = 0
        self._asked_s = time.monotonic()
        self._asked = None if live.look is None or self._closing else live.look(known)

    def _imaged_hz(self, estimate: Estimate | None) -> float:
        """Tell how fast frames have come into the last images."""
        if estimate is None:
            return math.nan
        now = (time.monotonic(), str(estimate.source.get(RAW_UID)), estimate.n_frames)
        if self._images and self._images[-1][1] != now[1]:
            self._images.clear()
        if not self._images or self._images[-1][2] != now[2]:
            self._images.append(now)
        (first_s, _, first), (last_s, _, last) = self._images[0], self._images[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else math.nan

    def _take(self, drawn: tuple[bytes | None, list[str]]) -> None:
        """Renew what notebooks show, and tell what went wrong."""
        picture, complaints = drawn
        for complaint in complaints:
            logger.warning("the live view: %s", complaint)
        if picture is not None:
            from IPython.display import Image

            self._picture = picture
            for handle in self._handles:
                handle.update(Image(data=picture))


class ArtistProcess:
    """The process that draws, and the socket to it; of one thread.

    Parameters
    ----------
    settings : LiveViewConfig
        What it draws.
    folder : path
        Where its files go.
    """

    def __init__(self, settings: LiveViewConfig, folder: Path) -> None:
        self._connection, theirs = Pipe()
        # What a notebook's kernel has there has no meaning in another process.
        kept = {name: value for name, value in os.environ.items() if name != BACKEND or value.lower() in WITH_WINDOW}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bluesky_cdi.live_view.artist", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=kept,
                # Ctrl-C is the session's.
                start_new_session=True,
            )
        self.send(["setup", settings.model_dump(mode="json"), str(folder)])

    def send(self, message: list[Any]) -> None:
        """Send a message.

        Raises
        ------
        OSError
            If the process is gone.
        """
        self._connection.send_bytes(pack(message))

    def ask(self, message: list[Any], is_closing: Callable[[], bool]) -> tuple[bytes | None, list[str]]:
        """Send a message and wait until what it says is drawn.

        Parameters
        ----------
        message : list
            A scene.
        is_closing : callable
            Whether to wait `CLOSE_S` seconds at most from now on.

        Raises
        ------
        EOFError, OSError
            If the process is gone, or does not answer in that time.
        """
        self.send(message)
        return _answer(self._connection, is_closing)

    def close(self) -> None:
        """End the process, after its film is written."""
        with contextlib.suppress(OSError, EOFError, subprocess.TimeoutExpired):
            for complaint in self.ask(["close"], lambda: True)[1]:
                logger.warning("the live view: %s", complaint)
            self._process.wait(CLOSE_S)
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _answer(connection: Connection, is_closing: Callable[[], bool]) -> tuple[bytes | None, list[str]]:
    limit_s = math.inf
    while not connection.poll(LOOK_S):
        if is_closing():
            limit_s = min(limit_s, time.monotonic() + CLOSE_S)
        if time.monotonic() > limit_s:
            raise OSError(f"the last drawing was not there after {CLOSE_S:g} s")
    _, picture, complaints = unpack(connection.recv_bytes())
    return picture, complaints


def _same(scene: Scene, before: Scene) -> bool:
    return all(getattr(scene, name) is getattr(before, name) for name in ("sight", "estimate", "proposed_m"))


def why_no_window(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> str:
    """Say why there should be no window here; empty where there may be one.

    Parameters
    ----------
    environment : Mapping, optional
        Environment variables; those of this process by default.
    platform : str
        As `sys.platform`.
    """
    known = os.environ if environment is None else environment
    if getattr(ipython_shell(), "kernel", None) is not None:
        return "this is a notebook, where session.live_view at the end of a cell shows it"
    if (backend := known.get(BACKEND, "").lower()) and backend not in WITH_WINDOW:
        return f"{BACKEND} is {backend}, which has none"
    if platform not in ("darwin", "win32") and not (known.get("DISPLAY") or known.get("WAYLAND_DISPLAY")):
        return "there is no display (live_view.file keeps a picture)"
    return ""
