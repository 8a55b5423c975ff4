"""Named loggers, and the one function that configures them for a command line."""

from __future__ import annotations

import logging
import sys

ROOT_NAME = "bluesky_cdi"


def configure_logging(level: int = logging.WARNING) -> None:
    """Send the package's log records to standard error.

    Nothing is configured at import: a library leaves that to its application. The command
    line and the profiles call this once; calling it again only changes the level.

    Parameters
    ----------
    level : int
        Lowest level shown, as in `logging`.
    """
    logger = logging.getLogger(ROOT_NAME)
    logger.setLevel(level)
    if not any(getattr(h, "bluesky_cdi", False) for h in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        handler.bluesky_cdi = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
