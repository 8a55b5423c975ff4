"""``bluesky-cdi serve``: a catalog for others to look at, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import check_catalog, configured, count, reached_catalog
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.config import is_loopback
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog
    from bluesky_cdi.config import Config

logger = logging.getLogger(__name__)

# Tiled's own.
PORT = 8000


def add_serve(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser("serve", parents=[common], help="serve a catalog for others to look at, until Ctrl-C")
    add = command.add_argument
    add("directory", type=Path, nargs="?", help="folder of an embedded catalog (default: the configured one)")
    add("--port", type=count, default=PORT, help="TCP port; 0: any free one (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen at, 0.0.0.0 for all (default: this machine only)")
    who = command.add_mutually_exclusive_group()
    who.add_argument("--key", metavar="KEY", help="the key, letters and digits (default: another one each time)")
    who.add_argument("--public", action="store_true", help="without a key: whoever reaches the port may read")
    add("--writable", action="store_true", help="let those who have the key change the catalog (default: read only)")
    command.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from bluesky_cdi.catalog import open_catalog
    from bluesky_cdi.catalog.server import BEGIN_S, served_at

    _repeat_less()
    config = configured(args)
    settings = config.catalog
    if args.directory is None and settings.uri:
        uri, api_key = settings.uri, settings.api_key
        return _serve_page(args, config, lambda: open_catalog(uri, api_key), uri.partition("?")[0])
    folder = (args.directory or settings.directory).expanduser().resolve()
    check_catalog(folder)
    if served_at(folder, BEGIN_S):
        return _serve_page(args, config, lambda: _open_served(folder), str(folder))
    return _serve_folder(args, config, folder)


def _repeat_less() -> None:
    """Let Tiled's client, which is imported later, repeat what the server fails on for two seconds, not for 45.

    A browser asks again by itself, and shows what it has until then.
    """
    os.environ.setdefault("TILED_RETRY_ATTEMPTS", "3")


def _open_served(folder: Path) -> Catalog:
    """Open the catalog of a folder at the server that a session has for it now."""
    from bluesky_cdi.catalog import open_catalog
    from bluesky_cdi.catalog.server import served_at
    from bluesky_cdi.errors import CatalogError

    running = served_at(folder)
    if running is None:
        raise CatalogError(
            f"the session that had {folder} open has ended. The page waits for the next one; to look at the catalog "
            "until then, start `bluesky-cdi serve` again."
        ) from ConnectionError("no server has the folder")
    return open_catalog(running)


def _serve_folder(args: argparse.Namespace, config: Config, folder: Path) -> int:
    from bluesky_cdi.catalog import open_catalog, serve
    from bluesky_cdi.catalog.feeder import ended_files
    from bluesky_cdi.web import Page

    key = args.key or secrets.token_hex(16)
    _warn(args)
    if ended_files(folder / "journal"):
        # What a killed session has left can be brought to the catalog before it is served read-only, and not after.
        with reached_catalog(folder, config.catalog):
            pass
    with contextlib.ExitStack() as stack:
        pages = []

        def page(uri: str) -> Page:
            made = Page(lambda: open_catalog(uri), key, public=args.public, config=config)
            pages.append(made)
            return made

        uri = stack.enter_context(
            serve(
                folder,
                port=args.port,
                api_key=key,
                host=args.host,
                read_only=not args.writable,
                public=args.public,
                page=page,
            )
        )
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for made in pages:
            # Before the server ends: who asks it then waits in vain.
            stack.callback(made.close)
            made.prepare()
        _say(args, str(folder), uri.partition("/api/v1")[0], key, tiled=True)
        _wait()
    return 0


def _serve_page(args: argparse.Namespace, config: Config, connect: Callable[[], Catalog], name: str) -> int:
    """Serve the page of a catalog whose server is a session's, or another machine's."""
    from bluesky_cdi.catalog.server import serve_page
    from bluesky_cdi.web import Page

    if args.writable:
        raise BlueskyCDIError(
            f"{name} has a server, which is a session's, another `serve`'s, or the configured one: beside it only the "
            "page is served, which changes nothing. Leave out --writable."
        )
    key = args.key or secrets.token_hex(16)
    _warn(args)
    with contextlib.ExitStack() as stack:
        page = Page(connect, key, public=args.public, config=config)
        stack.callback(page.close)
        address = stack.enter_context(serve_page(page, api_key=key, port=args.port, host=args.host))
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        page.prepare()
        _say(args, name, address, key)
        _wait()
    return 0


def _warn(args: argparse.Namespace) -> None:
    if not is_loopback(args.host):
        logger.warning("other machines can reach the server, and what is sent is not encrypted")


def _wait() -> None:
    """Wait for Ctrl-C."""
    threading.Event().wait()


def _say(args: argparse.Namespace, catalog: str, address: str, key: str, *, tiled: bool = False) -> None:
    from bluesky_cdi.catalog.server import EVERYWHERE

    if args.host == EVERYWHERE:
        address = address.replace("127.0.0.1", _name_of_this_machine(), 1)
    with_key = "" if args.public and not args.writable else f"?api_key={key}"
    numbers = {
        "folder": catalog,
        "page": f"{address}/page/{with_key}",
        "tiled": f"{address}/api/v1{with_key}" if tiled else None,
        "read_only": not args.writable,
        "public": bool(args.public),
    }
    rows = [
        ("catalog", catalog),
        ("page", str(numbers["page"])),
        *([("in Python", f'open_catalog("{numbers["tiled"]}")')] if tiled else [("beside", "the server that it has")]),
        ("may", "read and write" if args.writable else "read only"),
        ("who", "whoever reaches the port" if args.public else "who has the key"),
        ("end", "Ctrl-C"),
    ]
    say_result(args, numbers, [(name, str(value)) for name, value in rows])
    sys.stdout.flush()


def _name_of_this_machine() -> str:
    import socket

    return socket.getfqdn()
