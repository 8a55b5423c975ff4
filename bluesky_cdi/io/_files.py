"""Opening files so that every fault has one name, and writing them so that no part passes for the whole."""

from __future__ import annotations

import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import BlueskyCDIError, ScanFileError

# What zipfile, numpy, h5py and json raise for files that are absent, cut short, damaged or laid out otherwise. A
# damaged length becomes a MemoryError or an OverflowError, a damaged header of an array a TokenError.
_FILE_FAULTS = (
    OSError, LookupError, ValueError, TypeError, RuntimeError, EOFError, MemoryError, OverflowError, SyntaxError,
    tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip

# The largest array that is read in one piece: everything but the frames (positions, masks, probes, objects).
_ARRAY_BYTES = 2**31


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
            f"can't read {path} as {form}: {type(err).__name__}: {err}. It may be cut short or of another form: "
            "compare its size and checksum with the original's."
        ) from err


@contextmanager
def open_npz(path: Path, form: str) -> Iterator[np.lib.npyio.NpzFile[Any]]:
    """Open an NPZ file for reading; pickled objects in it are refused."""
    # numpy leaves a file that it can't read open, unless it is handed an open one.
    with reading(path, form), path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        yield file


@contextmanager
def open_hdf5(path: Path, form: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, with the compression filters of hdf5plugin at hand."""
    import hdf5plugin  # noqa: F401  (its import registers the filters)

    with reading(path, form), h5py.File(path, "r") as file:
        yield file


@contextmanager
def open_dataset(path: Path, place: str) -> Iterator[h5py.Dataset]:
    """Open one dataset of an HDF5 file for reading."""
    with open_hdf5(path, "an HDF5 file") as file:
        dataset = file.get(place)
        if not isinstance(dataset, h5py.Dataset):
            raise ScanFileError(f"{path} must hold the dataset {place}; {_holds(file)}")
        _check(dataset)
        yield dataset


def array(group: h5py.Group, name: str) -> npt.NDArray[Any]:
    """Read a whole dataset.

    Raises
    ------
    ScanFileError
        If there is none of that name, or its stated size is absurd for anything but frames.
    """
    dataset = group.get(name)  # `get`, for a link may lead nowhere
    if not isinstance(dataset, h5py.Dataset):
        raise ScanFileError(f"{group.file.filename} must hold the dataset {name!r}; {_holds(group)}")
    if dataset.nbytes > _ARRAY_BYTES:
        raise ScanFileError(
            f"{name!r} of {group.file.filename} states a shape of {dataset.shape}, {dataset.nbytes / 2**30:.3g} GiB; "
            "no such array is expected. The file may be damaged: compare its checksum with the original's."
        )
    _check(dataset)
    return np.asarray(dataset[()])


def number(values: h5py.AttributeManager, name: str, path: Path) -> float:
    """One number among the attributes of an HDF5 file.

    Raises
    ------
    ScanFileError
        If there is none of that name, or it is no number.
    """
    if name not in values:
        raise ScanFileError(f"{path} must state {name!r}; it states {', '.join(map(str, values)) or 'nothing'}")
    _check_type(values.get_id(name), f"the attribute {name!r} of {path}")
    found = real(np.asarray(values[name]), name).reshape(-1)
    if not found.size:
        raise ScanFileError(f"the attribute {name!r} of {path} must be a number; it is empty")
    return float(found[0])


def real(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    """Real numbers as float64; ScanFileError for anything else, which a cast might let pass."""
    if values.dtype.kind not in "biuf":
        raise ScanFileError(f"`{name}` must hold real numbers; it holds {values.dtype}")
    return values.astype(np.float64)


def stated(values: h5py.AttributeManager, name: str, default: str) -> str:
    """A text among the attributes of an HDF5 file, or `default`."""
    if name not in values:
        return default
    identifier = values.get_id(name)
    if h5py.check_string_dtype(identifier.dtype) is None:
        raise ScanFileError(f"the attribute {name!r} must be a text; it is {identifier.dtype}")
    return text(values[name])


def text(value: Any) -> str:
    """A text as h5py or numpy gives it: str, bytes, or an array of one of them."""
    value = np.asarray(value).reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check(dataset: h5py.Dataset) -> None:
    """Refuse what can't be read, or what would make the HDF5 library write past its buffers."""
    _check_type(dataset.id, f"{dataset.name} of {dataset.file.filename}")
    _check_filters(dataset)


def _check_type(identifier: Any, what: str) -> None:
    """Numbers or texts of fixed length, as long in memory as in the file: of others, damage ends the process."""
    kind, size = identifier.dtype.kind, identifier.get_type().get_size()
    if kind not in "biufcS" or identifier.dtype.itemsize != size:
        raise ScanFileError(f"{what} must hold numbers; it holds {identifier.dtype} in {size} bytes each")


def _check_filters(dataset: h5py.Dataset) -> None:
    made = dataset.id.get_create_plist()
    for code, _, _, name in (made.get_filter(i) for i in range(made.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            raise ScanFileError(
                f"{dataset.name} of {dataset.file.filename} is compressed by the HDF5 filter {code} "
                f"({name.decode('utf-8', 'replace') or 'no name'}), which is not at hand. Upgrade hdf5plugin "
                "(pip install -U hdf5plugin), or set HDF5_PLUGIN_PATH to the folder of the filter."
            )


def _holds(group: h5py.Group) -> str:
    return f"{group.name!r} holds {', '.join(map(str, group)) or 'nothing'}"


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
    except BlueskyCDIError:
        raise
    except OSError as err:
        raise ScanFileError(f"can't write {path}: {err}. Check that its folder exists and has room.") from err
    finally:
        partial.unlink(missing_ok=True)
