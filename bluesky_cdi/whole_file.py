"""Files that are there whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside a file; what the block writes there replaces the file if the block succeeds.

    The path is nobody else's, also where threads, or machines with one folder, write the same file at once: the last
    one counts. If the block fails, what it wrote is removed, and the file stays as it was.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    OSError
        If the file can't be replaced.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as err:
        # What is told is of the file, whose name is known, and the same each time.
        if err.filename is not None and Path(err.filename) == partial:
            err.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, blob: bytes) -> None:
    """Write a file, all of it or nothing.

    Parameters
    ----------
    path : Path
        The file.
    blob : bytes
        What it holds.

    Raises
    ------
    OSError
        If it can't be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(blob)
