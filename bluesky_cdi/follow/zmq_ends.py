"""Sockets of 0MQ: addresses as bluesky writes them, and CURVE."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import ConfigError


def address_of(text: str) -> str:
    """Give the address of a proxy with its protocol.

    Parameters
    ----------
    text : str
        ``HOST:PORT``, ``tcp://HOST:PORT`` or ``ipc:///PATH``.

    Raises
    ------
    ConfigError
        If it is of another form.
    """
    protocol, separator, rest = text.partition("://")
    if not separator:
        protocol, rest = "tcp", text
    host, _, port = rest.rpartition(":")
    if (protocol == "ipc" and rest.startswith("/")) or (protocol == "tcp" and host and port.isdigit()):
        return f"{protocol}://{rest}"
    raise ConfigError(f"a proxy's address is HOST:PORT, or ipc:///PATH for a socket of this machine; got {text!r}")


def is_here(address: str) -> bool:
    """Tell whether an address can only be that of this machine.

    Parameters
    ----------
    address : str
        As `address_of` gives it.
    """
    protocol, _, rest = address.partition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if protocol == "ipc" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Curve:
    """Keys of a connection by CURVE, which encrypts it and tells both ends who the other is.

    Attributes
    ----------
    secret : Path
        Certificate with this side's secret key.
    server : Path
        Certificate with the proxy's public key.
    """

    secret: Path
    server: Path

    def apply(self, socket: Any) -> None:
        """Give a socket the keys, before it connects.

        Parameters
        ----------
        socket : zmq.Socket
            Of the client.

        Raises
        ------
        ConfigError
            If a file holds no such key.
        """
        from zmq.auth import load_certificate

        try:
            public, secret = load_certificate(self.secret)
            server, _ = load_certificate(self.server)
        except (OSError, ValueError) as err:
            raise ConfigError(f"a key for CURVE can't be read: {err}. zmq.auth makes them.") from err
        if secret is None:
            raise ConfigError(f"{self.secret} must hold a secret key; name the file that ends in .key_secret")
        socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = public, secret, server
