"""What a host and its processes agree on."""

from __future__ import annotations

from dataclasses import dataclass

# Exit code of a process whose device, or machine, has no memory left: a new one begins with all of it.
OUT_OF_MEMORY = 12


@dataclass(frozen=True)
class Terms:
    """On what terms a host's process works for a session.

    Attributes
    ----------
    folder : str
        The only one that it writes to.
    device : str
        PyTorch device.
    paths : list of [str, str]
        Folders of the session's machine, and where they are seen here.
    factories : list of str
        What the session may name, beside the ordinary factory.
    """

    folder: str
    device: str
    paths: list[tuple[str, str]]
    factories: list[str]
