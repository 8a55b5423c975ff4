"""``bluesky-cdi serve``: a catalog for others to look at, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import sys
import threading
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import check_catalog, configured, count, reached_catalog
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

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
    from bluesky_cdi.catalog import serve
    from bluesky_cdi.catalog.feeder import ended_files
    from bluesky_cdi.catalog.server import EVERYWHERE, served_at

    settings = configured(args).catalog
    folder = (args.directory or settings.directory).expanduser().resolve()
    check_catalog(folder)
    if served_at(folder):
        raise BlueskyCDIError(
            f"{folder} is served already, by a session or another `serve`: {folder / 'server.address'} holds the "
            "address. Close that one first, or look at it with `bluesky-cdi browse`."
        )
    if not _is_loopback(args.host):
        logger.warning("other machines can reach the server, and what is sent is not encrypted")
    if ended_files(folder / "journal"):
        # What a killed session has left can be brought to the catalog before it is served read-only, and not after.
        with reached_catalog(folder, settings):
            pass
    with (
        serve(
            folder,
            port=args.port,
            api_key=args.key,
            host=args.host,
            read_only=not args.writable,
            public=args.public,
        ) as uri,
        contextlib.suppress(KeyboardInterrupt),
    ):
        if args.host == EVERYWHERE:
            uri = uri.replace("127.0.0.1", _name_of_this_machine(), 1)
        _say(args, folder, uri)
        _wait()
    return 0


def _wait() -> None:
    """Wait for Ctrl-C."""
    threading.Event().wait()


def _say(args: argparse.Namespace, folder: Path, uri: str) -> None:
    address, _, key = uri.partition("/api/v1?api_key=")
    if args.public and not args.writable:
        key = ""
    with_key = f"?api_key={key}" if key else ""
    numbers = {
        "folder": str(folder),
        "page": f"{address}/{with_key}",
        "tiled": f"{address}/api/v1{with_key}",
        "read_only": not args.writable,
        "public": bool(args.public),
    }
    rows = [
        ("catalog", str(folder)),
        ("page", numbers["page"]),
        ("in Python", f'open_catalog("{numbers["tiled"]}")'),
        ("may", "read and write" if args.writable else "read only"),
        ("who", "whoever reaches the port" if args.public else "who has the key"),
        ("end", "Ctrl-C"),
    ]
    say_result(args, numbers, [(name, str(value)) for name, value in rows])
    sys.stdout.flush()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name_of_this_machine() -> str:
    import socket

    return socket.getfqdn()
