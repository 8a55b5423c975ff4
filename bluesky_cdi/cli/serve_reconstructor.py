"""``bluesky-cdi serve-reconstructor``: reconstructs for sessions of other machines, until Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import add_paths, count, positive
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

PORT = 5991
# The host itself loads no PyTorch, which could tell which.
SAID = {"auto": "a GPU where there is one, else the CPU"}


def add_serve_reconstructor(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "serve-reconstructor", parents=[common], help="reconstruct for sessions of other machines, until Ctrl-C"
    )
    add = command.add_argument
    add("--host", default="127.0.0.1", help="address to listen at, 0.0.0.0 for all (default: this machine only)")
    add("--port", type=count, default=PORT, help="TCP port; 0: any free one (default: %(default)s)")
    add("--keys", type=Path, metavar="FOLDER", help="keys of this host and of those whom it serves")
    add("--new-client", metavar="NAME", help="make keys for a machine in the folder of --keys, and end")
    add(
        "--max-sessions", type=positive, default=4, metavar="N", help="sessions served at a time (default: %(default)s)"
    )
    add(
        "--device",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="sessions are spread over these, such as cuda:0 cuda:1 (default: a GPU, or the CPU)",
    )
    add("--folder", type=Path, help="where sessions write while they last (default: that for temporary files)")
    add_paths(command)
    add(
        "--factory", nargs="+", default=[], metavar="MODULE:FUNCTION",
        help="what sessions may have run here beside the ordinary reconstruction (default: nothing)",
    )  # fmt: skip
    command.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from bluesky_cdi.callbacks import SharedFolders
    from bluesky_cdi.remote.host import Host, HostOptions
    from bluesky_cdi.remote.keys import make_keys

    if args.new_client is not None:
        if args.keys is None:
            raise BlueskyCDIError("--new-client needs the folder of the keys: --keys FOLDER")
        made = make_keys(args.keys, args.new_client)
        rows = [
            ("carry", str(made)),
            ("to", f"{args.new_client}, for its user alone"),
            ("there", "reconstructor.host.keys names that folder"),
            ("here", f"start the host (again) with --keys {args.keys}"),
        ]
        say_result(args, {"keys": str(made)}, rows)
        return 0
    _check_devices(args.device)
    host = Host(
        HostOptions(
            args.host,
            args.port,
            args.keys,
            args.max_sessions,
            tuple(args.device),
            (args.folder or Path(tempfile.gettempdir())).expanduser().resolve(),
            SharedFolders.parse(args.paths),
            tuple(args.factory),
        )
    )
    # Sessions that begin and end are told without -v: nothing else is to be seen of a host.
    logging.getLogger("bluesky_cdi.remote.host").setLevel(logging.INFO)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: host.stop())
    try:
        rows = [
            ("address", host.address),
            ("who", "whoever has a key" if args.keys else "users of this machine, and who has a tunnel to it"),
            ("sessions", f"{args.max_sessions} at a time on {', '.join(SAID.get(name, name) for name in args.device)}"),
            (
                "files",
                ", ".join(args.paths) or "none of the sessions' machines: these send the frames that are in files",
            ),
            ("end", "Ctrl-C"),
        ]
        say_result(args, {"address": host.address, "keys": args.keys is not None}, rows)
        sys.stdout.flush()
        host.run()
    finally:
        host.close()
    return 0


def _check_devices(names: list[str]) -> None:
    """Refuse devices that are not there: sessions would find out in the middle of a scan."""
    known = ["auto", "cpu"]
    if set(names) <= set(known):
        return
    import torch

    if torch.cuda.is_available():
        known += ["cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if missing := [name for name in names if name not in known]:
        raise BlueskyCDIError(
            f"--device must name what PyTorch sees on this machine: {', '.join(known)}; got {', '.join(missing)}. "
            "Is a build of PyTorch with CUDA installed (bluesky-cdi doctor)?"
        )
