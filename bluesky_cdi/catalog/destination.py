"""Which catalog the runs in a journal are for, where that is not the catalog of the session's folder.

A session on another server's catalog notes its address in the journal: should the session be killed, whoever brings
the runs to a catalog later knows which one was meant.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

NAME = "catalog.address"


def state_destination(journal: Path, uri: str | None) -> None:
    """Note for which catalog the runs of a session are.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``.
    uri : str or None
        The catalog's address, whose key is not written; None: that of the session's folder.
    """
    if uri is None:
        (journal / NAME).unlink(missing_ok=True)
        return
    journal.mkdir(parents=True, exist_ok=True, mode=0o700)
    (journal / NAME).write_text(f"{without_key(uri)}\n", encoding="utf-8")


def destination_of(journal: Path) -> str | None:
    """Read for which catalog the runs of the last session are: its address; None for that of the session's folder.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``.
    """
    try:
        return (journal / NAME).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def without_key(uri: str) -> str:
    """Give a catalog's address as it is noted."""
    address = urlsplit(uri)
    return address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl()
