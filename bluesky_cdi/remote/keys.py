"""Keys of hosts and of those whom they serve: CURVE, as ZeroMQ has it.

A host's folder holds its own pair, ``host.key`` and ``host.key_secret``, the public keys of those whom it serves in
``clients``, and for each of them a folder to be carried to its machine: ``for-NAME`` with ``host.key`` and
``client.key_secret``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from bluesky_cdi.errors import ConfigError

HOST, CLIENT, CLIENTS = "host", "client", "clients"
_SECRET, _PUBLIC = ".key_secret", ".key"


def make_keys(folder: Path, client: str) -> Path:
    """Make the keys of a machine that a host is to serve, and the host's own where it has none yet.

    Parameters
    ----------
    folder : path
        The host's; made if need be, for its owner alone.
    client : str
        Name of the machine: letters, digits, ``-`` and ``_``.

    Returns
    -------
    Path
        Folder to be carried to that machine.

    Raises
    ------
    ConfigError
        If the name can't be one of a file, has keys already, or the folder can't be written.
    """
    folder = folder.expanduser()
    if not client.replace("-", "").replace("_", "").isalnum() or not client.isascii():
        raise ConfigError(f"a client's name must have letters, digits, - and _ alone; got {client!r}")
    theirs = folder / f"for-{client}"
    if theirs.exists() or (folder / CLIENTS / f"{client}{_PUBLIC}").exists():
        raise ConfigError(
            f"{client} has keys already: {theirs}. To make others, remove that and {CLIENTS}/{client}{_PUBLIC} first."
        )
    # From the first byte on for the owner alone.
    before = os.umask(0o077)
    try:
        for made in (folder, folder / CLIENTS, theirs):
            made.mkdir(parents=True, exist_ok=True)
        if not (folder / f"{HOST}{_SECRET}").exists():
            zmq.auth.create_certificates(folder, HOST)
        zmq.auth.create_certificates(theirs, CLIENT)
        (theirs / f"{CLIENT}{_PUBLIC}").rename(folder / CLIENTS / f"{client}{_PUBLIC}")
        shutil.copyfile(folder / f"{HOST}{_PUBLIC}", theirs / f"{HOST}{_PUBLIC}")
    except OSError as err:
        raise ConfigError(f"keys can't be made in {folder}: {err}") from err
    finally:
        os.umask(before)
    return theirs


def guard(context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], folder: Path) -> ThreadAuthenticator:
    """Let a host's socket take those alone whose keys its folder holds.

    Parameters
    ----------
    context, socket : zmq.Context, zmq.Socket
        Of the host.
    folder : path
        With the keys.

    Returns
    -------
    ThreadAuthenticator
        To be stopped at the end.

    Raises
    ------
    ConfigError
        If a key is missing, or others may read the secret one.
    """
    public, secret = _pair(folder.expanduser(), HOST)
    clients = folder.expanduser() / CLIENTS
    # One that is no key would keep the others out as well.
    if not [_load(each) for each in sorted(clients.glob(f"*{_PUBLIC}"))]:
        raise ConfigError(f"{clients} must hold keys of those to be served; make some with --new-client NAME")
    gate = ThreadAuthenticator(context)
    gate.start()
    gate.configure_curve(domain="*", location=str(clients))
    socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True
    return gate


def identify(socket: zmq.Socket[bytes], folder: Path) -> None:
    """Give a socket the keys with which a host knows this machine, and this machine its host.

    Parameters
    ----------
    socket : zmq.Socket
        Not connected yet.
    folder : path
        That which the host's ``--new-client`` made.

    Raises
    ------
    ConfigError
        If a key is missing, or others may read the secret one.
    """
    folder = folder.expanduser()
    socket.curve_publickey, socket.curve_secretkey = _pair(folder, CLIENT)
    socket.curve_serverkey = _load(folder / f"{HOST}{_PUBLIC}")[0]


def _pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    path = folder / f"{name}{_SECRET}"
    public, secret = _load(path)
    if secret is None:
        raise ConfigError(f"{path} must hold a secret key; it has none. Make keys anew with --new-client.")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others than its owner may read {path}: chmod 600 {path}")
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as err:
        raise ConfigError(
            f"{path} must be a key that `bluesky-cdi serve-reconstructor --keys FOLDER --new-client NAME` made: {err}"
        ) from err
