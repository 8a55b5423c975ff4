"""Named loggers, and what configures them for a command line: lines on standard error, tracebacks in a file."""

from __future__ import annotations

import copy
import logging
import os
import sys
import traceback
from pathlib import Path

ROOT_NAME = "bluesky_cdi"
# The file is begun anew beyond this; the one before it is kept beside it.
FILE_MAX = 4 * 2**20


def log_file() -> Path:
    """Give the file that messages and tracebacks go to: that of ``BLUESKY_CDI_LOG``, else one of this user's."""
    if named := os.environ.get("BLUESKY_CDI_LOG"):
        return Path(named).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "bluesky_cdi" / "bluesky-cdi.log"


def configure_logging(level: int | None = None, *others: str) -> None:
    """Send log records to standard error, a line each, and to the log file, with their tracebacks.

    Nothing is configured at import: a library leaves that to its application. The command
    line and the profiles call this once; calling it again only changes the level.

    Parameters
    ----------
    level : int, optional
        Lowest level of this package's records, as in `logging`; by default what was set before, at first WARNING.
    *others : str
        Further loggers, such as ``bluesky``, whose records from WARNING on are treated alike.
    """
    for name in (ROOT_NAME, *others):
        logger = logging.getLogger(name)
        if name == ROOT_NAME:
            logger.setLevel(logger.level or logging.WARNING if level is None else level)
        if any(isinstance(handler, _FileHandler) for handler in logger.handlers):
            continue
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
        for handler in (lines, _FileHandler()):
            handler.setLevel(logging.NOTSET if name == ROOT_NAME else logging.WARNING)
            logger.addHandler(handler)


def keep_traceback(err: BaseException) -> str:
    """Write the traceback of an error to the log file, and say where that is.

    Parameters
    ----------
    err : BaseException
        What was raised.

    Returns
    -------
    str
        Where the traceback is; the traceback itself where the file can't be written.
    """
    text = "".join(traceback.format_exception(err))
    try:
        _append(text)
    except OSError as failure:
        return f"the log file {log_file()} can't be written ({failure}):\n{text}"
    return f"the traceback is in {log_file()}"


class _OneLine(logging.Formatter):
    """Leaves the traceback to the log file."""

    def format(self, record: logging.LogRecord) -> str:
        short = copy.copy(record)
        short.exc_info = short.exc_text = short.stack_info = None
        where = f" (the traceback is in {log_file()})" if record.exc_info or record.exc_text else ""
        return super().format(short) + where


class _FileHandler(logging.Handler):
    """Appends to the log file, which several processes share and which is open for a record only."""

    _reported = False

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record."""
        try:
            _append(self.format(record) + "\n")
        except OSError as err:
            # Once, and not through a logger: that would come back here.
            if not _FileHandler._reported:
                _FileHandler._reported = True
                sys.stderr.write(f"WARNING {ROOT_NAME}: the log file {log_file()} can't be written: {err}\n")


def _append(text: str) -> None:
    path = log_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > FILE_MAX:
        path.replace(path.with_name(path.name + ".1"))
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
