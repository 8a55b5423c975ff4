"""A folder for each beamline: ``config.yaml`` and ``startup/*.py``.

IPython, the queue server and the command line read them.
"""

from __future__ import annotations

from pathlib import Path

from bluesky_cdi.errors import ConfigError


def profile_directory(name: str) -> Path:
    """Find a profile: one of this package by name, or any folder by path.

    Raises
    ------
    ConfigError
        If there is none.
    """
    here = Path(__file__).parent
    for folder in (Path(name).expanduser(), here / name):
        if (folder / "startup").is_dir():
            return folder.resolve()
    known = ", ".join(sorted(p.parent.name for p in here.glob("*/startup")))
    raise ConfigError(f"no profile {name!r}: give a folder with startup/, or one of {known}")
