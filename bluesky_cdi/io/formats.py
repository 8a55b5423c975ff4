"""Which reader or writer a file of a scan needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io._files import open_hdf5, open_npz, reading
from bluesky_cdi.io.canonical import read_canonical, write_canonical
from bluesky_cdi.io.compression import COMPRESSIONS
from bluesky_cdi.io.cxi import DATA, read_cxi, write_cxi
from bluesky_cdi.io.cxi_result import read_cxi_result
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.io.product import Product, read_product
from bluesky_cdi.io.ptychodus import companion_path, read_ptychodus, write_ptychodus
from bluesky_cdi.io.ptychopinn import read_ptychopinn, write_ptychopinn
from bluesky_cdi.io.scan import Scan
from bluesky_cdi.io.single_shot_result import is_single_shot

logger = logging.getLogger(__name__)

_ZIP_SIGNATURE = b"PK\x03\x04"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# HDF5 allows a user block before its signature: at 0, 512, 1024, 2048, ... bytes.
_SIGNATURE_PLACES = (0, *(2**k for k in range(9, 21)))

_WRITERS: dict[str, Callable[[Path, Scan], None]] = {
    "cxi": write_cxi,
    "canonical": write_canonical,
    "ptychopinn": write_ptychopinn,
    "ptychodus": write_ptychodus,
}
# Those of them in HDF5, whose frames can be compressed in more than one way.
_HDF5_WRITERS: dict[str, Callable[..., None]] = {"cxi": write_cxi, "ptychodus": write_ptychodus}
_SUFFIXES = {".cxi": "cxi", ".npz": "canonical", ".h5": "ptychodus", ".hdf5": "ptychodus"}


def scan_formats() -> tuple[str, ...]:
    """List the forms that `read_scan` reads and `write_scan` writes."""
    return tuple(_WRITERS)


def read_scan(
    path: Path | str, *, focus_to_sample_m: float | None = None, preprocessing: Preprocessing | None = None
) -> Scan:
    """Read a recorded scan; the file's content, not its name, tells the form.

    Known are CXI and NXcxi_ptycho, Ptychodus' patterns (with the positions in a file beside it),
    ``canonical.npz`` and PtychoPINN's NPZ.

    Parameters
    ----------
    path : path
        The file to read.
    focus_to_sample_m : float, optional
        Distance from the focus to the sample, metres: declares a near-field scan in a CXI file,
        which can't say so itself.
    preprocessing : Preprocessing, optional
        What is done to the frames first: `Preprocessing.recorded` of a configuration.

    Raises
    ------
    ScanFileError
        If the file is absent, can't be read, is cut short, or has none of the known forms.
    FrameError, GeometryError
        If what it holds can't be a scan, or `focus_to_sample_m` is given for a form other than CXI.
    """
    path = Path(path).expanduser()
    reader = _reader(path)
    if reader is read_cxi:
        scan = read_cxi(path, focus_to_sample_m=focus_to_sample_m, preprocessing=preprocessing)
    elif focus_to_sample_m is None:
        scan = reader(path, preprocessing=preprocessing)
    else:
        raise GeometryError(
            f"focus_to_sample_m declares a CXI file's scan a near-field one; {path} is none, and its form says itself "
            "how its frames arose. Leave it out."
        )
    if scan.source["propagation"] == "far field (assumed)":
        logger.warning("%s does not say that it is a far-field scan; it is taken for one", path.name)
    return scan


def write_scan(path: Path | str, scan: Scan, form: str | None = None, *, compression: str | None = None) -> None:
    """Write a scan in one of `scan_formats`.

    Parameters
    ----------
    path : path
        The file to write.
    scan : Scan
        What it holds.
    form : str, optional
        By default what the suffix says: ``.cxi``, ``.npz`` (canonical), ``.h5`` or ``.hdf5`` (Ptychodus: the patterns,
        and the product beside it).
    compression : str, optional
        Of frames in HDF5 files, without loss: one of `COMPRESSIONS`; the first if absent.

    Raises
    ------
    ScanFileError
        If neither the form nor the suffix is known, the file can't be written, or the form can't hold the scan or be
        compressed so.
    GeometryError
        If the form holds far-field scans only and this is another.
    """
    path = Path(path).expanduser()
    name = _form_of(path, form)
    if compression is None:
        _WRITERS[name](path, scan)
    elif name in _HDF5_WRITERS:
        _HDF5_WRITERS[name](path, scan, compression=compression)
    else:
        raise ScanFileError(
            f"{path.name} is an NPZ file, which has a compression of its own; {', '.join(COMPRESSIONS)} are for "
            f"{', '.join(_HDF5_WRITERS)}"
        )


def scan_files(path: Path, form: str | None = None) -> tuple[Path, ...]:
    """List what `write_scan` makes: Ptychodus' form is two files.

    Parameters
    ----------
    path : path
        Where the scan is to go.
    form : str, optional
        As `write_scan` takes it.

    Raises
    ------
    ScanFileError
        If neither the form nor the suffix is known.
    """
    return (path, companion_path(path)) if _form_of(path, form) == "ptychodus" else (path,)


def _form_of(path: Path, form: str | None) -> str:
    name = _SUFFIXES.get(path.suffix.lower()) if form is None else form
    if name not in _WRITERS:
        raise ScanFileError(
            f"a scan is written as one of {', '.join(_WRITERS)}, which the suffixes {', '.join(_SUFFIXES)} stand for; "
            f"{path.name if form is None else form!r} is none of them"
        )
    return name


class _Reader(Protocol):
    def __call__(self, path: Path, /, *, preprocessing: Preprocessing | None) -> Scan: ...


def _reader(path: Path) -> _Reader:
    with reading(path, "a scan"), path.open("rb") as file:
        signature = file.read(8)
        if not signature.startswith(_ZIP_SIGNATURE):
            for place in _SIGNATURE_PLACES:
                file.seek(place)
                if file.read(8) == _HDF5_SIGNATURE:
                    return _hdf5_reader(path)
    if signature.startswith(_ZIP_SIGNATURE):
        return _npz_reader(path)
    raise ScanFileError(
        f"{path} must be a CXI (HDF5), Ptychodus (HDF5) or NPZ file; it begins with {signature!r}. "
        "Convert it to one of these."
    )


def _hdf5_reader(path: Path) -> _Reader:
    with open_hdf5(path, "an HDF5 file") as file:
        keys = set(file)
        if "entry_1" in keys:
            if is_single_shot(file):
                raise ScanFileError(f"{path} holds single-shot reconstructions, no frames; read_single_shot reads it.")
            if "image_2" in file["entry_1"] and file.get(DATA[1]) is None:
                raise ScanFileError(f"{path} holds a reconstruction, no frames; read_cxi_result reads it.")
            return read_cxi
    if keys & {"patterns", "dp"}:
        return read_ptychodus
    if "probe_position_x_m" in keys:
        raise ScanFileError(
            f"{path} is a Ptychodus product, which holds no frames. read_product reads it; "
            "a scan is read from the file of the patterns."
        )
    raise ScanFileError(
        f"{path} must be a CXI file, with the group entry_1, or hold Ptychodus' `patterns` or `dp`; it holds "
        f"{', '.join(sorted(keys)) or 'nothing'}."
    )


def _npz_reader(path: Path) -> _Reader:
    with open_npz(path, "an NPZ file") as file:
        keys = set(file)
    if "frames" in keys and keys & {"positions_px", "positions_m"}:
        return read_canonical
    if {"xcoords", "ycoords"} <= keys and keys & {"diffraction", "diff3d"}:
        return read_ptychopinn
    raise ScanFileError(
        f"{path} must hold `frames` and `positions_px` (or `positions_m` and `geometry`), or `diffraction`, `xcoords` "
        f"and `ycoords`; it holds {', '.join(sorted(keys)) or 'nothing'}."
    )


def read_reconstruction(path: Path | str) -> Product:
    """Read a Ptychodus product or a CXI reconstruction; the file's content, not its name, tells which.

    Parameters
    ----------
    path : path
        The HDF5 file.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be read, or holds neither.
    """
    path = Path(path).expanduser()
    with open_hdf5(path, "a reconstruction (Ptychodus product or CXI)") as file:
        is_cxi = "entry_1" in file
        if is_single_shot(file):
            raise ScanFileError(f"{path} holds single-shot reconstructions, no scan's; read_single_shot reads it.")
    return read_cxi_result(path) if is_cxi else read_product(path)
