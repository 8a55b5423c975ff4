"""Opening files so that every fault has one name, and writing them so that no part passes for the whole."""

from __future__ import annotations

import contextlib
import json
import lzma
import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import BlueskyCDIError, ScanFileError
from bluesky_cdi.io.hdf5 import CheckedFile
from bluesky_cdi.whole_file import whole_file

# What zipfile, numpy, h5py and json raise for files that are absent, cut short, damaged or laid out otherwise. A
# damaged length becomes a MemoryError or an OverflowError, a damaged header of an array a TokenError.
_FILE_FAULTS = (
    OSError, LookupError, ValueError, TypeError, RuntimeError, EOFError, MemoryError, OverflowError, SyntaxError,
    tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip

# The largest array that is read in one piece: everything but the frames (positions, masks, probes, objects).
_ARRAY_BYTES = 2**31

# What an NPZ file may take of the memory that is free: whoever reads it needs as much again to work with it.
_MEMORY_SHARE = 0.5


@contextmanager
def naming(path: Path, **keys: str) -> Iterator[None]:
    """Name the file in every error about its content, and where in it the parts are of which the error speaks.

    Checks of a scan's parts know neither. What names the file already stays as it is.

    Parameters
    ----------
    path : Path
        The file.
    **keys : str
        The word for a part in messages, and where that part stands in the file: ``frames="`diffraction`"``.
    """
    try:
        yield
    except BlueskyCDIError as err:
        message = str(err)
        if re.search(rf"(?<!\w){re.escape(str(path))}(?!\w)", message):
            raise
        places = ", ".join(f"{part}: {place}" for part, place in keys.items() if re.search(rf"\b{part}\b", message))
        raise type(err)(f"{path}: {message}" + (f" ({places})" if places else "")) from err


@contextmanager
def _faults_of(what: str) -> Iterator[None]:
    """Turn what libraries raise while they read `what` into `ScanFileError`."""
    try:
        yield
    except BlueskyCDIError:
        raise
    except _FILE_FAULTS as err:
        raise ScanFileError(
            f"can't read {what}: {type(err).__name__}: {err}. It may be cut short or of another form: "
            "compare its size and checksum with the original's."
        ) from err


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Give every error while a file is read one of our names, and the file's.

    Parameters
    ----------
    path : Path
        The file.
    form : str
        What it should be, for the message: "a CXI file".

    Raises
    ------
    ScanFileError
        If the file is absent, or the block fails on what it holds.
    """
    with naming(path), _faults_of(f"{path} as {form}"):
        if not path.is_file():
            if path.is_dir():
                raise ScanFileError(f"{path} is no file but a folder. Name the file in it.")
            raise ScanFileError(f"there is no file {path}. Check the path, and that the disk is mounted.")
        if not path.stat().st_size:
            raise EOFError("the file is empty, 0 bytes")
        yield


class Arrays(Mapping[str, npt.NDArray[Any]]):
    """Arrays of an open NPZ file, read each time they are asked for.

    Raises
    ------
    ScanFileError
        If there is none of that name, or it can't be read.
    """

    def __init__(self, file: np.lib.npyio.NpzFile[Any], path: Path) -> None:
        self._file = file
        self._path = path

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self:
            raise ScanFileError(f"{self._path} must hold `{name}`; it holds {', '.join(self) or 'nothing'}")
        with _faults_of(f"`{name}` of {self._path}"):
            self.shape(name)
            return np.asarray(self._file[name])

    def __contains__(self, name: object) -> bool:
        return name in self._file.files

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of an array, which is not unpacked for it.

        Raises
        ------
        ScanFileError
            If there is no such array, or its header states another size than it has.
        """
        with _faults_of(f"`{name}` of {self._path}"):
            archive: Any = self._file.zip
            member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.NameToInfo else name)
            with archive.open(member) as stream:
                return _stated_shape(stream, member.file_size, f"`{name}` of {self._path}")

    def get(self, name: str, default: Any = None, /) -> Any:
        """Give an array, or a default where there is none.

        Parameters
        ----------
        name : str
            Of the array.
        default : object
            What stands for an absent one.
        """
        return self[name] if name in self._file.files else default


@contextmanager
def open_npz(path: Path, form: str) -> Iterator[Arrays]:
    """Open an NPZ file for reading; pickled objects in it are refused.

    Parameters
    ----------
    path : Path
        The file.
    form : str
        What it should be, for the message.

    Raises
    ------
    ScanFileError
        If it can't be read, or unpacked would not fit into the memory.
    """
    # numpy leaves a file that it can't read open, unless it is handed an open one.
    with reading(path, form), path.open("rb") as stream:
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise ScanFileError(f"{path} must be {form}, of several arrays; it is a single one")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as file:
            _check_unpacked(file.zip, path)
            yield Arrays(file, path)


def load_npy(path: Path) -> npt.NDArray[Any]:
    """Read an NPY file.

    Raises
    ------
    ScanFileError
        If it can't be read, or its header states another size than it has.
    """
    with reading(path, "an NPY file"), path.open("rb") as stream:
        _stated_shape(stream, path.stat().st_size, str(path))
        stream.seek(0)
        return np.asarray(np.load(stream, allow_pickle=False))


def _check_unpacked(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive that would fill the memory, by the sizes that it states: zipfile unpacks no more than these."""
    unpacked, free = sum(member.file_size for member in archive.infolist()), free_memory()
    if unpacked > _MEMORY_SHARE * free:
        raise ScanFileError(
            f"{path} ({path.stat().st_size / 2**20:.3g} MiB) would take {unpacked / 2**30:.3g} GiB unpacked; at most "
            f"{_MEMORY_SHARE:.0%} of the {free / 2**30:.3g} GiB of memory that are free may be. Write its frames to "
            "HDF5 (`bluesky-cdi convert` on a larger machine): there they stay in the file."
        )


def free_memory() -> int:
    """Find how much memory this process may still take, in bytes; the machine's, or that of its control group."""
    limits = []
    with contextlib.suppress(OSError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": there is no limit
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(limits)) if limits else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _stated_shape(stream: IO[bytes], size: int, what: str) -> tuple[int, ...]:
    """Read the header of an NPY stream of `size` bytes, which must be as long as it says."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    stated = math.prod(shape) * dtype.itemsize
    # Pickled objects have no such size; numpy refuses them.
    if not dtype.hasobject and stated != size - stream.tell():
        raise ScanFileError(
            f"{what} states {dtype} {shape}, {stated} bytes, and holds {size - stream.tell()}. It is cut short or "
            "damaged: compare its size and checksum with the original's."
        )
    return tuple(shape)


@contextmanager
def open_hdf5(path: Path, form: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, with the compression filters of hdf5plugin at hand; nothing in it leads elsewhere.

    Parameters
    ----------
    path : Path
        The file.
    form : str
        What it should be, for the message.

    Raises
    ------
    ScanFileError
        If it can't be read.
    """
    import hdf5plugin  # noqa: F401  (its import registers the filters)

    with reading(path, form), CheckedFile(path) as file:
        yield file


@contextmanager
def open_dataset(path: Path, place: str) -> Iterator[h5py.Dataset]:
    """Open one dataset of an HDF5 file for reading.

    Parameters
    ----------
    path : Path
        The file.
    place : str
        Path of the dataset in it.

    Raises
    ------
    ScanFileError
        If there is no such dataset, or it can't be read.
    """
    with open_hdf5(path, "an HDF5 file") as file:
        dataset = file.get(place)
        if not isinstance(dataset, h5py.Dataset):
            raise ScanFileError(f"{path} must hold the dataset {place}; {_holds(file)}")
        _check(dataset)
        yield dataset


def array(group: h5py.Group, name: str) -> npt.NDArray[Any]:
    """Read a whole dataset.

    Parameters
    ----------
    group : h5py.Group
        Where it lies.
    name : str
        Path of the dataset from there.

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
    with _faults_of(f"{name!r} of {group.file.filename}"):
        return np.asarray(dataset[()])


def number(values: h5py.AttributeManager, name: str, path: Path) -> float:
    """Read one number among the attributes of an HDF5 file.

    Parameters
    ----------
    values : h5py.AttributeManager
        The attributes.
    name : str
        Which of them.
    path : Path
        The file, for the message.

    Raises
    ------
    ScanFileError
        If there is none of that name, or it is no number.
    """
    if name not in values:
        raise ScanFileError(f"{path} must state {name!r}; it states {', '.join(map(str, values)) or 'nothing'}")
    _check_type(values.get_id(name), f"the attribute {name!r} of {path}")
    return one(np.asarray(values[name]), name)


def real(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    """Convert real numbers to float64; refuse anything else, which a cast might let pass.

    Parameters
    ----------
    values : ndarray
        As read.
    name : str
        What they are called in a message.

    Raises
    ------
    ScanFileError
        If they are no real numbers.
    """
    if values.dtype.kind not in "biuf":
        raise ScanFileError(f"`{name}` must hold real numbers; it holds {values.dtype}")
    return values.astype(np.float64)


def one(values: npt.NDArray[Any], name: str) -> float:
    """Give the first of some real numbers.

    Parameters
    ----------
    values : ndarray
        The numbers.
    name : str
        Where they stand, for the message.

    Raises
    ------
    ScanFileError
        If there is none.
    """
    found = real(values, name).reshape(-1)
    if not found.size:
        raise ScanFileError(f"`{name}` must hold a number; it is empty")
    return float(found[0])


def flags(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.bool_]:
    """Tell where a mask is not 0.

    Parameters
    ----------
    values : ndarray
        The mask.
    name : str
        Where it stands, for the message.

    Raises
    ------
    ScanFileError
        If it holds anything but finite numbers, which a cast might let pass.
    """
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ScanFileError(
            f"the mask `{name}` must hold zeros and ones; it holds {values.dtype}, or numbers not finite"
        )
    return values.astype(bool)


def json_object(value: Any, name: str) -> dict[str, Any]:
    """Read a JSON object, which a file holds as a text.

    Parameters
    ----------
    value : object
        The text.
    name : str
        Where it stands, for the message.

    Raises
    ------
    ScanFileError
        If it is none.
    """
    try:
        found = json.loads(text(value, name))
    except ValueError as err:
        raise ScanFileError(f"`{name}` must be a JSON object; it is no JSON: {err}") from err
    if not isinstance(found, dict):
        raise ScanFileError(f"`{name}` must be a JSON object; it is {found!r}")
    return found


def stated(values: h5py.AttributeManager, name: str, default: str) -> str:
    """Read a text among the attributes of an HDF5 file, or give `default`.

    Parameters
    ----------
    values : h5py.AttributeManager
        The attributes.
    name : str
        Which of them.
    default : str
        What an absent one stands for.

    Raises
    ------
    ScanFileError
        If the attribute is no text.
    """
    if name not in values:
        return default
    identifier = values.get_id(name)
    if h5py.check_string_dtype(identifier.dtype) is None:
        raise ScanFileError(f"the attribute `{name}` must be a text; it is {identifier.dtype}")
    return text(values[name], name)


def text(value: Any, name: str) -> str:
    """Decode a text as h5py or numpy gives it: str, bytes, or an array of one of them.

    Parameters
    ----------
    value : object
        The text.
    name : str
        Where it stands, for the message.

    Raises
    ------
    ScanFileError
        If it is none.
    """
    values = np.asarray(value).reshape(-1)
    if not values.size or values.dtype.kind not in "SUO":
        raise ScanFileError(f"`{name}` must hold a text; it holds {values.dtype} of {values.size} elements")
    first = values[0]
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)


def _check(dataset: h5py.Dataset) -> None:
    """Refuse what can't be read, or what would make the HDF5 library write past its buffers."""
    _check_type(dataset.id, f"{dataset.name} of {dataset.file.filename}")
    _check_filters(dataset)


def _check_type(identifier: Any, what: str) -> None:
    """Refuse all but numbers or texts of fixed length, as long in memory as in the file: of others, damage is fatal."""
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
    try:
        with whole_file(path) as partial:
            yield partial
    except BlueskyCDIError:
        raise
    except OSError as err:
        raise ScanFileError(f"can't write {path}: {err}. Check that its folder exists and has room.") from err
