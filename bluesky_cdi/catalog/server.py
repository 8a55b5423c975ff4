"""A Tiled server inside this process, for a session that has no other catalog.

Event tables go to SQLite behind a one-slot connection pool. Tiled's other embedded store, DuckDB,
shares one connection among all server threads and crashes when runs are read while written.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import secrets
import shlex
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import OK, HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from bluesky_cdi.catalog.database import create_database
from bluesky_cdi.catalog.guard import Guard, Receive, Scope, Send
from bluesky_cdi.catalog.relocation import relocate
from bluesky_cdi.errors import CatalogError

logger = logging.getLogger(__name__)

HOST, EVERYWHERE = "127.0.0.1", "0.0.0.0"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
# Whoever looks whether somebody has a folder has it for a moment; a session that begins waits for that, seconds.
CLAIM_S, LOOK_S = 0.5, 0.1
# How long somebody who has a folder may take until its server is there, for those who want to look at it, seconds.
BEGIN_S = 20.0
# So long the server keeps what is written in memory, for those who are subscribed to updates: frames in events too,
# up to a thousand batches of them.
UPDATES_S = 10
_SERVING = threading.Lock()
# Makes an ASGI application from the server's address, which carries the key.
MakePage = Callable[[str], Any]
# In the catalog's folder: who has it, and where that one's server is.
LOCK, ADDRESS = "session.lock", "server.address"


@contextlib.contextmanager
def serve(
    directory: Path | str,
    *,
    readable: Sequence[Path | str] = (),
    port: int = 0,
    api_key: str | None = None,
    claim_s: float = CLAIM_S,
    host: str = HOST,
    read_only: bool = False,
    public: bool = False,
    page: MakePage | None = None,
) -> Iterator[str]:
    """Serve the catalog kept in a folder for as long as the context lasts.

    The server listens, if not told otherwise, on this machine only, in a daemon thread: it never keeps the interpreter
    alive. Serving the same folder again later finds everything written before.

    Parameters
    ----------
    directory : path
        Folder of the catalog; created when absent, for its owner alone (the mode of one that exists stays). Data
        files below it can be read.
    readable : sequence of path
        Further folders whose files can be read: those of detectors and results elsewhere.
    port : int
        TCP port; 0 takes a free one.
    api_key : str, optional
        The single user's key, letters and digits; a random one by default.
    claim_s : float
        How long to wait for another session that has the folder, seconds.
    host : str
        Address of this machine at which it listens; ``0.0.0.0``: all of them.
    read_only : bool
        Refuse whatever would change the catalog.
    public : bool
        Let those read who have no key.
    page : callable, optional
        Makes the ASGI application that answers at ``/`` and ``/page/``, from the address with the key.

    Yields
    ------
    str
        Address with the key, for `open_catalog` or ``tiled.client.from_uri``.

    Raises
    ------
    CatalogError
        If the folder or the key can't be used, another session serves the folder, the port is
        taken, or the server is not healthy within a minute.
    """
    root = _usable(Path(directory))
    key = _checked_key(api_key or secrets.token_hex(16))
    with _claimed(root, claim_s), _alone(), _bound(host, port) as listener:
        # What a killed session has left would be taken for this one's.
        (root / ADDRESS).unlink(missing_ok=True)
        relocate(root)
        address = _address(host, listener)
        uri = f"{address}/api/v1?api_key={key}"
        app = _build_app(root, readable, key, public=public)
        if page is not None:
            app = _with_page(app, page(uri))
        server = _Server(Guard(app, key, read_only=read_only), listener)
        server.start(address)
        try:
            _state_address(root, uri)
            yield uri
        finally:
            (root / ADDRESS).unlink(missing_ok=True)
            server.stop()


@contextlib.contextmanager
def serve_page(page: Any, *, api_key: str, port: int = 0, host: str = HOST) -> Iterator[str]:
    """Serve a page of a catalog that has its server elsewhere, for as long as the context lasts.

    Parameters
    ----------
    page : ASGI application
        It answers at ``/healthz`` too.
    api_key : str
        Its key.
    port : int
        TCP port; 0 takes a free one.
    host : str
        Address of this machine at which it listens; ``0.0.0.0``: all of them.

    Yields
    ------
    str
        The address.

    Raises
    ------
    CatalogError
        If the key can't be used, the port is taken, or the server is not healthy within a minute.
    """
    key = _checked_key(api_key)
    with _bound(host, port) as listener:
        address = _address(host, listener)
        server = _Server(Guard(page, key, read_only=True), listener)
        server.start(address)
        try:
            yield address
        finally:
            server.stop()


def is_healthy(place: str, timeout_s: float) -> bool:
    """Tell whether a server of this machine answers.

    Parameters
    ----------
    place : str
        Its host and port, with a colon between them.
    timeout_s : float
        How long to wait for its answer, seconds.
    """
    # The standard library's client: another would load its certificates each time, in the RunEngine's process, and
    # might ask a proxy of the environment, which can't reach this machine.
    asked = HTTPConnection(place, timeout=timeout_s)
    with contextlib.closing(asked), contextlib.suppress(OSError, HTTPException):
        asked.request("GET", "/healthz")
        return asked.getresponse().status == OK
    return False


def served_at(directory: Path | str, wait_s: float = 0.0) -> str | None:
    """Find the server that another session on this machine has for a catalog's folder.

    Parameters
    ----------
    directory : path
        Folder of the catalog.
    wait_s : float
        How long to wait for the server of a session that has the folder and is still beginning, seconds.

    Returns
    -------
    str or None
        Its address with the key; None where nobody serves the folder, or its owner keeps the address.
    """
    root, until = Path(directory).expanduser().resolve(), time.monotonic() + wait_s
    while not _is_free(root):
        with contextlib.suppress(OSError, ValueError):
            if address := (root / ADDRESS).read_text(encoding="utf-8").strip():
                return address
        # Who may not open the lock would wait in vain.
        if time.monotonic() >= until or not os.access(root / LOCK, os.R_OK | os.W_OK):
            break
        time.sleep(LOOK_S)
    return None


def _is_free(root: Path) -> bool:
    """Tell whether nobody has a folder: what a killed session has left there is no address."""
    if not os.path.isfile(root / LOCK):
        return True
    # Who may not open the lock can't tell whether somebody has it; the address tells where it can be read.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(root / LOCK, timeout=0)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        return True
    return False


def _checked_key(key: str) -> str:
    if not (key.isascii() and key.isalnum()):
        raise CatalogError("the server's API key must consist of letters and digits, so that it fits into an address")
    return key


def _address(host: str, listener: socket.socket) -> str:
    return f"http://{HOST if host == EVERYWHERE else host}:{listener.getsockname()[1]}"


def _with_page(app: Any, page: Any) -> Any:
    """Put a page beside Tiled: it answers at ``/`` and below ``/page/``, and Tiled everywhere else."""

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and (scope["path"] in ("/", "/page") or scope["path"].startswith("/page/"))
        await (page if ours else app)(scope, receive, send)

    return both


def _state_address(root: Path, uri: str) -> None:
    """Write where the server is, with its key, for this user alone."""
    (root / ADDRESS).unlink(missing_ok=True)
    with open(os.open(root / ADDRESS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(uri + "\n")


@contextlib.contextmanager
def serve_for_reading(directory: Path | str) -> Iterator[str]:
    """Serve a folder's catalog to this process alone, for reading; a session may begin in the folder meanwhile.

    Parameters
    ----------
    directory : path
        Folder of a catalog, which nobody else serves.

    Yields
    ------
    str
        Address with the key.

    Raises
    ------
    CatalogError
        If there is no catalog in the folder, it can't be read, or this process serves one already.
    """
    root, key = Path(directory).expanduser().resolve(), secrets.token_hex(16)
    if not (root / "catalog.db").is_file():
        raise CatalogError(
            f"{root} holds no catalog. Give the folder of a session, or the address of a server (http://...)."
        )
    with contextlib.ExitStack() as own:
        try:
            own.enter_context(_claimed(root, 0.0))
        except CatalogError:
            logger.debug("somebody has %s, who has seen to it that its files are found", root)
        else:
            relocate(root)
    with _alone(), _bound(HOST, 0) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        server = _Server(Guard(_build_app(root, (), key, public=False), key, read_only=True), listener)
        server.start(address)
        try:
            yield f"{address}/api/v1?api_key={key}"
        finally:
            server.stop()


def _usable(directory: Path) -> Path:
    root = directory.expanduser().resolve()
    if {"?", "#"} & set(str(root)):
        raise CatalogError(
            f"the catalog's folder must have a path without '?' and '#'; it is {root}. "
            "Set catalog.directory to another folder."
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # Others on this machine see nothing of it, unless whoever owns the folder gives them leave.
        root.mkdir(mode=0o700, exist_ok=True)
        (root / "data").mkdir(exist_ok=True)
    except OSError as err:
        raise CatalogError(
            f"the catalog needs a folder that can be written; {root} can't be used: {err}. "
            "Set catalog.directory to another folder."
        ) from err
    return root


@contextlib.contextmanager
def _claimed(root: Path, wait_s: float) -> Iterator[None]:
    """Keep other sessions out; the operating system lifts the lock even if this process is killed."""
    with contextlib.closing(sqlite3.connect(root / LOCK, timeout=wait_s, check_same_thread=False)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as err:
            hint = (
                "If another session or `bluesky-cdi serve` has it, close that one first, or set catalog.directory to "
                "another folder. "
                f"To look at it meanwhile: bluesky-cdi browse {shlex.quote(str(root))}"
                if "locked" in str(err)
                else "Check the folder's permissions."
            )
            raise CatalogError(f"can't take the catalog in {root} for this session ({err}). {hint}") from err
        yield


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep a second server out of this process: Tiled's settings are global, so the first would lose its key."""
    if not _SERVING.acquire(blocking=False):
        raise CatalogError(
            "this process already serves a catalog, and Tiled can serve only one: "
            "close that session first, or start the other one in a process of its own"
        )
    try:
        yield
    finally:
        _SERVING.release()


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    # asyncio turns Nagle's algorithm off only for sockets that state their protocol; with it every
    # answer would wait 40 ms for a delayed acknowledgement.
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as err:
            raise CatalogError(
                f"the catalog's server can't listen on {host}:{port}: {err}. Take another port, or 0 for any free one."
            ) from err
        yield listener


def _build_app(root: Path, readable: Sequence[Path | str], api_key: str, *, public: bool) -> Any:
    import tiled.catalog
    from bluesky_tiled_plugins.exporters import json_seq_exporter
    from bluesky_tiled_plugins.routers.validator import router as validator_router
    from sqlalchemy.exc import SQLAlchemyError
    from tiled.config import Authentication, StreamingCacheConfig
    from tiled.media_type_registration import default_serialization_registry
    from tiled.server.app import build_app

    from bluesky_cdi.catalog.closing import router as closing_router
    from bluesky_cdi.catalog.lookups import answer_quickly

    # Tiled prints its version to standard error at each start.
    logging.getLogger("tiled.server.app").setLevel(logging.WARNING)
    database = root / "catalog.db"
    try:
        if not database.exists() or database.stat().st_size == 0:
            create_database(database)
        tree = tiled.catalog.from_uri(
            str(database),
            writable_storage=[str(root / "data"), f"sqlite:///{root / 'tables.db'}"],
            readable_storage=[str(path) for path in (root, *(Path(p).expanduser().resolve() for p in readable))],
            cache_config=StreamingCacheConfig(uri="memory", data_ttl=UPDATES_S).model_dump(),
            # Two writers on one SQLite file would else meet "database is locked".
            storage_pool_size=1,
            storage_max_overflow=0,
        )
    except (sqlite3.Error, SQLAlchemyError, OSError, ValueError) as err:
        raise CatalogError(
            f"can't open the catalog {database}: {err}. Set catalog.directory to another folder, "
            "or put a copy of that file in its place."
        ) from err
    # Without this, `run.documents()` is refused by the server.
    registry = copy.deepcopy(default_serialization_registry)
    registry.register("BlueskyRun", "application/json-seq", json_seq_exporter)
    app = build_app(
        tree,
        authentication=Authentication(single_user_api_key=api_key, allow_anonymous_access=public),
        serialization_registry=registry,
        include_routers=[validator_router, closing_router],
    )
    _apply_settings(app)
    app.state.models = answer_quickly()
    return app


class _Applied(dict[Any, Any]):
    """Overrides that Tiled finds when it starts and stops, and requests take no notice of."""

    def __bool__(self) -> bool:
        return False


def _apply_settings(app: Any) -> None:
    """Apply the application's settings once.

    Where there are overrides, FastAPI inspects the signatures of all that a request depends on again with each request,
    which takes half of its time. Tiled's only override changes the settings that are there without it.
    """
    from tiled.server.settings import get_settings

    overrides = app.dependency_overrides
    if list(overrides) == [get_settings] and overrides[get_settings]() is get_settings():
        app.dependency_overrides = _Applied(overrides)


class _Server:
    """A uvicorn server in a daemon thread, with deadlines for its start and its stop."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        import uvicorn

        from bluesky_cdi.catalog.connections import LimitedProtocol

        # log_config=None: the application configures logging, not the server.
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=LimitedProtocol,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=3,
            )
        )
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="tiled-server", daemon=True)

    def _run(self) -> None:
        # uvicorn leaves by SystemExit when the application's start-up fails, which it has logged.
        with contextlib.suppress(SystemExit):
            self._uvicorn.run(sockets=[self._listener])

    def start(self, address: str) -> None:
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self._uvicorn.started and is_healthy(address.removeprefix("http://"), 1.0)):
            if not self._thread.is_alive():
                raise CatalogError(
                    "the catalog's server could not start; the log of 'uvicorn.error' says why. A catalog "
                    "written by an earlier version of Tiled needs "
                    "`tiled catalog upgrade-database sqlite:///FOLDER/catalog.db`."
                )
            if time.monotonic() > deadline:
                self.stop()
                raise CatalogError(
                    f"the catalog's server at {address} was not healthy within {START_TIMEOUT_S:g} s; "
                    "the log of 'uvicorn.error' says how far it came. Begin again when the machine is less busy."
                )
            time.sleep(0.02)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("the catalog's server did not stop within %g s; it ends with the process", STOP_TIMEOUT_S)
