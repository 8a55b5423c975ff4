"""Catalogs of folders, opened in this process."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

from bluesky_cdi.catalog.connect import Catalog, connect
from bluesky_cdi.catalog.server import serve, serve_for_reading, served_at

# Folders that this process reads by a server of its own: a notebook's cell that is run again opens one once more.
_READ: dict[Path, tuple[str, contextlib.ExitStack, int]] = {}
_LOCK = threading.Lock()


def open_folder(folder: Path, *, writable: bool = False) -> Catalog:
    """Open the catalog of a folder.

    Parameters
    ----------
    folder : path
        Of a session.
    writable : bool
        Whether results are to be written to it; then the folder is this process's until the catalog is closed.

    Raises
    ------
    CatalogError
        If there is none, it can't be read, or somebody has it who is not to be disturbed.
    """
    folder = folder.expanduser().resolve()
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(serve(folder)) if writable else served_at(folder) or _reading(folder, stack)
        opened = replace(connect(uri), directory=folder, read_only=not writable)
        return replace(opened, release=stack.pop_all().close)


def _reading(folder: Path, stack: contextlib.ExitStack) -> str:
    """Serve a folder to this process for as long as anybody here reads it; the address."""
    with _LOCK:
        uri, server, readers = _READ.get(folder) or _begun(folder)
        _READ[folder] = uri, server, readers + 1
    stack.callback(_leave, folder)
    return uri


def _begun(folder: Path) -> tuple[str, contextlib.ExitStack, int]:
    with contextlib.ExitStack() as server:
        uri = server.enter_context(serve_for_reading(folder))
        return uri, server.pop_all(), 0


def _leave(folder: Path) -> None:
    with _LOCK:
        uri, server, readers = _READ.pop(folder)
        if readers > 1:
            _READ[folder] = uri, server, readers - 1
        else:
            server.close()
