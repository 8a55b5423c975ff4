"""With what a result was made: versions, and the commit of a checkout."""

from __future__ import annotations

import functools
import logging
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bluesky_cdi import __version__

logger = logging.getLogger(__name__)

OTHERS = ("numpy", "torch", "bluesky", "tiled")
GIT_TIMEOUT_S = 5.0


@functools.cache
def versions() -> dict[str, str | None]:
    """Give the versions of this package and of what it rests on, as `schema.Versions` names them; no library is loaded.

    Returns
    -------
    dict
        None for what is not installed, and for the commit of what is no checkout.
    """
    made = {"bluesky_cdi": __version__, "commit": commit_of(Path(__file__).parents[2])}
    return {**made, "python": platform.python_version(), **{name: _version_of(name) for name in OTHERS}}


def commit_of(folder: Path) -> str | None:
    """Tell the commit that a folder is a checkout of, with ``-dirty`` where files differ from it; None: it is none.

    Parameters
    ----------
    folder : path
        Root of the checkout.
    """
    if not (folder / ".git").exists():
        return None
    try:
        said = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as err:
        logger.debug("the commit of %s is not known: %s", folder, err)
        return None
    return said.stdout.strip() or None


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
