"""What a session gives to whoever sits at its prompt: a greeting, a bar of progress, errors in one line."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bluesky_cdi import __version__
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.log import configure_logging, keep_traceback, log_file
from bluesky_cdi.signals import ipython_shell

if TYPE_CHECKING:
    from bluesky import RunEngine

    from bluesky_cdi.session import Session


logger = logging.getLogger(__name__)


def at_prompt(session: Session, commands: Mapping[str, str], *, title: str) -> None:
    """Prepare a session for somebody at a prompt; the last thing that a profile does.

    A bar counts the points of each run, or shows moves outside of one, where standard error is a terminal. Errors are
    told as by `errors_in_one_line`. In IPython a greeting says what runs and where results are. On leaving, the session
    is closed.

    Parameters
    ----------
    session : Session
        The one that is open.
    commands : Mapping
        What to type next, and what it does.
    title : str
        Name of the profile or beamline.
    """
    errors_in_one_line()
    if sys.stderr.isatty():
        show_progress(session.RE, session.config.documents.stream)
    atexit.register(_close, session)
    # IPython's own banner came before the profile's files; a script has nobody to greet.
    if (shell := ipython_shell()) is not None and getattr(shell.parent, "interact", False):
        sys.stdout.write(f"\n{greeting(session, commands, title)}\n")


def errors_in_one_line() -> None:
    """Tell errors of this package and interruptions of the RunEngine without their traceback.

    That goes to the log file (and in IPython to ``%tb``); so does what bluesky logs of a run that it aborts. It is for
    an application to choose: profiles call it, and a script does once its session is open (libraries of a catalog in
    this process bring a hook of their own). A script that such an error ends still exits with 1.
    """
    from bluesky.utils import RunEngineInterrupted

    configure_logging(None, "bluesky")
    kinds = (BlueskyCDIError, RunEngineInterrupted)
    if (shell := ipython_shell()) is not None:
        shell.set_custom_exc(kinds, _told_in_one_line)
        return
    others = sys.excepthook

    def told(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
        if isinstance(err, kinds):
            _tell(err)
        else:
            others(kind, err, trace)

    sys.excepthook = told


def greeting(session: Session, commands: Mapping[str, str], title: str) -> str:
    """Say what runs, where results are, and what to type next.

    Parameters
    ----------
    session : Session
        The one that is open.
    commands : Mapping
        What to type next, and what it does.
    title : str
        Name of the profile or beamline.
    """
    from bluesky_cdi.io import Preprocessing

    config = session.config
    settings, side = config.geometry, config.geometry.frame_px
    pixel_m = Preprocessing.stated_geometry(config).pixel_m
    network = f" with {config.reconstructor.weights}" if config.reconstructor.name == "pinn" else ""
    where = session.directory if config.catalog.uri is None else session.catalog.uri
    rows = {
        "beam": f"{settings.energy_ev:g} eV, detector at {settings.distance_m:g} m",
        "frames": f"{side} x {side} pixels of {settings.detector_pixel_m * 1e6:g} um: {pixel_m * 1e9:.3g} nm a pixel",
        "live": f"{config.reconstructor.name}{network}, {config.agent.name} agent",
        "view": _view_said(session),
        "results": str(where),
        "log": str(log_file()),
    }
    width = max(map(len, commands), default=0)
    return "\n".join(
        [
            f"bluesky_cdi {__version__}, {title}",
            *(f"  {name:<8} {value}" for name, value in rows.items()),
            "Next:",
            *(f"  {command:<{width}}  # {what}" for command, what in commands.items()),
            "",
        ]
    )


def _view_said(session: Session) -> str:
    """Say where the live view is shown."""
    from bluesky_cdi.live_view.view import why_no_window

    settings = session.config.live_view
    window = "no window" if settings.window == "never" else "a window, with the first frame"
    if settings.window == "auto" and (why := why_no_window()):
        window = f"no window: {why}"
    return ", ".join([window, *(str(path) for path in (settings.file, settings.animation) if path is not None)])


def show_progress(engine: RunEngine, stream: str = "primary") -> None:
    """Show a bar for each run of a RunEngine, and for moves outside of runs.

    Parameters
    ----------
    engine : RunEngine
        The one whose runs and moves are shown.
    stream : str
        The stream whose events are counted.
    """
    progress = Progress(stream)
    engine.subscribe(progress)
    engine.waiting_hook = progress.waiting


class Progress:
    """Counts the points of a run in a bar; a callback.

    Parameters
    ----------
    stream : str
        The stream whose events are counted.
    """

    def __init__(self, stream: str = "primary") -> None:
        from bluesky.utils import ProgressBarManager

        self._stream = stream
        self._bar: Any = None
        self._counted: set[str] = set()
        self._is_broken = False
        self._moves = ProgressBarManager()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document. A bar that can't be drawn is told once in the log; the scan goes on without it."""
        self._attempt(self._take, name, doc)

    def waiting(self, statuses: Any) -> None:
        """Show what the RunEngine waits for outside of runs; with None it waits no more.

        Within a run the bar of points takes the line, and a bar for each wait would cost time at each point.
        """
        self._attempt(self._wait, statuses)

    def _attempt(self, show: Callable[..., None], *arguments: Any) -> None:
        if self._is_broken:
            return
        try:
            show(*arguments)
        # What is drawn for people must never end a scan, whatever a plan's metadata or a terminal do to it.
        except Exception:
            self._is_broken = True
            logger.exception("progress can't be shown, and is not any more")

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "start":
            self._begin(doc)
        elif self._bar is None:
            return
        elif name == "descriptor" and doc["name"] == self._stream:
            self._counted.add(doc["uid"])
        elif name == "event" and doc["descriptor"] in self._counted:
            self._bar.update()
        elif name == "event_page" and doc["descriptor"] in self._counted:
            self._bar.update(len(doc["seq_num"]))
        elif name == "stop":
            self._bar.close()
            self._bar = None

    def _wait(self, statuses: Any) -> None:
        # A run may begin or end between the two calls of one wait.
        if (self._bar is None) if statuses is not None else (self._moves.pbar is not None):
            self._moves(statuses)

    def _begin(self, start: Mapping[str, Any]) -> None:
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._counted.clear()
        stated = start.get("num_points", start.get("budget"))
        # Anybody may put anything under these names.
        total = stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else None
        label = f"scan {start.get('scan_id', '')} {start.get('plan_name', '')}".strip()
        self._bar = tqdm(total=total, desc=label, unit="point", leave=True)


def _told_in_one_line(
    shell: Any, kind: type[BaseException], err: BaseException, trace: Any, tb_offset: int | None = None
) -> Any:
    """Tell an error as IPython's hook for it; what it returns is what ``%tb`` shows."""
    del tb_offset
    _tell(err)
    return shell.InteractiveTB.structured_traceback(kind, err, trace)


def _tell(err: BaseException) -> None:
    if isinstance(err, BlueskyCDIError):
        sys.stderr.write(f"{type(err).__name__}: {err}\n({keep_traceback(err)})\n")
    else:
        # What RE.resume(), RE.abort() and their like do.
        sys.stderr.write(f"{err}\n")


def _close(session: Session) -> None:
    """Close the session on leaving, and say why that takes a moment."""
    if sys.stderr.isatty():
        sys.stderr.write("closing the session: the last image and the catalog are finished first ...\n")
    session.close()
