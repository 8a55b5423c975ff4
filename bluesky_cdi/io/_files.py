"""Opening files so that every fault has one name, and writing them so that no part passes for the whole."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bluesky_cdi.errors import BlueskyCDIError, ScanFileError

# What zipfile, numpy and h5py raise for files that are absent, cut short, damaged or laid out otherwise.
_FILE_FAULTS = (
    OSError, KeyError, ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn what goes wrong while reading `path` as a file of some `form` into `ScanFileError`."""
    try:
        if not path.is_file():
            raise ScanFileError(f"there is no file {path}. Check the path, and that the disk is mounted.")
        yield
    except BlueskyCDIError:
        raise
    except _FILE_FAULTS as err:
        raise ScanFileError(
            f"can't read {path} as {form}: {err}. It may be cut short or of another form: compare its size and "
            "checksum with the original's."
        ) from err


@contextmanager
def open_npz(path: Path, form: str) -> Iterator[np.lib.npyio.NpzFile[Any]]:
    """Open an NPZ file for reading; pickled objects in it are refused."""
    # numpy leaves a file that it can't read open, unless it is handed an open one.
    with reading(path, form), path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        yield file


@contextmanager
def open_hdf5(path: Path, form: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading."""
    with reading(path, form), h5py.File(path, "r") as file:
        yield file


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` if the block succeeds, remove it if not.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as err:
        raise ScanFileError(f"can't write {path}: {err}. Check that its folder exists and has room.") from err
    finally:
        partial.unlink(missing_ok=True)
